"""A full disk: calls get 507 with the remedy, and running jobs are stored when there is space again."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from bench.shim_process import KEY, SECRET, ShimProcess
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, incompressible_png, png
from simulators.waiting import until
from tests.needs import small_disk

pytestmark = pytest.mark.slow
AUTH = (KEY, SECRET)
SMALL: Body = {"prompt": "a knight", "width": 64, "height": 64}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    with small_disk(tmp_path / "small", "3m") as disk:
        yield disk


@pytest.fixture
def shim(platform: RunPodPlatform, disk: Path) -> Iterator[ShimProcess]:
    """A shim whose folder is on the small disk."""
    with ShimProcess(platform.client_env(), disk / "shim") as shim:
        yield shim


def call(shim: ShimProcess, path: str, body: object) -> requests.Response:
    """Send a call and return the response."""
    return requests.post(shim.base_url + path, json=body, auth=AUTH, timeout=60)


def generate(shim: ShimProcess, seed: int) -> requests.Response:
    """Send a call that starts a job; return the response."""
    return call(shim, "/generate/custom/model_bfl-flux-1-dev", {**SMALL, "seed": seed})


def job(shim: ShimProcess, job_id: str) -> Any:  # noqa: ANN401 - JSON
    """Return a job's record from the shim; the call must succeed."""
    response = requests.get(f"{shim.base_url}/jobs/{job_id}", auth=AUTH, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["job"]


def fill(disk: Path) -> Path:
    """Fill the disk with one file, and return that file."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65_536, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass
    return filler


def test_running_jobs_survive_a_full_disk(
    shim: ShimProcess, platform: RunPodPlatform, disk: Path, released: threading.Event
) -> None:
    """Running jobs succeed once there is space again, without a restart, and each was sent once.

    While the disk is full, calls that need space get 507 with the remedy, and no job fails.
    """
    ids = [generate(shim, seed).json()["job"]["jobId"] for seed in range(4)]
    assert until(lambda: platform.submissions == 4)
    upload = call(shim, "/uploads", {"fileName": "a.png", "parts": 1}).json()["upload"]
    filler = fill(disk)
    image = base64.b64encode(incompressible_png(500, 500)).decode()
    rejected = [
        generate(shim, 9),
        call(shim, "/generate/img2img", {**SMALL, "modelId": "flux.1-dev", "image": image}),
        call(shim, "/assets", {"name": "a.png", "image": image}),
        call(shim, "/uploads", {"fileName": "b.png"}),
        requests.put(upload["parts"][0]["url"], data=incompressible_png(500, 500), timeout=60),
    ]
    released.set()
    assert until(lambda: "could not be stored, will retry" in shim.log)
    jobs_during_full_disk = [job(shim, job_id) for job_id in ids]
    filler.unlink()

    assert until(lambda: all(job(shim, job_id)["status"] == "success" for job_id in ids), 60)
    for response in rejected:
        assert response.status_code == 507, response.text
        assert "free disk space" in response.json()["reason"]
        assert response.headers["x-should-retry"] == "false"
    for each in jobs_during_full_disk:
        assert each["status"] != "failure"
    for job_id in ids:
        done = job(shim, job_id)
        assert "error" not in done["metadata"]
        asset = requests.get(f"{shim.base_url}/assets/{done['metadata']['assetIds'][0]}", auth=AUTH, timeout=60)
        assert requests.get(asset.json()["asset"]["url"], timeout=60).status_code == 200
    assert platform.submissions == 4
    assert "a bug" not in shim.log
    assert call(shim, "/assets", {"name": "a.png", "image": base64.b64encode(png()).decode()}).status_code == 200


def test_a_job_that_was_not_sent_is_sent_once_there_is_space(
    shim: ShimProcess, platform: RunPodPlatform, disk: Path, released: threading.Event
) -> None:
    """A job that was acknowledged before the disk was full is sent once when there is space, and succeeds."""
    released.set()
    platform.faults.outage(60, 429)
    job_id = generate(shim, 1).json()["job"]["jobId"]
    filler = fill(disk)
    platform.faults.clear()
    assert until(lambda: "could not be stored, will retry" in shim.log)
    filler.unlink()

    assert until(lambda: job(shim, job_id)["status"] == "success", 60)
    assert platform.submissions == 1
    assert "error" not in job(shim, job_id)["metadata"]
