"""RunPod's job states, HTTP statuses and limits over real sockets, and the results and errors of the client.

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


def submitted_job(client: Client) -> Any:  # noqa: ANN401 - a Job
    """Submit a job and return it."""
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
    """Each failed state of a job raises an error with its code, a text that explains it, and the job's id."""
    job = submitted_job(client)
    platform.faults.respond("status", 200, body={"id": job.id, **body})

    with pytest.raises(JobError, match=expected) as info:
        job.wait(60)

    assert info.value.code is code
    assert info.value.job_id == job.id
    assert isinstance(info.value, JobCancelled) is (code is ErrorCode.CANCELLED)
    assert "Traceback" not in info.value.report.to_json()


def test_our_worker_s_report_is_complete(platform: RunPodPlatform, client: Client) -> None:
    """The error's report equals the worker's report, and is retryable."""
    with ScriptedWorker(platform, lambda _: {"error": WORKER_REPORT.to_json()}), pytest.raises(JobError) as info:
        client.txt2img("a knight")

    assert info.value.report == WORKER_REPORT
    assert info.value.report.retryable


@pytest.mark.parametrize("state", ["IN_QUEUE", "IN_PROGRESS", "RUNNING", "A_STATE_OF_TOMORROW"])
def test_a_job_in_a_state_that_is_not_final_is_waited_for(platform: RunPodPlatform, client: Client, state: str) -> None:
    """A job with such a state, even an unknown one, is polled until it has a result. Unknown keys are ignored."""
    job = submitted_job(client)
    platform.faults.respond("status", 200, body={"id": job.id, "status": state, "a key of tomorrow": [1]})

    with ScriptedWorker(platform, image_result):
        assert job.wait().images


def test_a_status_has_times_worker_retries_and_progress(platform: RunPodPlatform, client: Client) -> None:
    """A status has the delay in seconds, the worker and the retries; the job has its progress with the preview."""
    job = submitted_job(client)
    progress = {"stage": "sampling", "picture": 1, "pictures": 2, "step": 3, "steps": 20, "percent": 7, "new": 1}
    jpeg = base64.b64encode(b"\xff\xd8small").decode()
    body = {"id": job.id, "status": "IN_PROGRESS", "delayTime": 61_372, "workerId": "w7", "retries": 1}
    platform.faults.respond("status", 200, body={**body, "output": {**progress, "preview": jpeg}})
    status = job.status()

    assert (status.state, status.delay_s, status.worker_id, status.retries) == (JobState.RUNNING, 61.372, "w7", 1)
    assert (job.progress.step, job.progress.steps, job.progress.percent) == (3, 20, 7)
    assert job.progress.preview == b"\xff\xd8small"


def test_a_result_has_its_times_and_worker(platform: RunPodPlatform, client: Client) -> None:
    """A result has its delay, its execution time and its worker."""
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
    """The error has the code, the status and RunPod's message. It says that no job was started."""
    platform.faults.respond("run", status, body={"title": "No", "detail": "invalid because of that"})
    with pytest.raises(RequestError, match="invalid because of that") as info:
        submitted_job(client)

    error = info.value
    assert (error.code, error.status, error.exit_status) == (code, status, exit_status)
    assert isinstance(error, Unauthorized) is (exit_status == 3)
    assert error.report.details.get("may_run") is False
    assert platform.submissions == 0


def test_a_wrong_key_is_reported_without_showing_it(platform: RunPodPlatform) -> None:
    """The error names RUNPOD_API_KEY, and neither the error nor the provider shows the key."""
    environment = {**platform.client_env(), "RUNPOD_API_KEY": "rpa_wrong_secret"}
    with client_from_env(environment) as client, pytest.raises(Unauthorized, match="RUNPOD_API_KEY") as info:
        client.health()

    assert "rpa_wrong_secret" not in f"{info.value!r} {info.value.report.to_json()} {client.provider!r}"


