"""The simulator as a context manager: a thread that runs one server, with its state for tests."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from simulators.comfyui.core import Core, Execution, SimulatorSettings
from simulators.comfyui.faults import ComfyUIFaults
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
START_TIMEOUT_S = 120.0
ACTION_TIMEOUT_S = 60.0


class Simulator:
    """A simulated ComfyUI in a thread of this process.

    `models` replaces the files of the folders that it names. Each request iterates over its values again. Without
    `base_directory`, input, output and temp are in a temporary folder that is deleted at the end. `Folders` in its
    place can have further model folders.
    """

    def __init__(
        self,
        *,
        step_s: float = 0.0,
        models: Mapping[str, Iterable[str]] | None = None,
        base_directory: Folders | Path | str | None = None,
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
        self.faults = ComfyUIFaults(self._call)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Return the server's URL."""
        host = "127.0.0.1" if self._host in ANY_HOST else self._host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def input_dir(self) -> Path:
        """Return the folder of uploads."""
        return self._core.folders.input

    @property
    def output_dir(self) -> Path:
        """Return the folder of saved images."""
        return self._core.folders.output

    @property
    def temp_dir(self) -> Path:
        """Return the folder of previews."""
        return self._core.folders.temp

    def listed_models(self, folder: str) -> tuple[str, ...]:
        """Return the files that the server lists for a model folder."""
        return self._core.listing(folder)

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Return the method and path of each request, in order."""
        return list(self._core.requests)

    @property
    def executed_prompts(self) -> list[str]:
        """Return the ids of the prompts that were started, in order."""
        return list(self._core.executed_prompts)

    @property
    def executions(self) -> list[Execution]:
        """Return the start and end of each prompt that ended, in order."""
        return list(self._core.executions)

    @property
    def sampled_steps(self) -> int:
        """Return the total number of sampled steps."""
        return self._core.sampled_steps

    @property
    def hanging_step(self) -> int | None:
        """Return the step that hangs because of `hang_sampling`, or None."""
        return self._core.hanging_step

    @property
    def queue_ids(self) -> list[str]:
        """Return the ids of the running and the waiting prompts."""
        return self._core.queue.ids

    @property
    def history_ids(self) -> list[str]:
        """Return the ids of the ended prompts, oldest first."""
        return self._core.queue.history_ids

    @property
    def sockets(self) -> int:
        """Return the number of open websockets."""
        return self._core.sockets.count

    @property
    def connections(self) -> int:
        """Return the total number of accepted TCP connections."""
        return self._core.connections

    def start(self) -> None:
        """Start the server; return when it accepts connections.

        Raises:
            OSError: the port is taken.
            OverflowError: the port is out of range.
        """
        if self._base_directory is None:
            self._own_base = tempfile.TemporaryDirectory(prefix="comfyui-simulator-")
            self._base_directory = self._own_base.name
        given = self._base_directory
        folders = given if isinstance(given, Folders) else Folders(Path(given).absolute())
        folders.make()
        settings = SimulatorSettings(self._host, self._port, folders, self._models, self._pace, self._is_own_process)
        self._running = Core(settings, self.faults)
        self._thread.start()
        self._started.wait(START_TIMEOUT_S)
        if self._failure is not None:
            self.stop()

    def stop(self) -> None:
        """Stop the server at once, end its thread, and delete the temporary folder.

        Raises the error of the server if it failed.
        """
        self.faults.released.set()
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._core.stop)
        self._thread.join()
        if self._own_base is not None:
            self._own_base.cleanup()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _call(self, action: Callable[[Core], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine on the running server; return when it has finished."""
        loop = self._loop
        if loop is None:
            raise RuntimeError("the simulator is not running")
        asyncio.run_coroutine_threadsafe(action(self._core), loop).result(ACTION_TIMEOUT_S)

    @property
    def _core(self) -> Core:
        if self._running is None:
            raise RuntimeError("the simulator is not running")
        return self._running

    def _serve(self) -> None:
        try:
            asyncio.run(self._run_server())
        except (OSError, OverflowError) as failure:
            self._failure = failure
        finally:
            self._started.set()

    async def _run_server(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self._core.serve(self._ready)
        finally:
            self._loop = None

    def _ready(self, port: int) -> None:
        self._port = port
        self._started.set()
