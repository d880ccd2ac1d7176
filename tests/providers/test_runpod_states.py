"""RunPod's states, statuses and limits, each over a socket, and what the caller gets.

Source: docs/reference/runpod.md#submitting-a-job.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from comfy_client.client import Client, client_from_env
from comfy_client.providers.interface import JobOptions, JobState
from comfy_client.providers.runpod_endpoint import RunPodEndpoint
from comfy_client.providers.worker import WorkerProvider
from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobCancelled, JobError, RequestError, Unauthorized, WaitTimeout
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_entry, image_result, incompressible_png, png

WORKER_REPORT = ErrorReport(ErrorCode.OUT_OF_MEMORY, "The GPU is full.", {"node_id": "3"})
EXCEPTION = json.dumps(
    {
        "error_type": "<class 'KeyError'>",
        "error_message": "'workflow'",
        "error_traceback": "Traceback: /app/handler.py line 5",
        "hostname": "h",
        "worker_id": "w",
    }
)


def job_of(client: Client) -> Any:  # noqa: ANN401 - a Job
    """Return a queued job."""
    return client.submit(prompt="a knight")


@pytest.mark.parametrize(
    ("body", "code", "expected"),
    [
        ({"status": "FAILED", "error": WORKER_REPORT.to_json()}, ErrorCode.OUT_OF_MEMORY, "The GPU is full"),
        ({"status": "FAILED", "error": "job timed out after 1 retries"}, ErrorCode.WORKER_LOST, "Send the job again"),
        ({"status": "FAILED", "error": EXCEPTION}, ErrorCode.INTERNAL, "'workflow'"),
        ({"status": "FAILED", "error": "something else"}, ErrorCode.UNRECOGNIZED, "something else"),
        ({"status": "FAILED"}, ErrorCode.UNRECOGNIZED, "without a reason"),
        ({"status": "FAILED", "error": {"a": 1}}, ErrorCode.UNRECOGNIZED, "without a reason"),
        ({"status": "CANCELLED"}, ErrorCode.CANCELLED, "cancelled"),
        ({"status": "TIMED_OUT", "executionTime": 600_000}, ErrorCode.DEADLINE_EXCEEDED, "execution timeout"),
        ({"status": "EXPIRED"}, ErrorCode.JOB_EXPIRED, "ttl"),
        ({"status": "COMPLETED"}, ErrorCode.RESULT_LOST, "`delivery` s3"),
        ({"status": "COMPLETED", "output": None}, ErrorCode.RESULT_LOST, "`delivery` s3"),
        ({"status": "COMPLETED", "output": {"images": []}}, ErrorCode.NO_OUTPUT, "SaveImage"),
        ({"status": "COMPLETED", "output": "text"}, ErrorCode.UNRECOGNIZED, "Check the endpoint id"),
        ({"status": "COMPLETED", "output": {"message": "hi"}}, ErrorCode.UNRECOGNIZED, "Check the endpoint id"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_each_failed_state_has_its_own_error(
    platform: RunPodPlatform, client: Client, body: Body, code: ErrorCode, expected: str
) -> None:
    """Each final state of RunPod has one code with a remedy, and the error names the job."""
    job = job_of(client)
    platform.faults.respond("status", 200, body={"id": job.id, **body})

    with pytest.raises(JobError, match=expected) as info:
        job.wait(5)

    assert info.value.code is code
    assert info.value.job_id == job.id
    assert isinstance(info.value, JobCancelled) is (code is ErrorCode.CANCELLED)
    assert "Traceback" not in info.value.report.to_json()


def test_our_worker_s_report_is_complete(platform: RunPodPlatform, client: Client) -> None:
    """Code, message and details are those of the worker."""
    with ScriptedWorker(platform, lambda _: {"error": WORKER_REPORT.to_json()}), pytest.raises(JobError) as info:
        client.txt2img("a knight")

    assert info.value.report == WORKER_REPORT
    assert info.value.report.retryable


@pytest.mark.parametrize("state", ["IN_QUEUE", "IN_PROGRESS", "RUNNING", "A_STATE_OF_TOMORROW"])
def test_a_state_that_is_not_final_is_waited_for(platform: RunPodPlatform, client: Client, state: str) -> None:
    """Unknown states and keys are tolerated; the job's end is still detected."""
    job = job_of(client)
    platform.faults.respond("status", 200, body={"id": job.id, "status": state, "a key of tomorrow": [1]})

    with ScriptedWorker(platform, image_result):
        assert job.wait().images