def test_a_wrong_endpoint_is_reported(platform: RunPodPlatform) -> None:
    """For health, submit and status the error is endpoint_not_found, and names the endpoint id."""
    environment = {**platform.client_env(), "RUNPOD_ENDPOINT_ID": "nowhere"}
    with client_from_env(environment) as client:
        for call in (client.health, lambda: submitted_job(client), lambda: client.job("x").status()):
            with pytest.raises(RequestError, match="nowhere") as info:
                call()
            assert info.value.code is ErrorCode.ENDPOINT_NOT_FOUND


@pytest.mark.slow
def test_a_429_is_retried(platform: RunPodPlatform, client: Client) -> None:
    """Submit and status are repeated after 429, with which no job was accepted: there is one job."""
    platform.faults.respond("run", 429, times=2, headers={"Retry-After": "0"})
    platform.faults.respond("status", 429, times=2, headers={"Retry-After": "0"})
    with ScriptedWorker(platform, image_result):
        assert client.submit(prompt="a knight").wait().images

    assert platform.submissions == 1


@pytest.mark.slow
def test_a_persistent_429_is_an_error(platform: RunPodPlatform, client: Client) -> None:
    """The error is rate_limited, and says that no job was started."""
    platform.faults.respond("run", 429, times=10, headers={"Retry-After": "0.01"})
    with pytest.raises(RequestError) as info:
        submitted_job(client)

    assert info.value.code is ErrorCode.RATE_LIMITED
    assert info.value.report.details["may_run"] is False
    assert platform.submissions == 0


@pytest.mark.parametrize(
    "body",
    ["<html><title>502</title><h1>Bad gateway</h1></html>", "", "plain words", '{"error": "in words"}', '{"a": [1]}'],
)
def test_an_error_s_body_may_be_anything(platform: RunPodPlatform, client: Client, body: str) -> None:
    """The error shows a message in text or JSON, but no markup."""
    platform.faults.respond("run", 500, body=body)
    with pytest.raises(RequestError) as info:
        submitted_job(client)

    assert "<" not in str(info.value)
    assert ("words" in str(info.value)) == ("words" in body)


@pytest.mark.parametrize(
    "body", ["<html>hello</html>", "[]", '{"status": "IN_QUEUE"}', '{"id": 5, "status": "IN_QUEUE"}']
)
def test_a_submit_response_without_a_job_may_have_started_one(
    platform: RunPodPlatform, client: Client, body: str
) -> None:
    """The error says that the job may run, and the submit is not repeated."""
    platform.faults.respond("run", 200, body=body, times=3)
    with pytest.raises(RequestError) as info:
        submitted_job(client)

    assert info.value.report.details["may_run"] is True
    platform.faults.clear()
    assert platform.submissions == 0


@pytest.mark.parametrize("body", ["<html>hello</html>", "[]", "{}"])
def test_an_invalid_status_is_polled_again(platform: RunPodPlatform, client: Client, body: str) -> None:
    """If the response to a poll is HTML, or JSON that is not a status, the job is polled again."""
    job = submitted_job(client)
    platform.faults.respond("status", 200, body=body)
    with ScriptedWorker(platform, image_result):
        assert job.wait().images


@pytest.mark.slow
def test_an_unknown_job_just_after_its_submit_is_waited_for(platform: RunPodPlatform, client: Client) -> None:
    """A 404 shortly after the submit does not end the wait, because the job may not be known everywhere yet."""
    platform.faults.late_404(1.5)
    with ScriptedWorker(platform, image_result):
        assert client.submit(prompt="a knight").wait().images

    assert platform.submissions == 1


@pytest.mark.slow
def test_a_cancel_just_after_the_submit_is_repeated(platform: RunPodPlatform, client: Client) -> None:
    """A cancellation that gets 404 just after the submit is repeated until the job is cancelled."""
    platform.faults.late_404(0.7)
    job = submitted_job(client)
    job.cancel()

    assert platform.jobs[job.id].state.value == "CANCELLED"


