"""Measures one flag set. ComfyUI is started as the worker starts its own, and jobs run as in the worker."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bench.gpu import page_cache
from bench.gpu.flag_sets import FlagSet, Plan
from bench.gpu.machine import PeakMemory
from bench.gpu.results import Figures
from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.graphs import Graph
from comfy_core.http import HttpApi
from comfy_core.progress import Progress
from comfy_core.targets import TargetFinder
from comfy_core.workflows import default_directory, load_workflows, render
from simulators.http_server import free_port
from worker.boot import Boot
from worker.boot_times import BootTimes
from worker.comfyui_process import ProcessHooks
from worker.jobs import Control, Worker, run_job
from worker.settings import Settings

WORKFLOW = "flux-dev-txt2img"
MODEL_INPUT = "KSampler.model"
COMPILER_NODE = "compiler"


@dataclass(frozen=True)
class Installation:
    """What is measured.

    Attributes:
        comfyui: ComfyUI's folder.
        python: the Python that has ComfyUI's packages.
        models: the folder of the model files.
        flags: launch flags of every flag set, such as `--cpu`.
        logs: the folder for ComfyUI's logs, one file for each flag set.
    """

    comfyui: Path
    python: Path
    models: Path
    flags: tuple[str, ...]
    logs: Path

    @property
    def model_files(self) -> list[Path]:
        """The model files."""
        return sorted(self.models.glob("*/*.safetensors"))


@dataclass(frozen=True)
class ImageTimes:
    """Seconds of one image, as `Figures` defines them."""

    first_step_s: float
    steps_s: tuple[float, ...]
    image_s: float


def measure(installation: Installation, plan: Plan, flag_set: FlagSet, limit_s: float) -> Iterator[Figures]:
    """Yield the figures of a flag set after the boot, after the first image and after the last.

    Raises JobError (deadline_exceeded after `limit_s`), ModelsMissing, or another error of the boot or of a job.
    """
    deadline = time.monotonic() + limit_s
    if flag_set.is_cold:
        page_cache.drop(installation.model_files)
    figures = Figures(page_cache=page_cache.state(installation.model_files))
    begun_at = time.monotonic()
    with PeakMemory() as memory, running_comfyui(installation, flag_set, limit_s) as worker:
        figures = replace(figures, boot_s=time.monotonic() - begun_at, command_line=command_line(worker))
        yield figures
        first = run_image(worker, plan, flag_set, 0, deadline)
        figures = replace(
            figures, first_step_s=first.first_step_s, first_image_s=first.image_s, peak_vram_mib=memory.mib
        )
        yield figures
        later = [run_image(worker, plan, flag_set, seed, deadline) for seed in range(1, plan.warm_images + 1)]
        yield replace(
            figures,
            load_s=first.first_step_s - statistics.median(image.first_step_s for image in later),
            step_s=statistics.median(step_s for image in later for step_s in image.steps_s),
            image_s=statistics.median(image.image_s for image in later),
            peak_vram_mib=memory.mib,
        )


@contextlib.contextmanager
def running_comfyui(installation: Installation, flag_set: FlagSet, limit_s: float) -> Iterator[Worker]:
    """Yield a worker whose own ComfyUI runs with a flag set; stop ComfyUI and store its log afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as data:
        settings = Settings.from_env(
            {
                "COMFYUI_DIR": str(installation.comfyui),
                "COMFYUI_PYTHON": str(installation.python),
                "COMFYUI_DATA_DIR": data,
                "COMFYUI_PORT": str(free_port()),
                "COMFYUI_ARGS": shlex.join([*installation.flags, *flag_set.flags]),
                "COMFYUI_READY_TIMEOUT_S": str(limit_s),
                "WORKER_MODELS_DIR": str(installation.models),
                "WORKER_JOB_TIMEOUT_S": "3600",
                "WORKER_WARMUP": "false",
            }
        )
        server = ComfyServer(settings.comfyui_url, directory=settings.comfyui_data_directory)
        workflows = load_workflows(default_directory())
        boot = Boot(settings, server, workflows, os.environ, ProcessHooks(), BootTimes())
        try:
            boot.begin()
            boot.finish()
            yield Worker(server, workflows, settings)
        finally:
            boot.stop()
            if boot.process is not None:
                log = "\n".join(boot.process.log.lines())
                (installation.logs / f"{flag_set.name}.log").write_text(f"{log}\n", encoding="utf-8")


def command_line(worker: Worker) -> tuple[str, ...]:
    """Return ComfyUI's arguments."""
    stats = HttpApi(worker.server.url, name="ComfyUI", use_proxies=False).json("GET", "/system_stats", timeout_s=10)
    return tuple(stats["system"]["argv"])


def run_image(worker: Worker, plan: Plan, flag_set: FlagSet, seed: int, deadline: float) -> ImageTimes:
    """Run one job in the worker and return its times. Raises JobError, deadline_exceeded at the deadline."""
    steps_at: dict[int, float] = {}

    def observe(progress: Progress) -> None:
        if progress.step and progress.steps == plan.steps:
            steps_at.setdefault(progress.step, time.monotonic())

    job = {"id": "bench", "input": {"workflow": graph_of(worker, plan, flag_set, seed), "delivery": "base64"}}
    begun_at = time.monotonic()
    run_job(worker, job, Control(stop_error=lambda: _late_error(deadline), observe=observe))
    image_s = time.monotonic() - begun_at
    times = [steps_at[step] for step in sorted(steps_at)]
    if len(times) < plan.steps:
        raise JobError.because(ErrorCode.COMFYUI_UNAVAILABLE, f"ComfyUI reported {len(times)} of {plan.steps} steps")
    return ImageTimes(
        first_step_s=times[0] - begun_at,
        steps_s=tuple(later - earlier for earlier, later in itertools.pairwise(times)),
        image_s=image_s,
    )


def graph_of(worker: Worker, plan: Plan, flag_set: FlagSet, seed: int) -> Graph:
    """Return the worker's own graph for one image, with the compiler if the flag set has it."""
    values = {
        "prompt": "a pixel art knight on a hill",
        "seed": seed,
        "width": plan.width,
        "height": plan.height,
        "steps": plan.steps,
    }
    [graph] = render(worker.workflows[WORKFLOW], values)
    if flag_set.is_compiled:
        model = TargetFinder(graph).target(MODEL_INPUT)
        inputs = {"model": model.get(graph), "backend": "inductor"}
        graph[COMPILER_NODE] = {"class_type": "TorchCompileModel", "inputs": inputs}
        model.set(graph, [COMPILER_NODE, 0])
    return graph


def _late_error(deadline: float) -> JobError | None:
    if time.monotonic() < deadline:
        return None
    return JobError(ErrorReport(ErrorCode.DEADLINE_EXCEEDED, "The time of this flag set is over"))