def test_a_status_has_times_worker_retries_and_progress(platform: RunPodPlatform, client: Client) -> None:
    """Milliseconds become seconds."""
    job = job_of(client)
    progress = {"stage": "sampling", "picture": 1, "pictures": 2, "step": 3, "steps": 20, "percent": 7, "new": 1}
    jpeg = base64.b64encode(b"\xff\xd8small").decode()
    body = {"id": job.id, "status": "IN_PROGRESS", "delayTime": 61_372, "workerId": "w7", "retries": 1}
    platform.faults.respond("status", 200, body={**body, "output": {**progress, "preview": jpeg}})
    status = job.status()

    assert (status.state, status.delay_s, status.worker_id, status.retries) == (JobState.RUNNING, 61.372, "w7", 1)
    assert (job.progress.step, job.progress.steps, job.progress.percent) == (3, 20, 7)
    assert job.progress.preview == b"\xff\xd8small"


def test_a_result_has_its_times_and_worker(platform: RunPodPlatform, client: Client) -> None:
    """Delay, execution time and worker are in the result."""
    with ScriptedWorker(platform, image_result):
        result = client.txt2img("a knight")

    assert result.delay_s is not None
    assert result.execution_s is not None
    assert result.worker_id == "scripted-0"


@pytest.mark.parametrize(
    ("status", "code", "exit_status"),
    [
        (401, ErrorCode.AUTH_FAILED, 3),
        (403, ErrorCode.AUTH_FAILED, 3),
        (404, ErrorCode.ENDPOINT_NOT_FOUND, 4),
        (400, ErrorCode.NETWORK, 4),
        (418, ErrorCode.NETWORK, 4),
    ],
)
def test_a_rejected_submit_has_its_status_and_remedy(
    platform: RunPodPlatform, client: Client, status: int, code: ErrorCode, exit_status: int
) -> None:
    """The error has the status, RunPod's message and the remedy; no job was started."""
    platform.faults.respond("run", status, body={"title": "No", "detail": "invalid because of that"})
    with pytest.raises(RequestError, match="invalid because of that") as info:
        job_of(client)

    error = info.value
    assert (error.code, error.status, error.exit_status) == (code, status, exit_status)
    assert isinstance(error, Unauthorized) is (exit_status == 3)
    assert error.report.details.get("may_run") is False
    assert platform.submissions == 0


def test_a_wrong_key_is_reported_without_showing_it(platform: RunPodPlatform) -> None:
    """The error names the variable, and the key is nowhere in it."""
    environment = {**platform.client_env(), "RUNPOD_API_KEY": "rpa_wrong_secret"}
    with client_from_env(environment) as client, pytest.raises(Unauthorized, match="RUNPOD_API_KEY") as info:
        client.health()

    assert "rpa_wrong_secret" not in f"{info.value!r} {info.value.report.to_json()} {client.provider!r}"


def test_a_wrong_endpoint_is_reported(platform: RunPodPlatform) -> None:
    """The error names the id and where to find the right one, for every call."""
    environment = {**platform.client_env(), "RUNPOD_ENDPOINT_ID": "nowhere"}
    with client_from_env(environment) as client:
        for call in (client.health, lambda: job_of(client), lambda: client.job("x").status()):
            with pytest.raises(RequestError, match="nowhere") as info:
                call()
            assert info.value.code is ErrorCode.ENDPOINT_NOT_FOUND


def test_a_429_is_retried(platform: RunPodPlatform, client: Client) -> None:
    """429 means that no job was accepted: the submit is repeated after Retry-After, and there is one job."""
    platform.faults.respond("run", 429, times=2, headers={"Retry-After": "0"})
    platform.faults.respond("status", 429, times=2, headers={"Retry-After": "0"})
    with ScriptedWorker(platform, image_result):
        assert client.submit(prompt="a knight").wait().images

    assert platform.submissions == 1


