"""Measures the time from the start of a worker to the first sampling step of a job that waits, by step.

Three programs start on copies of the same ComfyUI checkout, one after the other, with compiled byte code:

- `main.py` alone. The prompt is posted as soon as ComfyUI responds.
- This worker, with its default settings.
- RunPod's stock worker: its start.sh and handler.py. Its check of the GPU imports torch as always, but may fail.

A file in ComfyUI's folder of custom nodes records when ComfyUI reports the first step.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import itertools
import json
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from bench.worker_setup import ROOT, SMALL_JOB, code_of
from comfy_core.comfyui.server import ComfyServer
from comfy_core.errors import RequestError
from comfy_core.graphs import Graph
from comfy_core.workflows import default_directory, load_workflows, render
from simulators.http_server import free_port
from simulators.runpod.queue_api import RunPodPlatform, WorkerProcess
from simulators.waiting import until

TIMEOUT_S = 180.0
ROUND_TRIP_S = 0.06
LEFT_OUT = (".git", "models", "output", "input", "temp", "user", "tests", "tests-unit")
"""Files and folders of a checkout that are not copied."""
STOCK_PORT = "8188"
"""The port of ComfyUI in the stock worker's files."""
FIRST_STEP = """\
import time, pathlib
import comfy.utils
inner = comfy.utils.ProgressBar.update_absolute
def update_absolute(self, *arguments, **named):
    file = pathlib.Path(__file__).with_suffix(".txt")
    if not file.exists():
        file.write_text(str(time.monotonic()))
    return inner(self, *arguments, **named)
comfy.utils.ProgressBar.update_absolute = update_absolute
NODE_CLASS_MAPPINGS = {}
"""
START_STOCK = """\
import os
os.execvp("bash", ["bash", {script!r}])
"""
PYTHONS = """\
#!/bin/bash
case "$*" in
  *handler.py*) exec {handlers} "$@" ;;
  *) exec {comfyuis} "$@" ;;
esac
"""
"""A command `python` that runs the handler and ComfyUI in separate environments, which one environment may also be."""

Times: TypeAlias = dict[str, float]
Start: TypeAlias = Callable[["Checkout", argparse.Namespace], Times]


@dataclass(frozen=True)
class Checkout:
    """A copy of ComfyUI for one start, in the folder `directory`, with the models of `models`."""

    directory: Path
    models: Path
    port: int

    def first_step_at(self) -> float:
        """Wait for the first step, and return its time on the monotonic clock."""
        file = self.directory / "custom_nodes" / "first_step.txt"
        if not until(lambda: file.exists() and file.read_text(), TIMEOUT_S):
            sys.exit("scripts/bench: no sampling step was seen")
        return float(file.read_text())

    def await_ready(self) -> float:
        """Wait until ComfyUI responds, and return the time on the monotonic clock."""
        server = ComfyServer(f"http://127.0.0.1:{self.port}")
        is_ready = until(lambda: _responds(server), TIMEOUT_S)
        server.close()
        if not is_ready:
            sys.exit("scripts/bench: ComfyUI does not respond")
        return time.monotonic()


def boot(options: argparse.Namespace) -> None:
    """Start each program `rounds` times, in turn, and print the medians of its steps."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("scripts/bench: ended by a signal"))  # ends the workers too
    starts: dict[str, Start] = {"main.py alone": _start_main, "this worker": _start_worker}
    if options.stock:
        starts["stock worker"] = _start_stock
    rounds: dict[str, list[Times]] = {name: [] for name in starts}
    for number, (name, start) in itertools.product(range(options.rounds), starts.items()):
        with _checkout(options.comfyui) as checkout:
            rounds[name].append(start(checkout, options))
        print(f"round {number + 1}, {name}: {_sentence(rounds[name][-1])}", flush=True)
    medians = {name: _medians(times) for name, times in rounds.items()}
    print(f"\nmedians of {options.rounds} rounds, seconds since the start; the job has {SMALL_JOB['steps']} steps")
    for name, times in medians.items():
        print(f"  {name:16} {_sentence(times)}")
    for name, times in medians.items():
        if options.stock:
            ratio = times["first step"] / medians["stock worker"]["first step"]
            print(f"  {name:16} first step {ratio:.2f} of the stock worker's")
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1))


def _sentence(times: Times) -> str:
    return ", ".join(f"{step} {seconds:.2f}" for step, seconds in times.items())


def _medians(rounds: list[Times]) -> Times:
    return {step: statistics.median(times[step] for times in rounds) for step in rounds[0]}


@contextlib.contextmanager
def _checkout(comfyui: Path) -> Iterator[Checkout]:
    """Yield a copy of a checkout, without its models and its files of earlier runs. It is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-boot-") as name:
        directory = Path(name, "comfyui")
        shutil.copytree(comfyui, directory, ignore=lambda folder, _: LEFT_OUT if Path(folder) == comfyui else ())
        (directory / "models").symlink_to((comfyui / "models").absolute())
        (directory / "custom_nodes" / "first_step.py").write_text(FIRST_STEP)
        compileall.compile_dir(directory, quiet=2, workers=0)
        yield Checkout(directory, comfyui.absolute() / "models", free_port())


