"""Measures the time from `docker run` to the first image, by step."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from datetime import datetime

import docker
from docker.models.networks import Network

from bench.container import WorkerContainer, worker_container
from bench.docker_engine import connect
from bench.worker_setup import code_of

BOOT_TIMEOUT_S = 300


def boot_image(options: argparse.Namespace) -> None:
    """Print the median of each step from `docker run` to the first result at the platform."""
    engine = connect()
    if engine is None:
        sys.exit("scripts/bench: no Docker engine responds. Start one with ./scripts/engine start")
    network = engine.networks.create("comfy-client-bench", internal=True)
    network.reload()
    try:
        runs = [_boot_once(engine, network, options) for _ in range(options.runs)]
    finally:
        network.remove()
    print(f"{options.image}, {options.runs} new containers; seconds since `docker run`, median (min to max)")
    for name in runs[0]:
        values = [run[name] for run in runs]
        print(f"  {name:40} {statistics.median(values):8.2f}   ({min(values):.2f} to {max(values):.2f})")


def _boot_once(engine: docker.DockerClient, network: Network, options: argparse.Namespace) -> dict[str, float]:
    begun_at = time.time()
    environment = {"COMFYUI_ARGS": options.comfyui_args}
    volumes = [f"{options.models}:/opt/models:ro"] if options.models else []
    with worker_container(
        engine, network, options.image, environment=environment, volumes=volumes, timeout_s=BOOT_TIMEOUT_S
    ) as worker:
        ready_at = time.time()
        job = worker.run()
        done_at = time.time()
        if code := code_of(job):
            sys.exit(f"scripts/bench: the first job failed: {code}")
        started_at = datetime.fromisoformat(worker.state()["StartedAt"][:26] + "+00:00").timestamp()
        steps = {"container started": started_at - begun_at}
        steps |= {
            name.replace("_", " "): started_at - begun_at + seconds for name, seconds in _boot_steps(worker).items()
        }
        return {**steps, "ready for jobs": ready_at - begun_at, "first job done (64 x 64, 4 steps)": done_at - begun_at}


def _boot_steps(worker: WorkerContainer) -> dict[str, float]:
    """Return the boot times that the worker logged: the end of each step, in seconds since the worker started."""
    for line in worker.log().splitlines():
        if '"booted"' in line:
            steps: dict[str, float] = json.loads(line)["boot_s"]
            return steps
    sys.exit(f"scripts/bench: the worker logged no boot times:\n{worker.log()}")