@pytest.mark.slow
def test_a_persistent_429_is_an_error(platform: RunPodPlatform, client: Client) -> None:
    """The error says that nothing was started."""
    platform.faults.respond("run", 429, times=10, headers={"Retry-After": "0.01"})
    with pytest.raises(RequestError) as info:
        job_of(client)

    assert info.value.code is ErrorCode.RATE_LIMITED
    assert info.value.report.details["may_run"] is False
    assert platform.submissions == 0


@pytest.mark.parametrize(
    "body",
    ["<html><title>502</title><h1>Bad gateway</h1></html>", "", "plain words", '{"error": "in words"}', '{"a": [1]}'],
)
def test_an_error_s_body_may_be_anything(platform: RunPodPlatform, client: Client, body: str) -> None:
    """JSON, text and HTML are parsed; markup is not shown."""
    platform.faults.respond("run", 500, body=body)
    with pytest.raises(RequestError) as info:
        job_of(client)

    assert "<" not in str(info.value)
    assert ("words" in str(info.value)) == ("words" in body)


@pytest.mark.parametrize(
    "body", ["<html>hello</html>", "[]", '{"status": "IN_QUEUE"}', '{"id": 5, "status": "IN_QUEUE"}']
)
def test_a_submit_response_without_a_job_may_have_started_one(
    platform: RunPodPlatform, client: Client, body: str
) -> None:
    """The error reports that the job may run, and the submit is not repeated."""
    platform.faults.respond("run", 200, body=body, times=3)
    with pytest.raises(RequestError) as info:
        job_of(client)

    assert info.value.report.details["may_run"] is True
    platform.faults.clear()
    assert platform.submissions == 0


@pytest.mark.parametrize("body", ["<html>hello</html>", "[]", "{}"])
def test_an_invalid_status_is_polled_again(platform: RunPodPlatform, client: Client, body: str) -> None:
    """An HTML page in place of a status does not end the wait."""
    job = job_of(client)
    platform.faults.respond("status", 200, body=body)
    with ScriptedWorker(platform, image_result):
        assert job.wait().images


def test_an_unknown_job_just_after_its_submit_is_waited_for(platform: RunPodPlatform, client: Client) -> None:
    """A 404 within half a minute of the submit means that the job is not yet known everywhere."""
    platform.faults.late_404(1.5)
    with ScriptedWorker(platform, image_result):
        assert client.submit(prompt="a knight").wait().images

    assert platform.submissions == 1


def test_a_cancel_just_after_the_submit_is_repeated(platform: RunPodPlatform, client: Client) -> None:
    """The cancellation works even if the job was unknown at first."""
    platform.faults.late_404(0.7)
    job = job_of(client)
    job.cancel()

    assert platform.jobs[job.id].state.value == "CANCELLED"


def test_a_job_after_its_retention_is_expired(platform: RunPodPlatform, client: Client) -> None:
    """The error is job_expired, with the remedy."""
    platform.retention_s = 0.0
    with ScriptedWorker(platform, image_result):
        job = job_of(client)
        platform.wait_for(job.id)
    with pytest.raises(JobError, match="30 minutes") as info:
        client.job(job.id).wait()

    assert info.value.code is ErrorCode.JOB_EXPIRED
    assert info.value.report.retryable


def test_a_job_beyond_its_ttl_is_expired(platform: RunPodPlatform, client: Client) -> None:
    """RunPod deletes it in any state: a job that was known and is unknown now is not waited for."""
    platform.ttl_s = 1.0
    with pytest.raises(JobError, match="ttl") as info:
        job_of(client).wait(20)

    assert info.value.code is ErrorCode.JOB_EXPIRED
    assert platform.submissions == 1


def test_a_result_that_runsync_kept_for_a_minute_is_expired(platform: RunPodPlatform) -> None:
    """A /runsync result that is not fetched within its minute is reported as expired."""
    platform.sync_retention_s = 0.0
    with (
        client_from_env(platform.client_env(), timeout_s=20, sync_wait_s=1.0) as brief,
        ScriptedWorker(platform, image_result),
    ):
        platform.faults.cold_start(1.5)
        with pytest.raises(JobError, match="1 minute") as info:
            brief.txt2img("a knight")

    assert info.value.code is ErrorCode.JOB_EXPIRED
    assert platform.submissions == 1


