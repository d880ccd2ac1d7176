"""Benchmarks of this project's code. Compare only figures that one machine measured."""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from bench.batch_kills import batch_kills
from bench.boot import boot
from bench.boot_image import boot_image
from bench.client import import_time, map_jobs
from bench.fleet import fleet
from bench.gpu import command as gpu
from bench.models import models
from bench.overhead import add_options
from bench.shim import shim
from bench.worker_setup import code_of, running_worker
from comfy_core.comfyui.events import AttributedEvent, Finished, PixelImage, Started
from comfy_core.comfyui.graph_rewrite import PIXEL_SAVER, rewrite_graph
from comfy_core.comfyui.server import ComfyServer
from comfy_core.graphs import Graph
from comfy_core.request.reading import read_request
from comfy_core.workflows import default_directory, load_workflows
from simulators.comfyui import Simulator
from simulators.runpod.queue_api import QueueJob, RunPodPlatform
from worker.jobs import Control, Worker, run_job
from worker.settings import Settings

OVERHEAD_RUNS = 20
ROUND_TRIP_S = 0.06
GAP_STEPS = 20


def overhead(_: argparse.Namespace) -> None:
    """Print the time of a job with one 1024 x 1024 PNG: by part, in all, and in all without ComfyUI's own execution."""
    workflows = load_workflows(default_directory())
    with Simulator() as simulator:
        server = ComfyServer(simulator.url)
        worker = Worker(server, workflows, Settings(job_timeout_s=60))
        parts: dict[str, list[float]] = {}

        def add(name: str, seconds: float) -> None:
            parts.setdefault(name, []).append(seconds * 1000)

        for seed in range(OVERHEAD_RUNS + 1):
            request = {"prompt": "a pixel art knight", "seed": seed, "steps": 1}
            begun = time.monotonic()
            [graph] = read_request(request, workflows).render(lambda: 0).graphs
            validate_s = time.monotonic() - begun
            comfyui_s = _comfyui_only_s(server, graph)
            begun = time.monotonic()
            job = {"id": "bench", "input": {**request, "seed": seed + 1000}}
            timings = run_job(worker, job, Control())["timings"]
            total_s = time.monotonic() - begun
            if seed == 0:
                continue  # the first run sets up connections and caches
            add("ComfyUI alone: started to last frame", comfyui_s)
            add("validate and render", validate_s)
            add("queue: post to started", timings["queue_s"])
            add("wait: last frame to known outcome", timings["execute_s"] - comfyui_s)
            add("fetch: wait for the encoded PNG", timings["fetch_s"])
            add("encode: text, base64, sha256", timings["encode_s"])
            add("whole job", total_s)
            add("whole job without ComfyUI's execution", total_s - comfyui_s)
        server.close()
    print(f"1024 x 1024 PNG on the simulator, median of {OVERHEAD_RUNS} (quartiles), ms")
    for name, values in parts.items():
        print(f"  {name:40} {_quartiles(values)}")


def _comfyui_only_s(server: ComfyServer, graph: Graph) -> float:
    """Return the seconds from the start to the end of a prompt, by the frames, measured without `run_graphs`."""
    prompt_id = str(uuid.uuid4())
    prompt = rewrite_graph(graph, "bench", saver=PIXEL_SAVER)
    with server.listen([prompt_id]) as notices:
        server.queue_prompt(prompt, prompt_id)
        times: dict[type, float] = {}
        while Finished not in times:
            match notices.get(timeout=10):
                case AttributedEvent(event=event):
                    times.setdefault(type(event), time.monotonic())
    server.cleanup.remove_prompts([prompt_id])
    if PixelImage not in times:
        sys.exit("scripts/bench: ComfyUI sent no image")
    return times[Finished] - times[Started]


def gap(options: argparse.Namespace) -> None:
    """Print how long ComfyUI idles between the jobs of a backlog, in production mode."""
    if options.jobs < 3:
        sys.exit("scripts/bench: gap needs --jobs 3 or more")
    print(
        f"{options.jobs} jobs waiting, 1024 x 1024 PNG, {GAP_STEPS} steps of {options.step_s:g} s, round trips of "
        f"{ROUND_TRIP_S * 1000:.0f} ms; median (quartiles), ms"
    )
    for concurrency in (2, 1):
        print(f"WORKER_CONCURRENCY={concurrency}", flush=True)
        for name, text in _backlog(options.jobs, options.step_s, concurrency):
            print(f"  {name:40} {text}")


def _backlog(count: int, step_s: float, concurrency: int) -> Iterable[tuple[str, str]]:
    """Run a backlog on a new worker; yield the name and the formatted value of each measurement."""
    platform = RunPodPlatform(round_trip_s=ROUND_TRIP_S)
    environment = {"WORKER_CONCURRENCY": str(concurrency)}
    with running_worker(step_s=step_s, platform=platform, environment=environment) as setup:
        ids = [platform.submit({"prompt": "a knight", "seed": seed, "steps": GAP_STEPS}) for seed in range(count)]
        jobs = [platform.wait_for(job_id, 60 + count * (GAP_STEPS * step_s + 5)) for job_id in ids]
        if failed := [job.error for job in jobs if code_of(job)]:
            sys.exit(f"scripts/bench: {len(failed)} jobs failed: {failed[0]}")
        assert setup.simulator is not None
        runs = setup.simulator.executions
    pauses = [later.started_at - earlier.ended_at for earlier, later in itertools.pairwise(runs)]
    running = [run.ended_at - run.started_at for run in runs]
    result_times = {job.output["prompt_ids"][0]: _ended_at(job) for job in jobs}
    yield "ComfyUI idle between two jobs", _quartiles([1000 * pause for pause in pauses])
    yield "ComfyUI running, a job", _quartiles([1000 * seconds for seconds in running])
    yield (
        "end in ComfyUI to result at RunPod",
        _quartiles([1000 * (result_times[run.prompt_id] - run.ended_at) for run in runs]),
    )
    starts = itertools.pairwise([run.started_at for run in runs])
    yield (
        "start of a job to start of the next",
        _quartiles([1000 * (later - earlier) for earlier, later in starts]),
    )
    busy_s = sum(running)
    yield (
        "utilisation",
        f"{busy_s / (busy_s + sum(pauses)):12.4f}   (jobs an hour: {_jobs_per_hour(runs[0].started_at, jobs)})",
    )


