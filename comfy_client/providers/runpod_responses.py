"""What RunPod's queue API answers, as values. Pure.

Facts (docs/reference/runpod.md#job-states): times are milliseconds; every field may be absent; unknown states and
keys are to be tolerated. While a job is IN_PROGRESS `output` is its newest progress. COMPLETED without `output`
means that the result was dropped, most often as too large. `error` is text: an ErrorReport of this project's worker,
the JSON of an uncaught exception (of any other), or RunPod's own words. An error's body is JSON, text or an edge's
HTML page.
"""

from __future__ import annotations

import base64
import binascii
import json
import re

from comfy_client.providers.interface import Health, JobState, JobStatus, Progress
from comfy_core.contract import ErrorCode, ErrorReport, JsonObject
from comfy_core.errors import RequestError, Unauthorized

_STATES = {
    "IN_QUEUE": JobState.QUEUED,
    "IN_PROGRESS": JobState.RUNNING,
    "COMPLETED": JobState.SUCCEEDED,
    "FAILED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
    "TIMED_OUT": JobState.TIMED_OUT,
    "EXPIRED": JobState.EXPIRED,
}
_SHOWN = 300


def read_status(body: object) -> JobStatus | None:
    """Return how a job stands by RunPod's job object, or None where it is none. An unknown state counts as running."""
    match body:
        case {"id": str(job_id), "status": str(name), **rest} if job_id:
            job: JsonObject = {str(key): value for key, value in rest.items()}
        case _:
            return None
    state = _STATES.get(name, JobState.RUNNING)
    output = job.get("output")
    error = _error(state, job_id, job)
    if error is not None and state is JobState.SUCCEEDED:
        state = JobState.FAILED
    return JobStatus(
        job_id=job_id,
        state=state,
        progress=read_progress(output) if state is JobState.RUNNING else None,
        output=output if state.is_final else None,
        error=error,
        delay_s=_seconds(job.get("delayTime")),
        execution_s=_seconds(job.get("executionTime")),
        worker_id=job["workerId"] if isinstance(job.get("workerId"), str) else None,
        retries=job["retries"] if isinstance(job.get("retries"), int) else 0,
    )


def _error(state: JobState, job_id: str, job: JsonObject) -> ErrorReport | None:
    match state:
        case JobState.SUCCEEDED if job.get("output") is None:
            return ErrorReport(
                ErrorCode.RESULT_LOST,
                "The job ended well, and RunPod has no result of it: it drops what is larger than about 10 MB. Ask for "
                "output_format webp or jpeg, for fewer pictures, or for delivery s3.",
            )
        case JobState.FAILED:
            return read_error(job.get("error"))
        case JobState.CANCELLED:
            return ErrorReport(ErrorCode.CANCELLED, "The job was cancelled.")
        case JobState.TIMED_OUT:
            return ErrorReport(
                ErrorCode.DEADLINE_EXCEEDED,
                "RunPod ended the job after its execution timeout. Ask for fewer steps, pictures or pixels, or allow "
                "more with `execution_timeout_s` or in the endpoint's settings.",
                {"after_s": _seconds(job.get("executionTime"))},
            )
        case JobState.EXPIRED:
            return expired(job_id)
    return None


def read_error(error: object) -> ErrorReport:
    """Return the report of a FAILED job's `error`."""
    if not isinstance(error, str) or not error:
        return ErrorReport(ErrorCode.UNRECOGNIZED, "RunPod says that the job failed, and not why.", {"error": error})
    if re.fullmatch(r"job timed out after \d+ retries", error):
        message = (
            "The worker that had the job was lost, and RunPod gave the job up. Send it again; if it stays so, read the "
            "worker's log."
        )
        return ErrorReport(ErrorCode.WORKER_LOST, message, {"error": error})
    match _parsed(error):
        case {"error_type": str(kind), "error_message": str(message)}:
            # An uncaught exception; its traceback, with the worker's paths, is not handed on.
            return ErrorReport(
                ErrorCode.INTERNAL, f"The worker raised {kind}: {message[:_SHOWN]}", {"error_type": kind}
            )
    return ErrorReport.from_json(error)


def expired(job_id: str) -> ErrorReport:
    """Return the report of a job that RunPod does not know."""
    return ErrorReport(
        ErrorCode.JOB_EXPIRED,
        f"RunPod does not know the job {job_id}, or no more: it keeps a result for 30 minutes (1 minute where the call "
        "waited for it), and no job beyond its ttl. Look at the id and the endpoint, or send the job again.",
    )