def _responds(server: ComfyServer) -> bool:
    with contextlib.suppress(RequestError):
        server.fetch_system(timeout_s=2)
        return True
    return False


def _graph() -> Graph:
    [graph] = render(load_workflows(default_directory())["flux-dev-txt2img"], {**SMALL_JOB, "seed": 1})
    return graph


def _start_main(checkout: Checkout, options: argparse.Namespace) -> Times:
    arguments = ["--port", str(checkout.port), "--disable-auto-launch", *shlex.split(options.comfyui_args)]
    begun_at = time.monotonic()
    with subprocess.Popen(
        [options.python, "main.py", *arguments],
        cwd=checkout.directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            ready_at = checkout.await_ready()
            server = ComfyServer(f"http://127.0.0.1:{checkout.port}")
            server.queue_prompt(_graph(), "00000000-0000-4000-8000-000000000000")
            first_step_at = checkout.first_step_at()
            server.close()
        finally:
            process.kill()
    return {"ComfyUI responds": ready_at - begun_at, "first step": first_step_at - begun_at}


def _start_worker(checkout: Checkout, options: argparse.Namespace) -> Times:
    data = checkout.directory.parent / "data"
    environment = {
        "COMFYUI_DIR": str(checkout.directory),
        "COMFYUI_DATA_DIR": str(data),
        "COMFYUI_PYTHON": options.python,
        "COMFYUI_PORT": str(checkout.port),
        "COMFYUI_ARGS": options.comfyui_args,
        "WORKER_MODELS_DIR": str(checkout.models),
    }
    with RunPodPlatform(round_trip_s=ROUND_TRIP_S) as platform:
        times, log = _run_worker(checkout, platform, ROOT / "handler.py", environment, SMALL_JOB)
    [line] = [line for line in log.splitlines() if '"booted"' in line]
    steps = {name.replace("_", " "): seconds for name, seconds in json.loads(line)["boot_s"].items()}
    return {**steps, **times}


def _start_stock(checkout: Checkout, options: argparse.Namespace) -> Times:
    folder = checkout.directory.parent / "stock"
    folder.mkdir()
    for name in ("handler.py", "src/network_volume.py", "src/start.sh"):
        text = (options.stock / name).read_text().replace(STOCK_PORT, str(checkout.port))
        (folder / Path(name).name).write_text(text)
    script = folder / "start.sh"
    flags = f"{checkout.directory}/main.py --port {checkout.port} {options.comfyui_args}"
    text = script.read_text().replace("/comfyui/main.py", flags).replace(" /handler.py", f" {folder}/handler.py")
    pid_file = folder / "comfyui.pid"
    script.write_text(text.replace("exit 1", "true").replace("/tmp/comfyui.pid", str(pid_file)))  # noqa: S108 - as in start.sh
    handler = folder / "handler.py"
    handler.write_text(handler.read_text().replace("/tmp/comfyui.pid", str(pid_file)))  # noqa: S108 - as in handler.py
    commands = folder / "bin"
    commands.mkdir()
    for name in ("python", "python3"):
        (commands / name).write_text(PYTHONS.format(handlers=sys.executable, comfyuis=options.python))
        (commands / name).chmod(0o755)
    (folder / "start.py").write_text(START_STOCK.format(script=str(script)))
    environment = {"PATH": f"{commands}:/usr/local/bin:/usr/bin:/bin"}
    with RunPodPlatform(round_trip_s=ROUND_TRIP_S) as platform:
        return _run_worker(checkout, platform, folder / "start.py", environment, {"workflow": _graph()})[0]


def _run_worker(
    checkout: Checkout, platform: RunPodPlatform, script: Path, environment: Mapping[str, str], job_input: object
) -> tuple[Times, str]:
    """Start a worker for which a job waits; return its times and its log once the job has ended."""
    job_id = platform.submit(job_input)
    begun_at = time.monotonic()
    with WorkerProcess(platform, script, env=environment) as worker:
        ready_at = checkout.await_ready()
        first_step_at = checkout.first_step_at()
        job = platform.wait_for(job_id, TIMEOUT_S)
        log = worker.log
    if job.started_at is None or job.ended_at is None or not job.output:
        sys.exit(f"scripts/bench: the job failed: {job.error or code_of(job)}\n{log}")
    return {
        "ComfyUI responds": ready_at - begun_at,
        "job taken": job.started_at - begun_at,
        "first step": first_step_at - begun_at,
        "result at RunPod": job.ended_at - begun_at,
    }, log