def _ended_at(job: QueueJob) -> float:
    if job.ended_at is None:
        raise ValueError(f"{job} has not ended")
    return job.ended_at


def _jobs_per_hour(begun_at: float, jobs: list[QueueJob]) -> int:
    return int(3600 * len(jobs) / (max(map(_ended_at, jobs)) - begun_at))


def _quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:8.2f}   ({low:.2f} to {high:.2f})"


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    benchmarks = parser.add_subparsers(required=True, metavar="BENCHMARK")
    parts = benchmarks.add_parser("overhead", help="how long a job takes besides ComfyUI's own execution, by part")
    add_options(parts, on_simulator=overhead)
    backlog = benchmarks.add_parser("gap", help="how long ComfyUI idles between two jobs of a backlog")
    backlog.add_argument("--jobs", type=int, default=12, help="jobs of each backlog; %(default)s")
    backlog.add_argument("--step-s", type=float, default=0.15, help="seconds of each of 20 steps; %(default)s")
    backlog.set_defaults(run=gap)
    several = benchmarks.add_parser(
        "fleet", help="how long callers wait at several workers, compared with an ideal queue"
    )
    several.add_argument("--jobs", type=int, default=100, help="number of jobs; %(default)s")
    several.add_argument("--step-s", type=float, default=0.15, help="seconds of a step; %(default)s")
    several.add_argument("--seed", type=int, default=1, help="random seed of the arrivals; %(default)s")
    several.add_argument(
        "--model", action="store_true", help="compute the waits without any overhead; start no workers"
    )
    several.set_defaults(run=fleet)
    download = benchmarks.add_parser(
        "models", help="how fast a model is downloaded and verified, compared with cp and sha256sum"
    )
    download.set_defaults(run=models)
    start = benchmarks.add_parser(
        "boot", help="how long workers take from their start to the first sampling step of a waiting job, by step"
    )
    start.add_argument("comfyui", type=Path, help="a checkout of ComfyUI with the models of models.txt")
    start.add_argument("--python", default=sys.executable, help="a Python with ComfyUI's packages; %(default)s")
    start.add_argument("--stock", type=Path, help="a checkout of runpod-workers/worker-comfyui to compare with")
    start.add_argument("--rounds", type=int, default=3, help="starts of each worker; %(default)s")
    start.add_argument("--comfyui-args", default="--cpu", help="further launch flags of ComfyUI; %(default)s")
    start.add_argument("--json", type=Path, help="a file for the times of every start")
    start.set_defaults(run=boot)
    container = benchmarks.add_parser("boot-image", help="how long a container takes until its first image, by step")
    container.add_argument(
        "--image", default="comfy-client/worker:test-flux1-dev-fp8", help="image; %(default)s, which the tests build"
    )
    container.add_argument("--runs", type=int, default=5, help="number of containers; %(default)s")
    container.add_argument("--comfyui-args", default="", help="further launch flags of ComfyUI, such as --cpu")
    container.add_argument("--models", help="a folder that replaces the image's models")
    container.set_defaults(run=boot_image)
    gpu.add_arguments(
        benchmarks.add_parser("gpu", help="how fast a GPU is with each launch flag", description=gpu.DESCRIPTION)
    )
    loading = benchmarks.add_parser("import", help="how long `import comfy_client` takes")
    loading.set_defaults(run=import_time)
    mapped = benchmarks.add_parser("map", help="time and memory of many jobs through Client.map")
    mapped.add_argument("--jobs", type=int, default=200, help="number of jobs; %(default)s")
    mapped.add_argument("--concurrency", type=int, default=16, help="concurrent jobs; %(default)s")
    mapped.set_defaults(run=map_jobs)
    kills = benchmarks.add_parser(
        "batch-kills", help="a batch that is killed at random moments: how many images are paid for twice"
    )
    kills.add_argument("--minutes", type=float, default=10, help="duration of the batch; %(default)s")
    kills.add_argument("--kills", type=int, default=5, help="number of kills at random moments; %(default)s")
    kills.add_argument("--job-s", type=float, default=3, help="seconds of a job; %(default)s")
    kills.add_argument("--seed", type=int, default=1, help="random seed of the moments; %(default)s")
    kills.set_defaults(run=batch_kills)
    load = benchmarks.add_parser("shim", help="the Scenario shim under load: lost jobs, and how long a poll takes")
    load.add_argument("--callers", type=int, default=100, help="concurrent callers; %(default)s")
    load.add_argument("--jobs", type=int, default=500, help="total number of jobs; %(default)s")
    load.set_defaults(run=shim)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
