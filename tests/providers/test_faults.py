"""Faults between a client and RunPod over real sockets: what the caller gets, and that no job is sent twice."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Literal

import psutil
import pytest

from bench.worker_setup import running_worker
from comfy_client.aio import async_client_from_env
from comfy_client.client import Client, client_from_env
from comfy_client.job import Done, ProviderUnavailable, Waiting
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, RequestError, WaitTimeout
from comfy_core.object_store import ObjectStore
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_entry, image_result, incompressible_png, png
from simulators.waiting import until
from tests.fakes.closed_port import ClosedPort
from tests.fakes.s3 import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 2}


def test_a_cold_start_ends_in_an_image(platform: RunPodPlatform) -> None:
    """The observer gets one event that a worker starts, then the image is returned. One job was sent."""
    reasons: list[str] = []

    def end_cold_start(event: object) -> None:
        if isinstance(event, Waiting):
            reasons.append(event.why)
            platform.faults.clear()

    with ScriptedWorker(platform, image_result), client_from_env(platform.client_env()) as client:
        platform.faults.cold_start(60)
        result = client.txt2img("a knight", observer=end_cold_start)

    assert result.images
    assert result.delay_s is not None
    assert result.delay_s > 1
    assert reasons == ["cold"]
    assert platform.submissions == 1


def test_throttled_workers_end_in_a_wait_timeout(platform: RunPodPlatform, client: Client) -> None:
    """If no GPU is free, the error of the wait names the cause, and the job can be waited for again."""
    platform.faults.throttle_workers()
    with ScriptedWorker(platform, image_result):
        with pytest.raises(WaitTimeout, match="no free GPU of the allowed types") as info:
            client.txt2img("a knight", wait_timeout_s=1.0)
        platform.faults.clear()
        result = client.job(info.value.job_id).wait()

    assert info.value.report.details["why"] == "throttled"
    assert result.images
    assert platform.submissions == 1


def test_502_responses_are_tolerated(platform: RunPodPlatform) -> None:
    """After 502 responses polling continues, and the job is not sent again."""
    with client_from_env(platform.client_env(), timeout_s=60.0) as client:
        job = client.submit(prompt="a knight")
        platform.faults.outage(60)
        events = job.events()
        for _ in range(2):
            assert any(isinstance(event, ProviderUnavailable) for event in events)
        platform.faults.clear()
        with ScriptedWorker(platform, image_result):
            assert isinstance(list(events)[-1], Done)

    assert platform.submissions == 1


def test_an_outage_longer_than_the_wait_is_a_wait_timeout(platform: RunPodPlatform, client: Client) -> None:
    """A wait timeout during an outage raises WaitTimeout with the status of the last response and the job's id."""
    job = client.submit(prompt="a knight")
    platform.faults.outage(60)
    with pytest.raises(WaitTimeout, match="502") as info:
        job.wait(1.0)

    assert info.value.job_id == job.id
    assert platform.submissions == 1


@pytest.mark.parametrize("route", ["run", "runsync"])
@pytest.mark.parametrize("was_handled", [True, False])
def test_a_submit_whose_connection_is_lost_is_not_repeated(
    platform: RunPodPlatform, route: Literal["run", "runsync"], was_handled: bool
) -> None:
    """A submit without a response is not repeated, whether it arrived or not; the error says that the job may run."""
    platform.faults.drop_connection(route, after_handling=was_handled)
    with (
        client_from_env(platform.client_env(), sync_wait_s=1.0) as client,
        pytest.raises(RequestError, match="not sent again") as info,
    ):
        client.submit(prompt="a knight") if route == "run" else client.txt2img("a knight")

    assert info.value.report.details["may_run"] is True
    assert info.value.code is ErrorCode.NETWORK
    assert platform.submissions == (1 if was_handled else 0)


@pytest.mark.parametrize("status", [500, 502, 503, 520, 524])
def test_a_submit_with_a_5xx_response_is_not_repeated(platform: RunPodPlatform, client: Client, status: int) -> None:
    """A 5xx response does not show whether the job was accepted, so the error says that it may run."""
    platform.faults.respond("run", status, times=1)
    with pytest.raises(RequestError) as info:
        client.submit(prompt="a knight")

    assert info.value.report.details["may_run"] is True
    assert platform.submissions == 0


def test_a_refused_connection_is_retried_until_the_platform_listens(platform: RunPodPlatform) -> None:
    """With a refused connection nothing was sent, so the submit is repeated. There is one job."""
    with ClosedPort(platform.base_url) as closed_port, ScriptedWorker(platform, image_result):
        environment = {**platform.client_env(), "RUNPOD_ENDPOINT_BASE_URL": closed_port.url}
        open_timer = threading.Timer(1.0, closed_port.open)
        open_timer.start()
        with client_from_env(environment) as client:
            assert client.txt2img("a knight").images
        open_timer.join()

    assert platform.submissions == 1


def test_a_submit_to_a_closed_port_fails_without_a_job(platform: RunPodPlatform) -> None:
    """If the port stays closed, the error says that no job runs."""
    with ClosedPort(platform.base_url) as closed_port:
        environment = {**platform.client_env(), "RUNPOD_ENDPOINT_BASE_URL": closed_port.url}
        with client_from_env(environment) as client, pytest.raises(RequestError, match="did not respond") as info:
            client.submit(prompt="a knight")

    assert info.value.report.details["may_run"] is False
    assert info.value.status is None
    assert platform.submissions == 0


