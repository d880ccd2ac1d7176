"""Starts a worker in production mode: handler.py as a process, with the RunPod simulator and a simulated ComfyUI.

The simulated ComfyUI runs in this process, so that faults can be injected, or as a child process of the worker, as in
the container.
"""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from comfy_core.contract import ErrorReport
from comfy_core.models.listing import default_list, read_models
from comfy_core.targets import TargetFinder
from comfy_core.workflows import default_directory, load_workflows, render
from simulators import comfyui_main as comfyui
from simulators.comfyui import Simulator
from simulators.http_server import free_port
from simulators.runpod.queue_api import QueueJob, QueueJobState, RunPodPlatform, WorkerProcess
from simulators.waiting import until

ROOT = Path(__file__).parent.parent
SMALL_JOB = {"prompt": "a knight", "width": 64, "height": 64, "steps": 4}
SIMULATOR_MAIN = """\
import sys
from simulators.comfyui.__main__ import main
sys.exit(main([*sys.argv[1:], "--base-directory", {directory!r}]))
"""
"""The main.py of a ComfyUI folder that starts the simulator."""
MODELS = read_models(default_list())
LARGE_IMAGES = 16


@dataclass(frozen=True)
class WorkerSetup:
    """A worker and what it is connected to.

    Attributes:
        platform: the simulator of RunPod.
        worker: the process of handler.py.
        simulator: the simulator of ComfyUI; None if the worker starts ComfyUI itself.
        comfyui_directory: the folder of ComfyUI and its files.
    """

    platform: RunPodPlatform
    worker: WorkerProcess
    simulator: Simulator | None
    comfyui_directory: Path

    def submit(self, **inputs: object) -> str:
        """Submit a small job, changed by `inputs`, and return its id."""
        return self.platform.submit({**SMALL_JOB, **inputs})

    def run(self, **inputs: object) -> QueueJob:
        """Submit a small job, changed by `inputs`, and return the finished job."""
        return self.platform.wait_for(self.submit(**inputs), 60)

    def run_large(self) -> QueueJob:
        """Run a graph with LARGE_IMAGES images of 2048 x 2048, which are over 12 MB in base64; return the ended job."""
        values = {"prompt": "a knight", "seed": 1, "steps": 1, "width": 2048, "height": 2048}
        [graph] = render(load_workflows(default_directory())["flux-dev-txt2img"], values)
        TargetFinder(graph).target("EmptySD3LatentImage.batch_size").set(graph, LARGE_IMAGES)
        return self.platform.wait_for(self.platform.submit({"workflow": graph}), 60)

    def await_ready(self) -> None:
        """Wait until the worker polls for jobs or has exited."""
        assert until(lambda: self.platform.takes or self.worker.exit_code is not None, 60)

    def await_sampling(self, job_id: str) -> None:
        """Wait until the platform has received sampling progress of the job."""
        self.platform.wait_until(
            lambda: any(isinstance(value, dict) and value.get("step") for value in self.platform.jobs[job_id].progress),
            60,
        )

    def comfyui_processes(self) -> list[psutil.Process]:
        """Return the processes of the worker's own ComfyUI."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(self.comfyui_directory):
                    found.append(process)
        return found

    def comfyui_queue(self) -> dict[str, list[object]]:
        """Return the response of `GET /queue` of the worker's own ComfyUI: its running and its waiting prompts."""
        [process] = self.comfyui_processes()
        arguments = process.cmdline()
        port = arguments[arguments.index("--port") + 1]
        queue: dict[str, list[object]] = requests.get(f"http://127.0.0.1:{port}/queue", timeout=60).json()
        return queue

    def kill_comfyui(self) -> None:
        """Kill the worker's own ComfyUI, as the kernel does when memory is short."""
        for process in self.comfyui_processes():
            process.send_signal(signal.SIGKILL)

    def freeze_comfyui(self) -> None:
        """Suspend the worker's own ComfyUI, so that it no longer responds, as when a node blocks the interpreter."""
        for process in self.comfyui_processes():
            process.suspend()

    def files_left(self) -> list[Path]:
        """Return the files in ComfyUI's input and output folders, except empty files."""
        base = self.simulator.input_dir.parent if self.simulator else data_directory(self.comfyui_directory)
        files = [path for kind in ("input", "output") for path in (base / kind).rglob("*")]
        return [path for path in files if path.is_file() and path.stat().st_size]


@contextlib.contextmanager
def running_worker(  # noqa: PLR0913 - all are keywords with defaults
    *,
    own_comfyui: bool = False,
    shares_files: bool = False,
    step_s: float = 0.05,
    main: str = comfyui.MAIN,
    platform: RunPodPlatform | None = None,
    environment: Mapping[str, str] | None = None,
    models: Mapping[str, Iterable[str]] | None = None,
    script: Path = ROOT / "handler.py",
) -> Iterator[WorkerSetup]:
    """Yield a worker in production mode that is ready for jobs or has exited; stop it and remove its files afterwards.

    With `own_comfyui` the worker starts ComfyUI itself, from `main` as main.py. Otherwise ComfyUI is the simulator:
    `models` are its model files, by folder, and with `shares_files` the worker can delete files in its folders. The
    worker's process runs `script`.
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
        worker = WorkerProcess(platform, script, env={**env, **environment})
        setup = WorkerSetup(platform, stack.enter_context(worker), simulator, directory)
        stack.callback(setup.kill_comfyui)
        setup.await_ready()
        yield setup


def make_comfyui(directory: Path, main: str = comfyui.MAIN) -> dict[str, str]:
    """Create a ComfyUI folder with `main` as main.py; return the environment of a worker that starts this ComfyUI."""
    (directory / "main.py").write_text(main.format(directory=str(directory), flags="PINNED_FLAGS"))
    return {
        "COMFYUI_DIR": str(directory),
        "COMFYUI_DATA_DIR": str(data_directory(directory)),
        "COMFYUI_PORT": str(free_port()),
        "WORKER_MODELS_DIR": str(directory / "baked"),
        "WORKER_VOLUME_DIR": str(directory / "volume"),
        "WORKER_MODEL_CACHE_DIR": str(directory / "cache"),
        "PYTHONPATH": str(ROOT),
    }


def data_directory(directory: Path) -> Path:
    """Return the data folder inside `directory`, a folder that `make_comfyui` has created."""
    return directory / "data"


def put_models(root: Path, *paths: str, size: int | None = None) -> None:
    """Write sparse files below `root` for the models of models.txt, or only for `paths`, with their sizes or `size`."""
    for model in MODELS:
        if not paths or model.path in paths:
            file = root / model.path
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as content:
                content.truncate(model.size if size is None else size)


def code_of(job: QueueJob) -> str | None:
    """Return the error code of a job that has ended, or None if the job has a result."""
    if job.state == QueueJobState.COMPLETED:
        assert isinstance(job.output, dict), "completed without output"
        assert job.output["images"] or job.output["files"]
        return None
    assert isinstance(job.error, str), job
    assert json.loads(job.error)["code"]
    return ErrorReport.from_json(job.error).code.value
