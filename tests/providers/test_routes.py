"""RunPod's routes as the client calls them: retries after errors, retry and cancel of ended jobs, previews, /runsync.

Source: docs/reference/runpod.md#submitting-a-job.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

import pytest

from comfy_client.client import Client
from comfy_client.job import Downloading, Preview, Sampling
from comfy_client.providers.interface import GenerationRequest, JobState
from comfy_client.providers.runpod_endpoint import RunPodEndpoint
from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, RequestError
from simulators.http_server import HttpHandler, HttpServer
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import ScriptedWorker, image_result

STATUSES_RETRIED_BY_RUNPODS_CLIENT = (429, 500, 502, 503, 504, 520, 522, 524)
OUT_OF_MEMORY_RESULT = {"error": ErrorReport(ErrorCode.OUT_OF_MEMORY, "The GPU is full.").to_json()}


@pytest.mark.parametrize("status", STATUSES_RETRIED_BY_RUNPODS_CLIENT)
def test_repeatable_calls_are_retried_after_an_error(platform: RunPodPlatform, client: Client, status: int) -> None:
    """Status, cancel, health and purge-queue are retried. The job was submitted only once."""
    job = client.submit(prompt="x")
    for route in ("status", "cancel", "health", "purge-queue"):
        platform.faults.respond(route, status)

    with ThreadPoolExecutor() as pool:
        status_future, purge_future = pool.submit(job.status), pool.submit(client.purge_queue)
        health_future = pool.submit(client.health)
        cancel_future = pool.submit(client.job(job.id).cancel)
        assert status_future.result(10).job_id == job.id
        assert purge_future.result(10) in {0, 1}
        assert health_future.result(10).why == "no_worker"
        cancel_future.result(10)

    assert platform.jobs[job.id].state.value == "CANCELLED"
    assert platform.submissions == 1


@pytest.mark.parametrize("status", STATUSES_RETRIED_BY_RUNPODS_CLIENT[1:])
def test_a_retry_with_a_5xx_response_is_not_repeated(platform: RunPodPlatform, client: Client, status: int) -> None:
    """Like a submit, a retry starts a job: sending it again might run the job twice."""
    with ScriptedWorker(platform, lambda _: OUT_OF_MEMORY_RESULT):
        job = client.submit(prompt="x")
        with pytest.raises(JobError):
            job.wait()
    platform.faults.respond("retry", status)
    with pytest.raises(RequestError) as info:
        job.retry()

    assert info.value.status == status
    assert platform.jobs[job.id].state.value == "FAILED"


def test_an_expired_job_cannot_be_retried(platform: RunPodPlatform, client: Client) -> None:
    """A retry after RunPod deleted the job raises job_expired and starts nothing."""
    platform.retention_s = 0.0
    with ScriptedWorker(platform, lambda _: OUT_OF_MEMORY_RESULT):
        job = client.submit(prompt="x")
        platform.wait_for(job.id)
    with pytest.raises(JobError) as info:
        client.job(job.id).retry()

    assert info.value.code is ErrorCode.JOB_EXPIRED
    assert platform.submissions == 1


def test_cancelling_an_ended_job_has_no_effect(platform: RunPodPlatform, client: Client) -> None:
    """The job stays succeeded, and its result still exists."""
    with ScriptedWorker(platform, image_result):
        job = client.submit(prompt="x")
        platform.wait_for(job.id)
    job.cancel()

    assert job.status().state is JobState.SUCCEEDED
    assert job.result().images


def test_a_step_and_a_preview_are_reported_once(platform: RunPodPlatform, client: Client) -> None:
    """A step and a preview that three polls repeat become one event each."""
    job = client.submit(prompt="x")
    output = {
        "stage": "sampling",
        "picture": 1,
        "pictures": 1,
        "step": 3,
        "steps": 20,
        "percent": 15,
        "preview": "/9g=",
    }
    platform.faults.respond("status", 200, times=3, body={"id": job.id, "status": "IN_PROGRESS", "output": output})
    with ScriptedWorker(platform, image_result):
        events = list(job.events())

    assert [event for event in events if isinstance(event, Preview)] == [Preview(b"\xff\xd8")]
    assert [event for event in events if isinstance(event, Sampling)] == [Sampling(1, 1, 3, 20, 15)]


def test_the_bytes_of_models_are_reported(platform: RunPodPlatform, client: Client) -> None:
    """While the worker downloads models, the job's events have the bytes, and no step."""
    job = client.submit(prompt="x")
    output = {"stage": "model", "step": 0, "steps": 0, "done_bytes": 5, "total_bytes": 9}
    platform.faults.respond("status", 200, times=2, body={"id": job.id, "status": "IN_PROGRESS", "output": output})
    with ScriptedWorker(platform, image_result):
        events = list(job.events())

    assert [event for event in events if isinstance(event, Downloading | Sampling)] == [Downloading(5, 9)]


class SubmitRecorder(HttpHandler):
    """Accepts every submit, and records the query parameters of its URL."""

    queries: list[dict[str, list[str]]]

    def do_POST(self) -> None:
        """Record the query parameters, and respond with a queued job."""
        self.body()
        self.queries.append(parse_qs(urlsplit(self.path).query))
        self.respond(200, json.dumps({"id": "sync-1", "status": "IN_QUEUE"}).encode())


@pytest.fixture
def recording_server() -> Iterator[tuple[str, list[dict[str, list[str]]]]]:
    """The URL of a server that accepts jobs, and the list of the query parameters that it receives."""
    queries: list[dict[str, list[str]]] = []
    recorder_class = type("Recorder", (SubmitRecorder,), {"queries": queries})
    with HttpServer(recorder_class) as server:
        yield f"{server.url}/v2", queries


def test_runsync_waits_1_to_90_s(recording_server: tuple[str, list[dict[str, list[str]]]]) -> None:
    """`wait` is at least RunPod's minimum of 1 s, and at most 90 s: Cloudflare ends a request after about 100 s.

    RunPod's own maximum is 300 s. A wait of 0 s has no `wait` parameter.
    """
    url, queries = recording_server
    endpoint = RunPodEndpoint("ep", "key", url)
    for wait_s in (0.1, 12.5, 1000.0, 0.0):
        assert endpoint.submit(GenerationRequest({"prompt": "x"}), wait_s).job_id == "sync-1"
    endpoint.close()

    assert queries == [{"wait": ["1000"]}, {"wait": ["12500"]}, {"wait": ["90000"]}, {}]
