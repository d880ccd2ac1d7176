"""Parsers for the responses of Scenario's API. No I/O.

Facts (docs/reference/scenario.md#jobs):

- A record is wrapped: `{"job": {…}}`, `{"asset": {…}}`.
- A job has one of eight statuses, a progress from 0 to 1, and the times of its statuses. The job's `metadata` has the
  body of the request, the ids of the job's assets, and the reason of a failure.
- An asset's `metadata.seed` is text.
- Every field may be absent. Unknown fields must be tolerated.
- An error has `reason` or `message`, and `trace_id`.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from datetime import datetime

from comfy_client.providers.interface import JobState, JobStatus
from comfy_core.contract import ErrorReport, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.progress import Progress


class Status(enum.StrEnum):
    """Scenario's job statuses."""

    PENDING = "pending"
    QUEUED = "queued"
    WARMING_UP = "warming-up"
    IN_PROGRESS = "in-progress"
    FINALIZING = "finalizing"
    SUCCESS = "success"
    FAILURE = "failure"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return STATES[self].is_final


STATES: dict[str, JobState] = {
    Status.PENDING: JobState.QUEUED,
    Status.QUEUED: JobState.QUEUED,
    Status.WARMING_UP: JobState.QUEUED,
    Status.IN_PROGRESS: JobState.RUNNING,
    Status.FINALIZING: JobState.RUNNING,
    Status.SUCCESS: JobState.SUCCEEDED,
    Status.FAILURE: JobState.FAILED,
    Status.CANCELED: JobState.CANCELLED,
}
"""The client's state for each of Scenario's statuses. Any other status counts as running."""
_MAX_MESSAGE = 300


def read_job(response: object) -> JobStatus | None:
    """Return the status of a job, or None if the response is not a job.

    For a job that has ended, the status has Scenario's record of the job as `output`.
    """
    match response:
        case {"job": {"jobId": str(job_id), "status": str(name), **rest}} if job_id:
            job: JsonObject = {"jobId": job_id, "status": name, **{str(key): value for key, value in rest.items()}}
        case _:
            return None
    state = STATES.get(name, JobState.RUNNING)
    delay_s, execution_s = _times(job)
    return JobStatus(
        job_id=job_id,
        state=state,
        progress=_progress(job) if state is JobState.RUNNING else None,
        output=job if state.is_final else None,
        error=_error(state, job),
        delay_s=delay_s,
        execution_s=execution_s,
    )


def body_of(job: object) -> JsonObject:
    """Return the request body in a job's record, or an empty one if the record has none."""
    match job:
        case {"metadata": {"input": dict(body)}}:
            return body
    return {}


def asset_ids_of(job: object) -> list[str]:
    """Return the ids of the assets in a job's record, in order. Empty if the record has none."""
    match job:
        case {"metadata": {"assetIds": list(ids)}}:
            return [name for name in ids if isinstance(name, str) and name]
    return []


@dataclass(frozen=True)
class ScenarioAsset:
    """An image stored at Scenario: its URL, and its seed if the record has one."""

    asset_id: str
    url: str
    seed: int | None


def read_asset(response: object) -> ScenarioAsset | None:
    """Return the asset in a response, or None if the response is not an asset or has no URL."""
    match response:
        case {"asset": {"id": str(asset_id), "url": str(url), **rest}} if asset_id and url:
            return ScenarioAsset(asset_id, url, _seed(rest.get("metadata")))
    return None


def _seed(metadata: object) -> int | None:
    match metadata:
        case {"seed": str(text)} if text.isascii() and text.isdigit():
            return int(text)
        case {"seed": bool()}:
            return None
        case {"seed": int(number)}:
            return number
    return None


def _error(state: JobState, job: JsonObject) -> ErrorReport | None:
    if state is JobState.CANCELLED:
        return ErrorReport.because(ErrorCode.CANCELLED)
    if state is not JobState.FAILED:
        return None
    match job.get("metadata"):
        case {"error": str(reason), **rest} if reason:
            hint = rest.get("hint")
        case _:
            return ErrorReport(ErrorCode.UNRECOGNIZED, "Scenario reports that the job failed, without a reason.")
    more = f" ({hint[:_MAX_MESSAGE]})" if isinstance(hint, str) and hint else ""
    problem = f"Scenario's job failed: {reason[:_MAX_MESSAGE]}{more}"
    return ErrorReport.because(ErrorCode.EXECUTION_FAILED, problem, exception_type="Scenario")


def _progress(job: JsonObject) -> Progress:
    """Return a job's progress. Scenario reports only a fraction; the step is that fraction of the requested steps."""
    match job.get("progress"):
        case int(share) | float(share) if math.isfinite(share):
            done = min(1.0, max(0.0, share))
        case _:
            done = 0.0
    body = body_of(job)
    steps, num_images = body.get("numInferenceSteps"), body.get("numOutputs")
    whole = steps if isinstance(steps, int) else 0
    return Progress(
        pictures=num_images if isinstance(num_images, int) else 1,
        step=math.floor(done * whole),
        steps=whole,
        percent=math.floor(100 * done),
    )


def _times(job: JsonObject) -> tuple[float | None, float | None]:
    """Return how many seconds a job was queued and how many it ran, from the times of its statuses.

    A duration is None if its begin or its end is not recorded.
    """
    begun = _moment(job.get("createdAt"))
    started = ended = None
    history = job.get("statusHistory")
    for entry in history if isinstance(history, list) else []:
        match entry:
            case {"status": str(name), "date": date}:
                moment, state = _moment(date), STATES.get(name, JobState.RUNNING)
                begun = begun or moment
                if state is JobState.RUNNING:
                    started = started or moment
                elif state.is_final:
                    ended = moment
    return _between(begun, started), _between(started, ended)


def _between(begun: datetime | None, ended: datetime | None) -> float | None:
    if begun is None or ended is None or (begun.tzinfo is None) != (ended.tzinfo is None):
        return None
    return max(0.0, round((ended - begun).total_seconds(), 3))


def _moment(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None


def retry_after_s(body: object) -> float | None:
    """Return `remainingSeconds` of a 429's body, the time to wait (docs/reference/scenario.md#rate-limits), or None."""
    match body:
        case {"remainingSeconds": bool()}:
            return None
        case {"remainingSeconds": int(seconds) | float(seconds)} if 0 <= seconds < math.inf:
            return float(seconds)
    return None
