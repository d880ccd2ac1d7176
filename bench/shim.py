"""Load test of the Scenario shim with concurrent callers. Counts lost and repeated jobs, and measures HTTP calls."""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp

from bench.shim_process import KEY, SECRET, ShimProcess
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import ScriptedWorker, image_result

CALLER_POLL_S = (2.0, 3.0)
"""Seconds between two polls. Scenario recommends 2 to 3 s (docs/reference/scenario.md#polling)."""
SHIM_WORKERS = 8


def shim(options: argparse.Namespace) -> None:
    """Print the outcomes of the jobs, and how long the callers' HTTP calls took."""
    parent_end, child_end = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_run_endpoint, args=(child_end,), daemon=True)
    process.start()
    environment: Mapping[str, str] = parent_end.recv()
    with tempfile.TemporaryDirectory() as folder, ShimProcess(environment, Path(folder)) as server:
        times: dict[str, list[float]] = {"POST /generate": [], "GET /jobs/{id}": [], "GET /assets/{id}": []}
        begun_at = time.monotonic()
        outcomes = asyncio.run(_run_callers(server.base_url, options.callers, options.jobs, times))
        duration_s = time.monotonic() - begun_at
    parent_end.send(None)
    submissions = parent_end.recv()
    process.join()
    seeds = [seed for status, seed in outcomes if status == "success"]
    print(f"{options.callers} callers, {options.jobs} jobs, {duration_s:.1f} s")
    print(f"succeeded {len(seeds)}, failed {len(outcomes) - len(seeds)}, lost {options.jobs - len(outcomes)}")
    print(f"results with a wrong or repeated seed {len(seeds) - len(set(seeds))}, jobs at the endpoint {submissions}")
    print(f"{'ms':20}{'calls':>8}{'p50':>10}{'p95':>10}{'max':>10}")
    for name, seconds in times.items():
        cuts = statistics.quantiles([1000 * duration for duration in seconds], n=100)
        print(f"{name:20}{len(seconds):8}{cuts[49]:10.1f}{cuts[94]:10.1f}{1000 * max(seconds):10.1f}")


def _run_endpoint(pipe: Connection) -> None:
    """Run an endpoint whose workers respond at once. On a message of the parent process, send the job count and end."""
    with RunPodPlatform(long_poll_s=2.0) as platform, ScriptedWorker(platform, image_result, threads=SHIM_WORKERS):
        pipe.send(platform.client_env())
        pipe.recv()
        pipe.send(platform.submissions)


async def _run_callers(base_url: str, callers: int, jobs: int, times: dict[str, list[float]]) -> list[tuple[str, str]]:
    """Run all jobs, add the duration of each HTTP call to `times`, and return each job's status and seed."""
    connector = aiohttp.TCPConnector(limit=callers)
    auth = aiohttp.BasicAuth(KEY, SECRET)
    async with aiohttp.ClientSession(auth=auth, connector=connector) as session:

        async def call(name: str, method: str, path: str, **body: object) -> Any:  # noqa: ANN401 - JSON
            begun_at = time.monotonic()
            async with session.request(method, base_url + path, json=body or None) as response:
                response.raise_for_status()
                content = await response.json()
            times[name].append(time.monotonic() - begun_at)
            return content

        async def caller(number: int) -> list[tuple[str, str]]:
            job_outcomes = []
            for seed in range(number, jobs, callers):
                path = "/generate/custom/model_bfl-flux-1-dev"
                job = (await call("POST /generate", "POST", path, prompt="a knight", seed=seed))["job"]
                while job["status"] not in ("success", "failure", "canceled"):
                    await asyncio.sleep(random.uniform(*CALLER_POLL_S))  # noqa: S311 - no secret
                    job = (await call("GET /jobs/{id}", "GET", f"/jobs/{job['jobId']}"))["job"]
                asset_ids = job["metadata"]["assetIds"]
                assets = [(await call("GET /assets/{id}", "GET", f"/assets/{each}"))["asset"] for each in asset_ids]
                job_outcomes.append((job["status"], assets[0]["metadata"]["seed"] if assets else ""))
            return job_outcomes

        return [each for outcomes in await asyncio.gather(*map(caller, range(callers))) for each in outcomes]
