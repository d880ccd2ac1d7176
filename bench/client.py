"""Measures the client's cost to an application: import time, and time and memory of many jobs through `map`."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_entry, incompressible_png

ROOT = Path(__file__).parent.parent
IMPORT_RUNS = 20
IMPORT_PROGRAM = "import time; t = time.perf_counter(); import comfy_client; print(time.perf_counter() - t)"
IMAGE_SIDE = 512
MAP_WORKERS = 4
MAP_PROGRAM = """\
import json, sys, time
import psutil
from comfy_client.client import client_from_env

count, concurrency = map(int, sys.argv[1:])
process = psutil.Process()
with client_from_env() as client:
    client.health()
    before, begun, rss, seeds = process.memory_info().rss, time.monotonic(), [], []
    for outcome in client.map(({"prompt": "x", "seed": seed} for seed in range(count)), concurrency):
        seeds.append(outcome.unwrap().seed)
        rss.append(process.memory_info().rss)
    assert seeds == list(range(count)), seeds
    print(json.dumps({"seconds": time.monotonic() - begun, "before": before, "rss": rss}))
"""
"""An application that calls `Client.map`. It runs in its own process, so that only its memory is measured."""
_MIB = 1024 * 1024


def import_time(_: argparse.Namespace) -> None:
    """Print how long `import comfy_client` takes in a new process."""
    times = [1000 * float(_run_program(IMPORT_PROGRAM)) for _ in range(IMPORT_RUNS)]
    low, middle, high = statistics.quantiles(times, n=4)
    print(
        f"import comfy_client, median of {IMPORT_RUNS} processes (quartiles): {middle:.1f} ms ({low:.1f} to {high:.1f})"
    )


def map_jobs(options: argparse.Namespace) -> None:
    """Print the time and memory of many jobs through `Client.map`, with images of about 1 MB each."""
    image = image_entry(incompressible_png(IMAGE_SIDE, IMAGE_SIDE))

    def respond(job: Body) -> Body:
        seed = job["input"]["seed"]
        return {"output": {"images": [{**image, "seed": seed}], "seed": seed}}

    with RunPodPlatform(long_poll_s=1.0) as platform, ScriptedWorker(platform, respond, threads=MAP_WORKERS):
        begun = time.monotonic()
        result = json.loads(
            _run_program(MAP_PROGRAM, str(options.jobs), str(options.concurrency), **platform.client_env())
        )
        whole_s = time.monotonic() - begun
        submissions = platform.submissions
    rss_mib = [rss / _MIB for rss in result["rss"]]
    quarter = len(rss_mib) // 4
    print(
        f"{options.jobs} jobs at concurrency {options.concurrency}, images of {image['bytes']:,} bytes: "
        f"{result['seconds']:.1f} s ({whole_s:.1f} s with the process's start), {submissions} submitted, all in order"
    )
    print(f"  memory before, MiB                       {result['before'] / _MIB:8.1f}")
    for number in range(4):
        print(
            f"  maximum in quarter {number + 1}, MiB                {max(rss_mib[number * quarter :][:quarter]):8.1f}"
        )
    print(f"  memory after the last, MiB               {rss_mib[-1]:8.1f}")


def _run_program(program: str, *arguments: str, **environment: str) -> str:
    completed = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return completed.stdout
