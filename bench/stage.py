"""The worker in true production mode: the platform's stand-in, handler.py as a process, and a ComfyUI.

The ComfyUI is a simulator, in this process (its faults are asked for as they are needed) or the worker's own child, as
in the container.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from comfy_core.contract import ErrorReport
from comfy_core.workflows import default_directory, load_workflows, override, render
from simulators import comfyui_main as comfyui
from simulators.comfyui import Simulator
from simulators.runpod.queue_api import Job, JobState, RunPodPlatform, WorkerProcess
from simulators.waiting import until
from worker.models.listing import default_list, read_models

ROOT = Path(__file__).parent.parent
SMALL = {"prompt": "a knight", "width": 64, "height": 64, "steps": 4}
CHILD = """\
import sys
from simulators.comfyui.__main__ import main
sys.exit(main([*sys.argv[1:], "--base-directory", {directory!r}]))
"""
"""The main.py of a ComfyUI folder whose ComfyUI is the simulator."""
MODELS = read_models(default_list())


@dataclass(frozen=True)
class Stage:
    """What a test acts on. `simulator` is None where ComfyUI is the worker's child, in `comfyui_directory`."""

    platform: RunPodPlatform
    worker: WorkerProcess
    simulator: Simulator | None
    comfyui_directory: Path

    def submit(self, **inputs: object) -> str:
        """Submit a small job, changed by `inputs`, and return its id."""
        return self.platform.submit({**SMALL, **inputs})

    def run(self, **inputs: object) -> Job:
        """Submit a small job, changed by `inputs`, and return it once it has ended."""
        return self.platform.wait_for(self.submit(**inputs), 60)

    def run_large(self) -> Job:
        """Run a graph whose thirteen pictures of 2048 x 2048 have 12 MB and more; return the job once it has ended."""
        values = {"prompt": "a knight", "seed": 1, "steps": 1, "width": 2048, "height": 2048}
        [graph] = render(load_workflows(default_directory())["flux-dev-txt2img"], values)
        override(graph, {"EmptySD3LatentImage.batch_size": 13})
        return self.platform.wait_for(self.platform.submit({"workflow": graph}), 60)

    def await_ready(self) -> None:
        """Return when the worker asks for jobs."""
        assert until(lambda: self.platform.takes or self.worker.exit_code is not None, 60)

    def await_sampling(self, job_id: str) -> None:
        """Return when ComfyUI has begun to sample the job, by the progress that the platform has seen."""
        self.platform.wait_until(
            lambda: any(isinstance(seen, dict) and seen.get("step") for seen in self.platform.jobs[job_id].progress), 60
        )

    def comfyui_processes(self) -> list[psutil.Process]:
        """Return the processes of the worker's own ComfyUI."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(self.comfyui_directory):
                    found.append(process)
        return found

    def kill_comfyui(self) -> None:
        """Kill the worker's own ComfyUI, as the kernel does when memory is short."""
        for process in self.comfyui_processes():
            process.send_signal(signal.SIGKILL)

    def freeze_comfyui(self) -> None:
        """Have the worker's own ComfyUI answer nothing any more, as when a node holds the interpreter."""
        for process in self.comfyui_processes():
            process.suspend()

    def files_left(self) -> list[Path]:
        """Return the files in ComfyUI's folders, empty ones apart."""
        base = self.simulator.input_dir.parent if self.simulator else data_of(self.comfyui_directory)
        files = [path for kind in ("input", "output") for path in (base / kind).rglob("*")]
        return [path for path in files if path.is_file() and path.stat().st_size]


@contextlib.contextmanager
def staged(
    *,
    own_comfyui: bool = False,
    shares_files: bool = False,
    step_s: float = 0.05,
    main: str = comfyui.MAIN,
    platform: RunPodPlatform | None = None,
    environment: Mapping[str, str] | None = None,
    models: Mapping[str, Iterable[str]] | None = None,
) -> Iterator[Stage]:
    """Yield a worker in production mode that is ready for jobs, or has ended; nothing of it is left afterwards.

    `models` are the simulator's, by folder. With `shares_files` the worker reaches the simulator's files, as it does
    those of a ComfyUI of its own.
    """
    environment = dict(environment or {})
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="comfyui-")))
        platform = stack.enter_context(platform or RunPodPlatform(long_poll_s=1.0))
        simulator = None
        env = {"WORKER_WARMUP": "false", "RUNPOD_PING_INTERVAL": "1000", "PYTHONPATH": str(ROOT)}
        if own_comfyui:
            arguments = f"--step-s {step_s} {environment.pop('COMFYUI_ARGS', '')}"
            put_models(directory / "baked")
            env |= {**make_comfyui(directory, main), "COMFYUI_ARGS": arguments}
        else:
            simulator = stack.enter_context(Simulator(step_s=step_s, base_directory=directory, models=models))
            env |= {"COMFYUI_URL": simulator.url, **({"COMFYUI_DIR": str(directory)} if shares_files else {})}
        worker = WorkerProcess(platform, ROOT / "handler.py", env={**env, **environment})
        stage = Stage(platform, stack.enter_context(worker), simulator, directory)
        stack.callback(stage.kill_comfyui)
        stage.await_ready()
        yield stage


def make_comfyui(directory: Path, main: str = comfyui.MAIN) -> dict[str, str]:
    """Make a ComfyUI's folder; return the variables of a worker that starts it, with all its places in there."""
    (directory / "main.py").write_text(main.format(directory=str(directory), flags="OLD"))
    return {
        "COMFYUI_DIR": str(directory),
        "COMFYUI_DATA_DIR": str(data_of(directory)),
        "COMFYUI_PORT": str(free_port()),
        "WORKER_MODELS_DIR": str(directory / "baked"),
        "WORKER_VOLUME_DIR": str(directory / "volume"),
        "WORKER_MODEL_CACHE_DIR": str(directory / "cache"),
        "PYTHONPATH": str(ROOT),
    }


def data_of(directory: Path) -> Path:
    """Return the data folder of such a ComfyUI."""
    return directory / "data"


def put_models(root: Path, *paths: str, size: int | None = None) -> None:
    """Put files of models.txt's names and sizes under `root`, all or `paths`. They are holes, and take no room."""
    for model in MODELS:
        if not paths or model.path in paths:
            file = root / model.path
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as content:
                content.truncate(model.size if size is None else size)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def code_of(job: Job) -> str | None:
    """Return the error code of a job that has ended, or None where it has a result."""
    if job.state == JobState.COMPLETED:
        assert isinstance(job.output, dict), "completed without output"
        assert job.output["images"] or job.output["files"]
        return None
    assert isinstance(job.error, str), job
    assert json.loads(job.error)["code"]
    return ErrorReport.from_json(job.error).code.value
