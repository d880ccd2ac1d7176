"""Parsers for the responses of RunPod's queue API. No I/O.

Facts (docs/reference/runpod.md#job-states):

- Times are milliseconds. Every field may be absent. Unknown states and keys must be tolerated.
- While a job is IN_PROGRESS, `output` is its latest progress.
- COMPLETED without `output` means that the result was dropped, usually because it was too large.
- `error` is text: an ErrorReport of this project's worker, the JSON of an uncaught exception of another worker, or
  RunPod's own message.
- The body of an HTTP error is JSON, text, or an HTML page of Cloudflare.
"""

from __future__ import annotations

import json
import re
from dataclasses import fields

from comfy_client.providers.interface import Health, JobState, JobStatus
from comfy_core.contract import ErrorReport, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import RequestError
from comfy_core.http import error_message
from comfy_core.progress import Progress, Sampling
from comfy_core.request.encoded import decode_base64

_STATES = {
    "IN_QUEUE": JobState.QUEUED,
    "IN_PROGRESS": JobState.RUNNING,
    "COMPLETED": JobState.SUCCEEDED,
    "FAILED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
    "TIMED_OUT": JobState.TIMED_OUT,
    "EXPIRED": JobState.EXPIRED,
}
_MAX_MESSAGE = 300


def read_status(body: object) -> JobStatus | None:
    """Return the status of a job, or None if `body` is not RunPod's job object. An unknown state counts as running."""
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
            problem = "The job succeeded, but RunPod has no result: it drops results larger than about 10 MB"
            return ErrorReport.because(ErrorCode.RESULT_LOST, problem)
        case JobState.FAILED:
            return read_error(job.get("error"))
        case JobState.CANCELLED:
            return ErrorReport.because(ErrorCode.CANCELLED)
        case JobState.TIMED_OUT:
            after_s = _seconds(job.get("executionTime"))
            problem = "RunPod stopped the job after its execution timeout"
            return ErrorReport.because(ErrorCode.DEADLINE_EXCEEDED, problem, after_s=after_s)
        case JobState.EXPIRED:
            return expired(job_id)
    return None


def read_error(error: object) -> ErrorReport:
    """Parse the `error` of a FAILED job."""
    if not isinstance(error, str) or not error:
        return ErrorReport(
            ErrorCode.UNRECOGNIZED, "RunPod reports that the job failed, without a reason.", {"error": error}
        )
    if re.fullmatch(r"job timed out after \d+ retries", error):
        return ErrorReport.because(ErrorCode.WORKER_LOST, error=error)
    match _parsed(error):
        case {"error_type": str(kind), "error_message": str(message)}:
            # An uncaught exception. Its traceback has paths of the worker, and is dropped.
            problem = f"The worker raised {kind}: {message[:_MAX_MESSAGE]}"
            return ErrorReport.because(ErrorCode.INTERNAL, problem, error_type=kind)
    return ErrorReport.from_json(error)


def expired(job_id: str) -> ErrorReport:
    """Return the error report for a job that RunPod does not know."""
    return ErrorReport.because(
        ErrorCode.JOB_EXPIRED,
        f"RunPod does not know the job {job_id}, or has deleted it: it keeps a result for 30 minutes (1 minute if the "
        "submit waited for it), and deletes a job after its ttl",
    )


def read_progress(output: object) -> Progress | None:
    """Return the progress that this project's worker posts (worker/progress.py), or None for any other output."""
    match output:
        case {"stage": str(stage), **rest}:
            numbers = {
                name: value
                for name in (*(each.name for each in fields(Sampling)), "done_bytes", "total_bytes")
                if isinstance(value := rest.get(name), int)
            }
            return Progress(stage=stage, preview=_preview(rest.get("preview")), **numbers)
    return None


def _preview(text: object) -> bytes | None:
    try:
        return decode_base64(text) if isinstance(text, str) else None
    except ValueError:
        return None


def read_health(body: object) -> Health:
    """Parse the response of /health, and derive why a job may have to wait."""
    jobs: JsonObject = {}
    workers: JsonObject = {}
    match body:
        case {"jobs": dict(jobs), "workers": dict(workers)}:
            pass
    worker_counts = {str(name): count for name, count in workers.items() if isinstance(count, int)}
    job_counts = {str(name): count for name, count in jobs.items() if isinstance(count, int)}
    why, sentence = _why(worker_counts, job_counts)
    return Health(job_counts, worker_counts, why, sentence)


def _why(workers: dict[str, int], jobs: dict[str, int]) -> tuple[str, str]:
    def count(state: str) -> int:
        return workers.get(state, 0)

    usable = max(count("ready"), count("idle") + count("running"))
    if count("idle"):
        return "idle", f"{_workers(count('idle'))} idle; a queued job starts in a moment"
    if usable:
        return "busy", f"{_workers(usable)} busy{_waiting(jobs.get('inQueue', 0))}"
    if count("initializing"):
        return "cold", f"{_workers(count('initializing'))} starting: a cold start, which may take a minute or more"
    if count("throttled"):
        sentence = (
            f"{_workers(count('throttled'))} throttled: RunPod has no free GPU of the allowed types. Wait, or allow "
            "more GPU types in the endpoint's settings"
        )
        return "throttled", sentence
    if count("unhealthy"):
        return "unhealthy", f"{_workers(count('unhealthy'))} unhealthy: read its log in RunPod's console"
    return "no_worker", (
        "the endpoint has no worker yet. If this does not change, check its maximum number of workers: RunPod sets it "
        "to 0 after a week without requests"
    )


def _waiting(jobs: int) -> str:
    if not jobs:
        return "; no job is queued"
    return f", {'1 job is' if jobs == 1 else f'{jobs} jobs are'} queued; raise the endpoint's maximum number of workers"


def _workers(count: int) -> str:
    return "1 worker is" if count == 1 else f"{count} workers are"


def request_error(error: RequestError, endpoint_id: str) -> RequestError:
    """Return the error of a failed call, with the cause and the remedy for its HTTP status on RunPod's queue API."""
    detail = error_message(error.body)
    note = f" ({detail})" if detail else ""
    code, problem = error.code, f"{error}{note}"
    match error.status:
        case None:
            return error
        case 401 | 403:
            code = ErrorCode.AUTH_FAILED
            problem = f"RunPod rejected the API key for endpoint {endpoint_id}{note}"
        case 404:
            code, problem = ErrorCode.ENDPOINT_NOT_FOUND, f"RunPod has no endpoint {endpoint_id}{note}"
        case 429:
            code, problem = ErrorCode.RATE_LIMITED, f"RunPod limits the requests to endpoint {endpoint_id}{note}"
        case 400 | 413 if re.search("max body size|too large", error.body, re.IGNORECASE):
            code, problem = ErrorCode.PAYLOAD_TOO_LARGE, f"RunPod rejected the request as too large{note}"
    message = problem if code is error.code else code.message(problem)
    return error.explained(message, code, is_unsent=error.status == 429)  # noqa: PLR2004 - an HTTP status


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _seconds(milliseconds: object) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else None
