"""Kills and stops of the shim, repeated calls, and cancellations: each job is sent to the endpoint at most once."""

from __future__ import annotations

import base64
import contextlib
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from bench.shim_process import KEY, SECRET, ShimProcess
from simulators.runpod.queue_api import QueueJobState, RunPodPlatform
from simulators.runpod.scripted_worker import Body, png
from simulators.waiting import until

pytestmark = pytest.mark.slow
AUTH = (KEY, SECRET)
PATH = "/generate/custom/model_bfl-flux-1-dev"
SMALL: Body = {"prompt": "a knight", "width": 64, "height": 64, "seed": 5}


def generate(shim: ShimProcess, headers: dict[str, str] | None = None, **changes: object) -> Any:  # noqa: ANN401 - JSON
    """Send a call that starts a job and must succeed; return the response's JSON."""
    response = requests.post(shim.base_url + PATH, json={**SMALL, **changes}, auth=AUTH, headers=headers, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def job(shim: ShimProcess, job_id: str) -> Any:  # noqa: ANN401 - JSON
    """Return a job's record from the shim."""
    return requests.get(f"{shim.base_url}/jobs/{job_id}", auth=AUTH, timeout=60).json()["job"]


def await_end(shim: ShimProcess, job_id: str) -> Any:  # noqa: ANN401 - JSON
    """Return a job's record when the job has ended."""
    assert until(lambda: job(shim, job_id)["status"] in {"success", "failure", "canceled"}, 60)
    return job(shim, job_id)


def test_twenty_jobs_survive_a_kill(shim: ShimProcess, platform: RunPodPlatform, released: threading.Event) -> None:
    """The shim is killed with 20 running jobs and started again: each job succeeds with its image, and is sent once."""
    with ThreadPoolExecutor(8) as pool:
        ids = [each["job"]["jobId"] for each in pool.map(lambda seed: generate(shim, seed=seed), range(20))]
    assert until(lambda: all("endpointJobId" in job(shim, job_id)["metadata"] for job_id in ids))
    shim.kill()
    released.set()
    shim.start()

    jobs = [await_end(shim, job_id) for job_id in ids]
    assert [each["status"] for each in jobs] == ["success"] * 20
    for seed, each in enumerate(jobs):
        [asset_id] = each["metadata"]["assetIds"]
        asset = requests.get(f"{shim.base_url}/assets/{asset_id}", auth=AUTH, timeout=60).json()["asset"]
        assert asset["metadata"]["seed"] == str(seed)
        assert requests.get(asset["url"], timeout=60).status_code == 200
    assert platform.submissions == 20


def test_a_kill_during_submits_makes_no_second_job(
    shim: ShimProcess, platform: RunPodPlatform, released: threading.Event
) -> None:
    """The shim is killed just after submits: each acknowledged job ends, and no job is sent twice.

    It ends with success, or with the error that it was not submitted again.
    """
    released.set()
    acknowledged: list[str] = []
    for round_ in range(4):
        with ThreadPoolExecutor(6) as pool:
            sent = [pool.submit(generate, shim, seed=100 * round_ + number) for number in range(6)]
            done = [each for each in sent if not each.exception()]
            shim.kill()
        acknowledged += [each.result()["job"]["jobId"] for each in done]
        shim.start()

    jobs = [await_end(shim, job_id) for job_id in acknowledged]
    failed_jobs = [each for each in jobs if each["status"] == "failure"]
    assert len(jobs) == 24
    for each in failed_jobs:
        assert "not submitted again" in each["metadata"]["error"]
    seeds = [sent.input["seed"] for sent in platform.jobs.values() if isinstance(sent.input, dict)]
    assert len(seeds) == len(set(seeds))
    assert len(seeds) >= len(jobs) - len(failed_jobs)


def test_a_running_job_survives_a_stop(shim: ShimProcess, platform: RunPodPlatform, released: threading.Event) -> None:
    """A stop ends the shim with status 0; the running job succeeds after the next start, and was sent once."""
    job_id = generate(shim)["job"]["jobId"]
    platform.wait_until(lambda: platform.submissions == 1)

    assert shim.stop() == 0
    released.set()
    shim.start()
    assert await_end(shim, job_id)["status"] == "success"
    assert platform.submissions == 1


def test_a_retry_of_the_sdk_is_the_same_job(
    shim: ShimProcess, platform: RunPodPlatform, released: threading.Event
) -> None:
    """A call with `x-stainless-retry-count` above 0 returns the job of the equal call before it, if there is one.

    With the count 0 an equal call is a new job.
    """
    released.set()
    first = generate(shim, {"x-stainless-retry-count": "0"})["job"]["jobId"]
    repeats = [generate(shim, {"x-stainless-retry-count": count})["job"]["jobId"] for count in ("1", "2")]
    another = generate(shim, {"x-stainless-retry-count": "0"})["job"]["jobId"]
    without_first_attempt = generate(shim, {"x-stainless-retry-count": "1"}, seed=6)["job"]["jobId"]

    assert repeats == [first, first]
    assert len({first, another, without_first_attempt}) == 3
    for job_id in (first, another, without_first_attempt):
        assert await_end(shim, job_id)["status"] == "success"
    assert platform.submissions == 3


def test_an_idempotency_key_is_one_job(shim: ShimProcess, platform: RunPodPlatform, released: threading.Event) -> None:
    """Six concurrent calls with the same Idempotency-Key are one job. Another call with that key gets 400."""
    released.set()
    headers = {"Idempotency-Key": "order-7"}
    with ThreadPoolExecutor(6) as pool:
        ids = {each["job"]["jobId"] for each in pool.map(lambda _: generate(shim, headers), range(6))}
    other = requests.post(shim.base_url + PATH, json={**SMALL, "seed": 9}, auth=AUTH, headers=headers, timeout=60)

    assert len(ids) == 1
    assert await_end(shim, ids.pop())["status"] == "success"
    assert platform.submissions == 1
    assert other.status_code == 400


def test_a_job_waits_for_a_busy_endpoint(
    shim: ShimProcess, platform: RunPodPlatform, released: threading.Event
) -> None:
    """A job is acknowledged while RunPod returns 429, and is sent once RunPod accepts jobs again."""
    released.set()
    platform.faults.outage(60, 429)
    job_id = generate(shim)["job"]["jobId"]
    assert job(shim, job_id)["status"] == "queued"
    platform.faults.clear()

    assert await_end(shim, job_id)["status"] == "success"
    assert platform.submissions == 1


def test_a_submit_whose_response_is_lost_is_not_repeated(
    shim: ShimProcess, platform: RunPodPlatform, released: threading.Event
) -> None:
    """If the connection is lost after the submit, the job fails with the error that it was not sent again."""
    released.set()
    platform.faults.drop_connection("run", after_handling=True)
    job_record = await_end(shim, generate(shim)["job"]["jobId"])

    assert job_record["status"] == "failure"
    assert "not sent again" in job_record["metadata"]["error"]
    assert job_record["metadata"]["errorCode"] == "network"
    assert platform.submissions == 1


def test_a_queued_job_is_cancelled_before_it_is_sent(shim: ShimProcess, platform: RunPodPlatform) -> None:
    """A job that is cancelled while RunPod returns 429 is `canceled`, and is never sent."""
    platform.faults.outage(60, 429)
    job_id = generate(shim)["job"]["jobId"]
    url = f"{shim.base_url}/jobs/{job_id}/action"
    requests.post(url, json={"action": "cancel"}, auth=AUTH, timeout=60)
    ended_as = await_end(shim, job_id)["status"]
    platform.faults.clear()

    assert ended_as == "canceled"
    assert shim.stop() == 0
    assert platform.submissions == 0


def test_a_cancellation_is_repeated_until_it_succeeds(shim: ShimProcess, platform: RunPodPlatform) -> None:
    """A cancellation during an outage of the endpoint is repeated until the job is cancelled there."""
    job_id = generate(shim)["job"]["jobId"]
    platform.wait_until(lambda: platform.submissions == 1)
    [endpoint_id] = platform.jobs
    platform.faults.outage(14, 502)
    requests.post(f"{shim.base_url}/jobs/{job_id}/action", json={"action": "cancel"}, auth=AUTH, timeout=60)

    assert platform.wait_for(endpoint_id, 60).state is QueueJobState.CANCELLED
    assert await_end(shim, job_id)["status"] == "canceled"


def test_an_input_image_is_deleted_after_its_job(shim: ShimProcess, released: threading.Event, tmp_path: Path) -> None:
    """An input image is deleted after its job, unless it is also an uploaded asset; generated images are kept."""
    data_uri = f"data:image/png;base64,{base64.b64encode(png(64, 9)).decode()}"
    upload = requests.post(
        f"{shim.base_url}/assets", json={"name": "a.png", "image": data_uri}, auth=AUTH, timeout=60
    ).json()["asset"]
    other = f"data:image/png;base64,{base64.b64encode(png(64, 10)).decode()}"
    jobs = [generate(shim, image=source)["job"]["jobId"] for source in (data_uri, other)]
    kept = len(stored_images(tmp_path))
    released.set()
    asset_ids = [await_end(shim, job_id)["metadata"]["assetIds"] for job_id in jobs]

    assert kept == 2
    assert all(asset_ids)
    assert until(lambda: len(stored_images(tmp_path)) == 2)  # the upload, and the one image that both jobs generated
    assert requests.get(upload["url"], timeout=60).content == png(64, 9)


def stored_images(directory: Path) -> list[Path]:
    """Return the paths of the images that the shim stores."""
    return [path for path in (directory / "shim" / "pictures").rglob("*") if path.is_file()]


def test_an_interrupted_upload_can_be_completed_after_a_restart(shim: ShimProcess, tmp_path: Path) -> None:
    """If the shim was killed while it joined the parts, the upload can be completed after the restart."""
    body = {"fileName": "a.png", "contentType": "image/png", "kind": "image", "parts": 1}
    upload = requests.post(f"{shim.base_url}/uploads", json=body, auth=AUTH, timeout=60).json()["upload"]
    requests.put(upload["parts"][0]["url"], data=png(64, 1), timeout=60)
    shim.kill()
    with contextlib.closing(sqlite3.connect(tmp_path / "shim" / "shim.sqlite3")) as kept, kept:
        kept.execute("UPDATE uploads SET state = 'validating'")
    shim.start()
    url = f"{shim.base_url}/uploads/{upload['id']}/action"
    done = requests.post(url, json={"action": "complete"}, auth=AUTH, timeout=60).json()["upload"]

    assert done["status"] == "imported"