def test_options_are_sent_beside_the_input(platform: RunPodPlatform, client: Client) -> None:
    """Policy in milliseconds, webhook and bucket are top-level keys of RunPod's request."""
    s3 = {"accessId": "a", "accessSecret": "b", "bucketName": "c", "endpointUrl": "https://s3"}
    options = JobOptions(
        execution_timeout_s=60, ttl_s=3600, low_priority=True, webhook="https://me/?secret", s3_config=s3
    )
    job = client.submit(prompt="a knight", options=options)

    assert dict(platform.jobs[job.id].body) == {
        "input": {"prompt": "a knight"},
        "policy": {"executionTimeout": 60_000, "ttl": 3_600_000, "lowPriority": True},
        "webhook": "https://me/?secret",
        "s3Config": s3,
    }
    assert "secret" not in repr(options)
    assert "accessSecret" not in repr(options)


def test_without_options_only_the_input_is_sent(platform: RunPodPlatform, client: Client) -> None:
    """The endpoint's own settings apply."""
    job = job_of(client)

    assert dict(platform.jobs[job.id].body) == {"input": {"prompt": "a knight"}}


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"execution_timeout_s": 4.9}, "execution_timeout_s"),
        ({"execution_timeout_s": 604_801}, "execution_timeout_s"),
        ({"ttl_s": 9}, "ttl_s"),
        ({"ttl_s": 700_000}, "ttl_s"),
        ({"ttl_s": float("nan")}, "ttl_s"),
        ({"webhook": "ftp://me"}, "webhook"),
    ],
)
def test_options_outside_runpod_s_ranges_are_rejected(options: dict[str, Any], path: str) -> None:
    """The documented ranges are checked before anything is sent."""
    with pytest.raises(JobError, match=path) as info:
        JobOptions(**options)

    assert info.value.code is ErrorCode.INVALID_INPUT


def test_a_request_that_is_too_large_is_rejected_before_it_is_sent(platform: RunPodPlatform, client: Client) -> None:
    """Above 10 MiB a submit is rejected with its size and the remedy."""
    big = incompressible_png(2000, 1400)
    with pytest.raises(RequestError, match="Nothing was sent") as info:
        client.submit("img2img", prompt="x", image=big)

    assert info.value.code is ErrorCode.PAYLOAD_TOO_LARGE
    assert info.value.report.details["bytes"] > info.value.report.details["limit"] == 10 * 1024 * 1024
    assert "https URL" in str(info.value)
    assert "`run`" in str(info.value)
    assert platform.submissions == 0


@pytest.mark.slow
def test_a_call_that_waits_may_send_twice_as_much(platform: RunPodPlatform, client: Client) -> None:
    """/runsync accepts 10 MiB to 20 MB, with or without an observer."""
    big = incompressible_png(2000, 1400)
    with ScriptedWorker(platform, image_result):
        assert client.img2img(big, "x").images
        assert client.img2img(big, "x", observer=lambda _: None).images

    assert platform.submissions == 2
    with pytest.raises(RequestError, match="20,000,000") as info:
        client.img2img(incompressible_png(2600, 2400), "x")
    assert info.value.code is ErrorCode.PAYLOAD_TOO_LARGE
    assert "`run`" not in str(info.value)


def test_runpod_s_size_limit_is_payload_too_large(platform: RunPodPlatform, client: Client) -> None:
    """RunPod's own limit may be lower: its 400 has the same code."""
    platform.request_limit_bytes = 1000
    with pytest.raises(RequestError, match="max body size") as info:
        client.submit(prompt="a knight" * 500)

    assert info.value.code is ErrorCode.PAYLOAD_TOO_LARGE


def test_a_request_without_input_is_never_sent(platform: RunPodPlatform) -> None:
    """RunPod strips an empty input, and the job fails 40 s later."""
    with client_from_env(platform.client_env(), workflows=None) as client, pytest.raises(JobError) as info:
        client.run()

    assert info.value.code is ErrorCode.INVALID_INPUT
    assert platform.submissions == 0


