"""The shim with a direct ComfyUI: kills lose no job, and a burst of jobs is queued in the shim."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from bench.shim_process import KEY, SECRET, ShimProcess
from simulators.comfyui import Simulator
from simulators.waiting import until

pytestmark = pytest.mark.slow
AUTH = (KEY, SECRET)
SMALL = {"prompt": "a knight", "width": 64, "height": 64, "numInferenceSteps": 4}
FINAL = {"success", "failure", "canceled"}


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """A ComfyUI that takes 40 ms per image."""
    with Simulator(step_s=0.01) as simulator:
        yield simulator


@pytest.fixture
def shim(simulator: Simulator, tmp_path: Path) -> Iterator[ShimProcess]:
    """A shim with that ComfyUI."""
    with ShimProcess({"COMFYUI_ENDPOINT": simulator.url}, tmp_path) as shim:
        yield shim


def generate(shim: ShimProcess, seed: int) -> str:
    """Start a job; return its id."""
    url = f"{shim.base_url}/generate/custom/model_bfl-flux-1-dev"
    answer = requests.post(url, json={**SMALL, "seed": seed}, auth=AUTH, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["job"]["jobId"])


def jobs(shim: ShimProcess) -> list[Any]:
    """Return all jobs."""
    found: list[Any] = []
    token = ""
    while True:
        url = f"{shim.base_url}/jobs?pageSize=100&paginationToken={token}"
        page = requests.get(url, auth=AUTH, timeout=60).json()
        found += page["jobs"]
        token = page.get("nextPaginationToken", "")
        if not token:
            return found


def test_kills_lose_no_job(shim: ShimProcess) -> None:
    """Killed six times at random moments: each acknowledged job ends once, with its seed's image."""
    chance = random.Random(7)  # noqa: S311 - reproducible, not secret
    seeds: dict[str, int] = {}
    for round_ in range(6):
        for number in range(5):
            seed = 100 * round_ + number
            seeds[generate(shim, seed)] = seed
        begun_at, wanted_s = time.monotonic(), chance.random() * 0.4
        assert until(lambda since=begun_at, after_s=wanted_s: time.monotonic() > since + after_s)  # type: ignore[misc] # called in the same iteration
        shim.kill()
        shim.start()

    assert until(lambda: all(job["status"] in FINAL for job in jobs(shim)), 120)
    ended = {job["jobId"]: job for job in jobs(shim)}
    assert ended.keys() == seeds.keys()
    assert {job["status"] for job in ended.values()} == {"success"}
    assert {job["metadata"].get("error") for job in ended.values()} == {None}
    assets = requests.get(f"{shim.base_url}/assets?pageSize=100", auth=AUTH, timeout=60).json()["assets"]
    made = {asset["metadata"]["inferenceId"]: asset["metadata"]["seed"] for asset in assets}
    assert len(assets) == len(seeds)
    assert made == {job_id: str(seed) for job_id, seed in seeds.items()}


def test_a_stop_leaves_jobs_for_the_next_start(shim: ShimProcess) -> None:
    """SIGTERM during jobs: status 0, and each job succeeds after the next start."""
    ids = {generate(shim, seed) for seed in range(8)}

    assert shim.stop() == 0
    shim.start()
    assert until(lambda: all(job["status"] in FINAL for job in jobs(shim)), 60)
    assert {job["jobId"] for job in jobs(shim)} == ids
    assert {job["status"] for job in jobs(shim)} == {"success"}


def test_a_cancellation_survives_a_kill(shim: ShimProcess, simulator: Simulator) -> None:
    """A job that was cancelled while it was queued is not run after a restart."""
    simulator.faults.hang_sampling()
    ids = [generate(shim, seed) for seed in range(12)]
    cancelled = set()
    for job_id in ids[:1:-1]:
        url = f"{shim.base_url}/jobs/{job_id}/action"
        response = requests.post(url, json={"action": "cancel"}, auth=AUTH, timeout=30)
        assert response.status_code == 200
        if response.json()["job"]["status"] == "canceled":
            cancelled.add(job_id)
    shim.kill()
    simulator.faults.release()
    shim.start()

    assert until(lambda: all(job["status"] in FINAL for job in jobs(shim)), 60)
    statuses = {job["jobId"]: job["status"] for job in jobs(shim)}
    assert cancelled
    assert {statuses[job_id] for job_id in cancelled} == {"canceled"}


def test_a_burst_of_jobs_waits_in_the_shim(shim: ShimProcess) -> None:
    """400 at once: all are acknowledged and succeed, and ComfyUI has only a few at a time."""
    longest = 0
    with ThreadPoolExecutor(32) as pool:
        ids = set(pool.map(lambda seed: generate(shim, seed), range(400)))

        def are_ended() -> bool:
            nonlocal longest
            health = requests.get(f"{shim.base_url}/shim/overview", auth=AUTH, timeout=60).json()["health"]
            longest = max(longest, *(int(word) for word in health["sentence"].split() if word.isdigit()), 0)
            return all(job["status"] in FINAL for job in jobs(shim))

        assert until(are_ended, 240)
    assert len(ids) == 400
    assert {job["status"] for job in jobs(shim)} == {"success"}
    assert longest <= 8
