"""The simulator as a context manager: a thread with one server in it, and what a test may look at."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from simulators.comfyui.core import Core, Execution, SimulatorSettings
from simulators.comfyui.faults import Cut, Faults
from simulators.comfyui.files import Folders
from simulators.comfyui.sampling import Pace

MODELS: Mapping[str, tuple[str, ...]] = {
    "diffusion_models": ("flux1-dev-fp8.safetensors",),
    "text_encoders": ("clip_l.safetensors", "t5xxl_fp8_e4m3fn.safetensors"),
    "vae": ("ae.safetensors",),
    "loras": ("game-ui.safetensors", "pixel-art.safetensors"),
    "checkpoints": (),
}
ANY_HOST = ("", "0.0.0.0", "::")  # noqa: S104  compared with, not bound
START_DEADLINE_S = 30.0
VERB_DEADLINE_S = 10.0


class Simulator:
    """A ComfyUI that needs no GPU, in a thread of this process.

    `models` replaces the files of the folders that it names; they are iterated whenever they are asked for. Without
    `base_directory`, input, output and temp live in a temporary folder that is gone at the end.
    """

    def __init__(
        self,
        *,
        step_s: float = 0.0,
        models: Mapping[str, Iterable[str]] | None = None,
        base_directory: Path | str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        previews: bool = False,
        is_own_process: bool = False,
    ) -> None:
        self._base_directory = base_directory
        self._host, self._port = host, port
        self._models: dict[str, Iterable[str]] = {**MODELS, **(models or {})}
        self._pace = Pace(step_s, previews)
        self._is_own_process = is_own_process
        self._own_base: tempfile.TemporaryDirectory[str] | None = None
        self._thread = threading.Thread(target=self._serve, name="comfyui-simulator", daemon=True)
        self._started = threading.Event()
        self._failure: OSError | OverflowError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: Core | None = None
        self.faults = Faults(_Hands(self))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Return the address to call."""
        host = "127.0.0.1" if self._host in ANY_HOST else self._host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def input_dir(self) -> Path:
        """Return the folder of uploads."""
        return self._core.folders.input

    @property
    def output_dir(self) -> Path:
        """Return the folder of saved pictures."""
        return self._core.folders.output

    @property
    def temp_dir(self) -> Path:
        """Return the folder of previews."""
        return self._core.folders.temp

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Return method and path of every request so far, in order."""
        return list(self._core.requests)

    @property
    def executed_prompts(self) -> list[str]:
        """Return the ids of the prompts that began to run, in order."""
        return list(self._core.executed_prompts)

    @property
    def executions(self) -> list[Execution]:
        """Return when each prompt that ran to an end began and ended, in order."""
        return list(self._core.executions)

    @property
    def sampled_steps(self) -> int:
        """Return how many steps were sampled in all."""
        return self._core.sampled_steps

    @property
    def hanging_step(self) -> int | None:
        """Return the step that `hang_sampling` holds now, or None."""
        return self._core.hanging_step

    @property
    def queue_ids(self) -> list[str]:
        """Return the ids of the prompts that run and wait."""
        return self._core.queue.ids

    @property
    def history_ids(self) -> list[str]:
        """Return the ids of the prompts that ended, oldest first."""
        return self._core.queue.history_ids

    @property
    def sockets(self) -> int:
        """Return how many websockets are open."""
        return self._core.sockets.count

    @property
    def connections(self) -> int:
        """Return how many TCP connections were accepted in all."""
        return self._core.connections

    def start(self) -> None:
        """Start serving; return when the port answers.

        Raises:
            OSError: the port is taken.
        """
        if self._base_directory is None:
            self._own_base = tempfile.TemporaryDirectory(prefix="comfyui-simulator-")
            self._base_directory = self._own_base.name
        folders = Folders(Path(self._base_directory).absolute())
        folders.make()
        settings = SimulatorSettings(self._host, self._port, folders, self._models, self._pace, self._is_own_process)
        self._running = Core(settings, self.faults)
        self._thread.start()
        self._started.wait(START_DEADLINE_S)
        if self._failure is not None:
            self.stop()

    def stop(self) -> None:
        """Stop serving at once, whatever runs; the thread and a temporary folder are gone afterwards."""
        self.faults.released.set()
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended by itself
                loop.call_soon_threadsafe(self._core.stop)
        self._thread.join()
        if self._own_base is not None:
            self._own_base.cleanup()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def call(self, verb: Callable[[Core], Coroutine[Any, Any, None]]) -> None:
        """Let the running server do something; return when it is done."""
        loop = self._loop
        if loop is None:
            raise RuntimeError("the simulator is not running")
        asyncio.run_coroutine_threadsafe(verb(self._core), loop).result(VERB_DEADLINE_S)

    @property
    def _core(self) -> Core:
        if self._running is None:
            raise RuntimeError("the simulator is not running")
        return self._running

    def _serve(self) -> None:
        try:
            asyncio.run(self._served())
        except (OSError, OverflowError) as failure:
            self._failure = failure
        finally:
            self._started.set()

    async def _served(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self._core.serve(self._ready)
        finally:
            self._loop = None

    def _ready(self, port: int) -> None:
        self._port = port
        self._started.set()


class _Hands:
    """The verbs that act on the running server at once, from any thread."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    def cut(self, how: Cut) -> None:
        self._simulator.call(lambda core: core.cut(how))

    def refuse(self, seconds: float) -> None:
        self._simulator.call(lambda core: core.refuse(seconds))

    def forget(self) -> None:
        self._simulator.call(lambda core: core.forget())

    def go_on(self) -> None:
        self._simulator.call(lambda core: core.go_on())