def test_the_endpoint_rejects_an_empty_input(platform: RunPodPlatform) -> None:
    """The endpoint rejects an empty input without relying on the client's checks."""
    endpoint = RunPodEndpoint(platform.endpoint_id, platform.api_key, platform.base_url)
    with Client(WorkerProvider(endpoint, {})) as client, pytest.raises(JobError) as info:
        client.run()

    assert info.value.code is ErrorCode.INVALID_INPUT
    assert platform.submissions == 0


def test_only_a_failed_job_can_be_retried(platform: RunPodPlatform, client: Client) -> None:
    """The same id runs once more; a retry of a successful job gets 400."""
    responses = iter([{"error": WORKER_REPORT.to_json()}])
    with ScriptedWorker(platform, lambda job: next(responses, None) or image_result(job)):
        job = job_of(client)
        with pytest.raises(JobError):
            job.wait()
        assert job.retry().state is JobState.QUEUED
        assert job.wait().images
        with pytest.raises(RequestError, match="can be retried") as info:
            job.retry()

    assert info.value.status == 400
    assert platform.submissions == 1


def test_the_queue_can_be_purged(platform: RunPodPlatform, client: Client) -> None:
    """Queued jobs are cancelled, and their number is returned."""
    jobs = [job_of(client) for _ in range(3)]

    assert client.purge_queue() == 3
    with pytest.raises(JobCancelled):
        jobs[0].wait(5)
    assert len(platform.jobs) == 3


@pytest.mark.parametrize(
    ("workers", "why"),
    [
        ({}, "no_worker"),
        ({"initializing": 1}, "cold"),
        ({"throttled": 2}, "throttled"),
        ({"unhealthy": 1}, "unhealthy"),
        ({"running": 2, "ready": 2}, "busy"),
        ({"idle": 1, "running": 1, "ready": 2}, "idle"),
        ({"throttled": 1, "running": 1}, "busy"),
        ({"idle": "many", "new": 1}, "no_worker"),
    ],
    ids=str,
)
def test_health_has_the_reason_why_a_job_waits(
    platform: RunPodPlatform, client: Client, workers: Body, why: str
) -> None:
    """The counts of workers become one word and one sentence; so does a wait timeout."""
    body = {"jobs": {"inQueue": 4}, "workers": workers}
    platform.faults.respond("health", 200, body=body, times=2)

    assert client.health().why == why
    with pytest.raises(WaitTimeout) as info:
        job_of(client).wait(0)
    assert info.value.report.details["why"] == why
    assert client.health().sentence


def test_an_image_with_another_hash_is_lost(platform: RunPodPlatform, client: Client) -> None:
    """Bytes that differ from the worker's are not a result."""
    response = {"output": {"images": [image_entry(png(), sha256="0" * 64)]}}
    with ScriptedWorker(platform, lambda _: response), pytest.raises(JobError, match="SHA-256") as info:
        client.txt2img("a knight")

    assert info.value.code is ErrorCode.RESULT_LOST


@pytest.mark.parametrize("data", ["/simulated_uploaded/x.png", "not base64!"])
def test_an_unusable_image_reference_is_lost(platform: RunPodPlatform, client: Client, data: str) -> None:
    """A path on the worker (no bucket configured) and invalid base64 are result_lost."""
    kind = "s3_url" if data.startswith("/") else "base64"
    unusable = image_entry(png()) | {"type": kind, "data": data}
    response = {"output": {"images": [unusable]}}
    with ScriptedWorker(platform, lambda _: response), pytest.raises(JobError) as info:
        client.txt2img("a knight")

    assert info.value.code is ErrorCode.RESULT_LOST


def test_files_texts_and_warnings_are_returned(platform: RunPodPlatform, client: Client, tmp_path: Path) -> None:
    """Outputs that are not images are files or texts."""
    video = image_entry(b"video", filename="a.mp4", mime_type="video/mp4")
    response = {"output": {"images": [], "files": [video], "texts": ["hi"], "warnings": ["w"], "errors": ["e"]}}
    with ScriptedWorker(platform, lambda _: response):
        result = client.txt2img("a knight")

    assert result.files[0].save(tmp_path).read_bytes() == b"video"
    assert (result.texts, result.warnings) == (("hi",), ("w", "e"))
    with pytest.raises(LookupError):
        _ = result.image