def read_progress(output: object) -> Progress | None:
    """Return the progress that this project's worker posts (worker/progress.py), or None where it is none."""
    match output:
        case {"stage": str(stage), **rest}:
            numbers = {
                name: value
                for name in ("picture", "pictures", "step", "steps", "percent")
                if isinstance(value := rest.get(name), int)
            }
            return Progress(stage, preview=_preview(rest.get("preview")), **numbers)
    return None


def _preview(text: object) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        return None


def read_health(body: object) -> Health:
    """Return what /health says, with why a job may have to wait."""
    jobs: JsonObject = {}
    workers: JsonObject = {}
    match body:
        case {"jobs": dict(jobs), "workers": dict(workers)}:
            pass
    counts = {str(name): count for name, count in workers.items() if isinstance(count, int)}
    queued = {str(name): count for name, count in jobs.items() if isinstance(count, int)}
    why, sentence = _why(counts, queued)
    return Health(queued, counts, why, sentence)


def _why(workers: dict[str, int], jobs: dict[str, int]) -> tuple[str, str]:
    def count(state: str) -> int:
        return workers.get(state, 0)

    usable = max(count("ready"), count("idle") + count("running"))
    if count("idle"):
        return "idle", f"{_workers(count('idle'))} idle; a job that waits begins in a moment"
    if usable:
        return "busy", f"{_workers(usable)} busy{_waiting(jobs.get('inQueue', 0))}"
    if count("initializing"):
        return "cold", f"{_workers(count('initializing'))} starting: a cold start, of a minute or more at first"
    if count("throttled"):
        sentence = (
            f"{_workers(count('throttled'))} throttled: RunPod has no GPU of this kind free. Wait, or allow more kinds "
            "of GPU in the endpoint's settings"
        )
        return "throttled", sentence
    if count("unhealthy"):
        return "unhealthy", f"{_workers(count('unhealthy'))} unhealthy: read its log in RunPod's console"
    return "no_worker", (
        "the endpoint has no worker yet. If it stays so, look at its maximum of workers: RunPod sets it to 0 after a "
        "week without requests"
    )


def _waiting(jobs: int) -> str:
    if not jobs:
        return "; no job waits"
    return f", and {'1 job waits' if jobs == 1 else f'{jobs} jobs wait'}; more workers would help (the endpoint's max)"


def _workers(count: int) -> str:
    return "1 worker is" if count == 1 else f"{count} workers are"


def request_error(error: RequestError, endpoint_id: str) -> RequestError:
    """Return the error of a call with what its status means on RunPod's queue routes."""
    said = words_of(error.body)
    told = f" ({said})" if said else ""
    if error.status in {401, 403}:
        return Unauthorized(
            f"RunPod refuses the API key for endpoint {endpoint_id}{told}. Look at RUNPOD_API_KEY, and if that key "
            "may use the endpoint (RunPod's console: Settings > API Keys)",
            code=ErrorCode.AUTH_FAILED,
            status=error.status,
            body=error.body,
        )
    if error.status == 404:  # noqa: PLR2004 - HTTP's own
        return RequestError(
            f"RunPod has no endpoint {endpoint_id}{told}. Copy the id from the console (Serverless), and look at "
            "RUNPOD_ENDPOINT_BASE_URL where it is set",
            code=ErrorCode.ENDPOINT_NOT_FOUND,
            status=error.status,
            body=error.body,
        )
    if error.status == 429:  # noqa: PLR2004 - HTTP's own
        return RequestError(
            f"RunPod takes no more requests for endpoint {endpoint_id} for now{told}; send less at once, or wait",
            code=ErrorCode.RATE_LIMITED,
            status=error.status,
            body=error.body,
            is_transient=True,
            is_unsent=True,
            retry_after_s=error.retry_after_s,
        )
    if error.status in {400, 413} and re.search("max body size|too large", error.body, re.IGNORECASE):
        return RequestError(
            f"RunPod refuses the request as too large{told}. {SMALLER}",
            code=ErrorCode.PAYLOAD_TOO_LARGE,
            status=error.status,
            body=error.body,
        )
    if said and error.status is not None:
        return RequestError(
            f"{error} {told.strip()}",
            status=error.status,
            body=error.body,
            is_transient=error.is_transient,
            retry_after_s=error.retry_after_s,
        )
    return error


SMALLER = (
    "Send the picture as an https address, or smaller (JPEG or WebP, fewer pixels); base64 makes it a third larger."
)


def words_of(body: str) -> str:
    """Return what an error's body says in words, shortly; nothing of a page of HTML."""
    match _parsed(body):
        case {"error": str(words)} | {"detail": str(words)} | {"message": str(words)} | {"title": str(words)}:
            return words[:_SHOWN]
        case None if body and "<" not in body[:200]:
            return body.strip()[:_SHOWN]
    return ""


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _seconds(milliseconds: object) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else None