def test_a_missing_output_is_result_lost(platform: RunPodPlatform, client: Client) -> None:
    """COMPLETED without output raises result_lost with the job's id, for /runsync and for /run."""
    platform.faults.lose_result(2)
    with ScriptedWorker(platform, image_result):
        for call in (client.txt2img, lambda prompt: client.submit(prompt=prompt).wait()):
            with pytest.raises(JobError) as info:
                call("a knight")
            assert info.value.code is ErrorCode.RESULT_LOST
            assert info.value.job_id in platform.jobs

    assert platform.submissions == 2


def test_a_result_in_a_bucket_is_downloaded_and_verified() -> None:
    """An image is downloaded from the bucket. A changed or deleted file raises result_lost without the signature."""
    with S3Server() as s3:
        variables = {
            "BUCKET_ENDPOINT_URL": s3.url,
            "BUCKET_NAME": "pictures",
            "BUCKET_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "BUCKET_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        }
        with running_worker(environment=variables) as setup, client_from_env(setup.platform.client_env()) as client:
            inline = client.txt2img("a knight", seed=1, **SMALL)
            stored = client.txt2img("a knight", seed=1, delivery="s3", **SMALL)
            assert stored.image.bytes == inline.image.bytes
            job = client.submit(prompt="a knight", delivery="s3", **SMALL)
            setup.platform.wait_for(job.id)
            [key] = [name for name in s3.stored() if name.startswith(job.id)]
            bucket = s3.bucket()
            ObjectStore(bucket).put(key, png(), "image/png")
            with pytest.raises(JobError, match="SHA-256") as changed:
                job.wait()
            ObjectStore(bucket).delete(key)
            with pytest.raises(JobError, match="no longer in its bucket") as deleted:
                job.wait()
            assert setup.platform.submissions == 3

    for info in (changed, deleted):
        assert info.value.code is ErrorCode.RESULT_LOST
        assert "Signature" not in str(info.value)


def test_an_unreachable_bucket_is_not_a_lost_result(platform: RunPodPlatform, client: Client) -> None:
    """An unreachable bucket raises RequestError instead of result_lost, without the signature; one job is sent."""
    data = png()
    with ClosedPort("http://127.0.0.1:1") as closed_port:
        stored = image_entry(data) | {"type": "s3_url", "data": f"{closed_port.url}/x.png?X-Amz-Signature=abc"}
        with ScriptedWorker(platform, lambda _: {"output": {"images": [stored]}}):
            job = client.submit(prompt="a knight")
            with pytest.raises(RequestError, match="bucket") as info:
                job.wait()

    assert "abc" not in str(info.value)
    assert platform.submissions == 1


def test_two_hundred_jobs_and_constant_memory(platform: RunPodPlatform) -> None:
    """200 jobs of about 1 MB, 16 at once: outcomes are in order, each job is sent once, and memory stays constant."""
    data = incompressible_png(512, 512)
    process = psutil.Process()
    seeds: list[int] = []
    memory_bytes: list[int] = []

    def respond(job: Body) -> Body:
        seed = job["input"]["seed"]
        return {"output": {"images": [image_entry(data, seed)], "seed": seed}}

    with ScriptedWorker(platform, respond, threads=4), client_from_env(platform.client_env()) as client:
        for outcome in client.map(({"prompt": "x", "seed": seed} for seed in range(200)), 16):
            seeds.append(outcome.unwrap().seed or 0)
            assert outcome.unwrap().image.bytes == data
            memory_bytes.append(process.memory_info().rss - kept_result_bytes(platform))

    assert seeds == list(range(200))
    assert platform.submissions == 200
    assert max(memory_bytes[100:]) < max(memory_bytes[:100]) + 40 * 1024 * 1024


def kept_result_bytes(platform: RunPodPlatform) -> int:
    """Return the size of the results that the simulated platform, in this process, keeps for its clients."""
    return sum(len(image["data"]) for job in platform.jobs.values() if job.output for image in job.output["images"])


def test_leaving_a_map_leaves_no_running_job(platform: RunPodPlatform, client: Client) -> None:
    """If `map` is closed early, all its jobs end, and no more are sent."""
    release = threading.Event()

    def respond(job: Body) -> Body:
        if job["input"]["seed"]:
            release.wait(60)
        return image_result(job)

    with ScriptedWorker(platform, respond, threads=4):  # one thread for each job that is sent at once
        outcomes = client.map(({"prompt": "x", "seed": seed} for seed in range(50)), 4)
        assert next(outcomes).unwrap().seed == 0
        outcomes.close()  # type: ignore[attr-defined] # it is a generator
        release.set()

    sent = platform.submissions
    assert sent < 12
    assert until(lambda: all(job.state.is_final for job in platform.jobs.values()))
    assert platform.submissions == sent
    assert {job.state.value for job in platform.jobs.values()} == {"COMPLETED", "CANCELLED"}


def test_a_call_that_is_cancelled_at_once_cancels_its_job(platform: RunPodPlatform) -> None:
    """A cancelled txt2img cancels its job, even if the first cancel request gets 404."""

    async def cancel_txt2img() -> None:
        async with async_client_from_env(platform.client_env()) as client:
            task = asyncio.create_task(client.txt2img("a knight"))
            assert await asyncio.to_thread(until, lambda: platform.jobs)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    platform.faults.late_404(1.0)
    asyncio.run(cancel_txt2img())

    assert [job.state.value for job in platform.jobs.values()] == ["CANCELLED"]
