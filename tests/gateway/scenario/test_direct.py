"""The shim with a direct ComfyUI: kills, stops and cancellations lose no job, and a burst waits in the shim."""

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
    """A simulated ComfyUI that needs 40 ms for an image of this module."""
    with Simulator(step_s=0.01) as simulator:
        yield simulator


@pytest.fixture
def shim(simulator: Simulator, tmp_path: Path) -> Iterator[ShimProcess]:
    """A shim whose provider is that ComfyUI."""
    with ShimProcess({"COMFYUI_ENDPOINT": simulator.url}, tmp_path) as shim:
        yield shim


def generate(shim: ShimProcess, seed: int) -> str:
    """Send a call that starts a job and must succeed; return the job's id."""
    url = f"{shim.base_url}/generate/custom/model_bfl-flux-1-dev"
    response = requests.post(url, json={**SMALL, "seed": seed}, auth=AUTH, timeout=60)
    assert response.status_code == 200, response.text
    return str(response.json()["job"]["jobId"])


def jobs(shim: ShimProcess) -> list[Any]:
    """Return the records of all jobs, read page by page."""
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
    """The shim is killed six times at random moments: each acknowledged job succeeds, with one asset of its seed."""
    rng = random.Random(7)  # noqa: S311 - reproducible, not secret
    seeds: dict[str, int] = {}
    for round_ in range(6):
        for number in range(5):
            seed = 100 * round_ + number
            seeds[generate(shim, seed)] = seed
        begun_at, delay_s = time.monotonic(), rng.random() * 0.4
        assert until(lambda since=begun_at, after_s=delay_s: time.monotonic() > since + after_s)  # type: ignore[misc] # called in the same iteration
        shim.kill()
        shim.start()

    assert until(lambda: all(job["status"] in FINAL for job in jobs(shim)), 120)
    ended = {job["jobId"]: job for job in jobs(shim)}
    assert ended.keys() == seeds.keys()
    assert {job["status"] for job in ended.values()} == {"success"}
    assert {job["metadata"].get("error") for job in ended.values()} == {None}
    assets = requests.get(f"{shim.base_url}/assets?pageSize=100", auth=AUTH, timeout=60).json()["assets"]
    seeds_of_assets = {asset["metadata"]["inferenceId"]: asset["metadata"]["seed"] for asset in assets}
    assert len(assets) == len(seeds)
    assert seeds_of_assets == {job_id: str(seed) for job_id, seed in seeds.items()}


def test_a_stop_leaves_jobs_for_the_next_start(shim: ShimProcess) -> None:
    """A stop during jobs ends the shim with status 0; each job succeeds after the next start."""
    ids = {generate(shim, seed) for seed in range(8)}

    assert shim.stop() == 0
    shim.start()
    assert until(lambda: all(job["status"] in FINAL for job in jobs(shim)), 60)
    assert {job["jobId"] for job in jobs(shim)} == ids
    assert {job["status"] for job in jobs(shim)} == {"success"}


def test_a_cancellation_survives_a_kill(shim: ShimProcess, simulator: Simulator) -> None:
    """Jobs that were cancelled before a kill are still `canceled` after the restart."""
    simulator.faults.hang_sampling()
    ids = [generate(shim, seed) for seed in range(12)]
    cancelled_ids = set()
    for job_id in ids[:1:-1]:
        url = f"{shim.base_url}/jobs/{job_id}/action"
        response = requests.post(url, json={"action": "cancel"}, auth=AUTH, timeout=60)
        assert response.status_code == 200
        if response.json()["job"]["status"] == "canceled":
            cancelled_ids.add(job_id)
    shim.kill()
    simulator.faults.release()
    shim.start()

    assert until(lambda: all(job["status"] in FINAL for job in jobs(shim)), 60)
    statuses = {job["jobId"]: job["status"] for job in jobs(shim)}
    assert cancelled_ids
    assert {statuses[job_id] for job_id in cancelled_ids} == {"canceled"}


def test_a_burst_of_jobs_waits_in_the_shim(shim: ShimProcess) -> None:
    """400 jobs at once are all acknowledged and succeed; the health never counts more than 8 at ComfyUI."""
    max_at_comfyui = 0
    with ThreadPoolExecutor(32) as pool:
        ids = set(pool.map(lambda seed: generate(shim, seed), range(400)))

        def are_ended() -> bool:
            nonlocal max_at_comfyui
            health = requests.get(f"{shim.base_url}/shim/overview", auth=AUTH, timeout=60).json()["health"]
            max_at_comfyui = max(
                max_at_comfyui, *(int(word) for word in health["sentence"].split() if word.isdigit()), 0
            )
            return all(job["status"] in FINAL for job in jobs(shim))

        assert until(are_ended, 240)
    assert len(ids) == 400
    assert {job["status"] for job in jobs(shim)} == {"success"}
    assert max_at_comfyui <= 8
    cost = requests.get(f"{shim.base_url}/shim/overview", auth=AUTH, timeout=60).json()["cost"]
    assert (cost["jobs"], cost["usd"]) == (400, None)  # a ComfyUI that is called directly costs nothing that is known