@pytest.mark.slow
def test_a_job_after_its_retention_is_expired(platform: RunPodPlatform, client: Client) -> None:
    """The error is job_expired, names the retention of 30 minutes, and is retryable."""
    platform.retention_s = 0.0
    with ScriptedWorker(platform, image_result):
        job = submitted_job(client)
        platform.wait_for(job.id)
    with pytest.raises(JobError, match="30 minutes") as info:
        client.job(job.id).wait()

    assert info.value.code is ErrorCode.JOB_EXPIRED
    assert info.value.report.retryable


@pytest.mark.slow
def test_a_job_beyond_its_ttl_is_expired(platform: RunPodPlatform, client: Client) -> None:
    """A job that RunPod deleted because its ttl is over raises job_expired."""
    platform.ttl_s = 1.0
    with pytest.raises(JobError, match="ttl") as info:
        submitted_job(client).wait(60)

    assert info.value.code is ErrorCode.JOB_EXPIRED
    assert platform.submissions == 1


@pytest.mark.slow
def test_a_result_that_runsync_kept_for_a_minute_is_expired(platform: RunPodPlatform) -> None:
    """A /runsync result that RunPod has deleted raises job_expired, and names the retention of a minute."""
    platform.sync_retention_s = 0.0
    with (
        client_from_env(platform.client_env(), timeout_s=60, sync_wait_s=1.0) as brief_client,
        ScriptedWorker(platform, image_result),
    ):
        platform.faults.cold_start(1.5)
        with pytest.raises(JobError, match="1 minute") as info:
            brief_client.txt2img("a knight")

    assert info.value.code is ErrorCode.JOB_EXPIRED
    assert platform.submissions == 1


def test_options_are_sent_beside_the_input(platform: RunPodPlatform, client: Client) -> None:
    """Policy (in milliseconds), webhook and bucket are top-level keys of the request. The repr shows no secret."""
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
    """Without options the request has only the input, so the endpoint's own settings apply."""
    job = submitted_job(client)

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
    """JobOptions rejects values outside RunPod's documented ranges with the option's name."""
    with pytest.raises(JobError, match=path) as info:
        JobOptions(**options)

    assert info.value.code is ErrorCode.INVALID_INPUT


def test_a_request_that_is_too_large_is_rejected_before_it_is_sent(platform: RunPodPlatform, client: Client) -> None:
    """A submit above 10 MiB is rejected with the size, the limit and the remedies; nothing is sent."""
    large_image = incompressible_png(2000, 1400)
    with pytest.raises(RequestError, match="Nothing was sent") as info:
        client.submit("img2img", prompt="x", image=large_image)

    assert info.value.code is ErrorCode.PAYLOAD_TOO_LARGE
    assert info.value.report.details["bytes"] > info.value.report.details["limit"] == 10 * 1024 * 1024
    assert "https URL" in str(info.value)
    assert "`run`" in str(info.value)
    assert platform.submissions == 0


@pytest.mark.slow
def test_a_call_that_waits_may_send_twice_as_much(platform: RunPodPlatform, client: Client) -> None:
    """A call that waits uses /runsync for 10 MiB to 20 MB, with or without an observer; more is rejected."""
    large_image = incompressible_png(2000, 1400)
    with ScriptedWorker(platform, image_result):
        assert client.img2img(large_image, "x").images
        assert client.img2img(large_image, "x", observer=lambda _: None).images

    assert platform.submissions == 2
    with pytest.raises(RequestError, match="20,000,000") as info:
        client.img2img(incompressible_png(2600, 2400), "x")
    assert info.value.code is ErrorCode.PAYLOAD_TOO_LARGE
    assert "`run`" not in str(info.value)


def test_runpod_s_size_limit_is_payload_too_large(platform: RunPodPlatform, client: Client) -> None:
    """If RunPod itself rejects the size with 400, the error has the same code as the client's own limit."""
    platform.request_limit_bytes = 1000
    with pytest.raises(RequestError, match="max body size") as info:
        client.submit(prompt="a knight" * 500)

    assert info.value.code is ErrorCode.PAYLOAD_TOO_LARGE


def test_a_request_without_inputs_is_not_sent(platform: RunPodPlatform) -> None:
    """`run` without inputs is rejected: RunPod would remove the empty input, and the job would fail 40 s later."""
    with client_from_env(platform.client_env(), workflows=None) as client, pytest.raises(JobError) as info:
        client.run()

    assert info.value.code is ErrorCode.INVALID_INPUT
    assert platform.submissions == 0


def test_runpod_endpoint_rejects_an_empty_input(platform: RunPodPlatform) -> None:
    """RunPodEndpoint itself rejects an empty input, here with a provider without workflows."""
    endpoint = RunPodEndpoint(platform.endpoint_id, platform.api_key, platform.base_url)
    with Client(WorkerProvider(endpoint, {})) as client, pytest.raises(JobError) as info:
        client.run()

    assert info.value.code is ErrorCode.INVALID_INPUT
    assert platform.submissions == 0


def test_only_a_failed_job_can_be_retried(platform: RunPodPlatform, client: Client) -> None:
    """A failed job is retried with the same id and succeeds; a retry of the successful job raises the 400."""
    first_responses = iter([{"error": WORKER_REPORT.to_json()}])
    with ScriptedWorker(platform, lambda job: next(first_responses, None) or image_result(job)):
        job = submitted_job(client)
        with pytest.raises(JobError):
            job.wait()
        assert job.retry().state is JobState.QUEUED
        assert job.wait().images
        with pytest.raises(RequestError, match="can be retried") as info:
            job.retry()

    assert info.value.status == 400
    assert platform.submissions == 1


def test_the_queue_can_be_purged(platform: RunPodPlatform, client: Client) -> None:
    """`purge_queue` cancels the three queued jobs and returns their number."""
    jobs = [submitted_job(client) for _ in range(3)]

    assert client.purge_queue() == 3
    with pytest.raises(JobCancelled):
        jobs[0].wait(60)
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
    """The counts of workers become one word, `why`, in the health and in the error of a wait timeout."""
    body = {"jobs": {"inQueue": 4}, "workers": workers}
    platform.faults.respond("health", 200, body=body, times=2)

    assert client.health().why == why
    with pytest.raises(WaitTimeout) as info:
        submitted_job(client).wait(0)
    assert info.value.report.details["why"] == why
    assert client.health().sentence


def test_an_image_with_another_hash_is_lost(platform: RunPodPlatform, client: Client) -> None:
    """An image whose bytes do not match its SHA-256 raises result_lost."""
    response = {"output": {"images": [image_entry(png(), sha256="0" * 64)]}}
    with ScriptedWorker(platform, lambda _: response), pytest.raises(JobError, match="SHA-256") as info:
        client.txt2img("a knight")

    assert info.value.code is ErrorCode.RESULT_LOST


@pytest.mark.parametrize("data", ["/simulated_uploaded/x.png", "not base64!"])
def test_an_unusable_image_reference_is_lost(platform: RunPodPlatform, client: Client, data: str) -> None:
    """A path on the worker in place of a URL, and invalid base64, raise result_lost."""
    kind = "s3_url" if data.startswith("/") else "base64"
    unusable = image_entry(png()) | {"type": kind, "data": data}
    response = {"output": {"images": [unusable]}}
    with ScriptedWorker(platform, lambda _: response), pytest.raises(JobError) as info:
        client.txt2img("a knight")

    assert info.value.code is ErrorCode.RESULT_LOST


def test_files_texts_and_warnings_are_returned(platform: RunPodPlatform, client: Client, tmp_path: Path) -> None:
    """Files, texts and warnings are in the result; `errors` become warnings. Without images `image` fails."""
    video = image_entry(b"video", filename="a.mp4", mime_type="video/mp4")
    response = {"output": {"images": [], "files": [video], "texts": ["hi"], "warnings": ["w"], "errors": ["e"]}}
    with ScriptedWorker(platform, lambda _: response):
        result = client.txt2img("a knight")

    assert result.files[0].save(tmp_path).read_bytes() == b"video"
    assert (result.texts, result.warnings) == (("hi",), ("w", "e"))
    with pytest.raises(LookupError):
        _ = result.image
