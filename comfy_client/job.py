"""Polls, cancels and retries one job. The generators of JobPoller are tasks for coroutines.py.

A wait ends when the job ends, when the caller's timeout passes (WaitTimeout, which reports the endpoint's health), when
a call of the provider fails with an error that is not transient or has failed for PATIENCE_S (RequestError), or when
the provider does not know the job (JobError, job_expired).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from comfy_client.coroutines import Sleep
from comfy_client.providers.interface import GenerationResult, Health, JobState, JobStatus, Provider
from comfy_core.backoff import backoff_s
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError, JobError, RequestError, WaitTimeout
from comfy_core.progress import Progress
from comfy_core.progress import Sampling as Sampling  # noqa: PLC0414 - callers import all events from this module

PATIENCE_S = 60.0
"""How long provider errors are tolerated while a job is polled."""
FETCH_PATIENCE_S = 10.0
"""How long errors are tolerated while the result of a finished job is downloaded."""
PROPAGATION_S = 30.0
"""How long after its submission a job may still be unknown to the provider. RunPod's own client retries for 31 s.

Source: docs/reference/runpod.md#job-states.
"""
UNKNOWN_JOB_S = 2.0
"""How long "unknown job" is retried for a job that was seen before, or that this process did not submit."""
HEALTH_AFTER_S = 3.0
"""How long a job is queued before the endpoint's health is requested. The interval doubles each time, up to 30 s."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Queued:
    """The job is in the queue."""

    job_id: str


@dataclass(frozen=True)
class Waiting:
    """Why the job is still queued: `why` is a value of `Health.why`, and `sentence` explains it."""

    why: str
    sentence: str


@dataclass(frozen=True)
class Running:
    """A worker has started the job."""

    worker_id: str | None


@dataclass(frozen=True)
class Downloading:
    """The worker has downloaded `done_bytes` of the models that the request names by address."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Preview:
    """A small JPEG preview of the unfinished image."""

    jpeg: bytes


@dataclass(frozen=True)
class ProviderUnavailable:
    """A call to the provider failed, and is retried."""

    problem: str


@dataclass(frozen=True)
class Done:
    """The job succeeded. If a job fails, its error is raised instead."""

    result: GenerationResult


Event: TypeAlias = Queued | Waiting | Running | Downloading | Sampling | Preview | ProviderUnavailable | Done
Observer: TypeAlias = Callable[[Event], None]


class JobPoller:
    """Polls one job.

    `last` is the job's last known status. At first, this is the response to the job's submission, or None if this
    process did not submit the job.
    """

    def __init__(self, provider: Provider, job_id: str, last: JobStatus | None = None) -> None:
        self.provider = provider
        self.id = job_id
        self.last = last
        self._is_new = last is not None
        """Whether this process submitted the job, and has not polled it yet."""
        self._begun_at = time.monotonic()

    @property
    def progress(self) -> Progress | None:
        """The progress at the last poll, or None if there is none."""
        return self.last.progress if self.last else None

    def status(self) -> Generator[Sleep, None, JobStatus]:
        """Return the job's status. A final status is cached."""
        return (yield from self._drop_events(self._refresh(time.monotonic() + PATIENCE_S)))

    def cancel(self, patience_s: float = PATIENCE_S) -> Generator[Sleep, None, None]:
        """Cancel the job. No effect on a finished job. A failed call is retried for up to `patience_s`."""
        cancelling = self._retrying(lambda: self.provider.cancel(self.id), time.monotonic() + patience_s)
        yield from self._drop_events(cancelling)

    def retry(self) -> Generator[Sleep, None, JobStatus]:
        """Start the job again under the same id. Raises RequestError unless the job failed or timed out."""
        retrying = self._retrying(lambda: self.provider.retry(self.id), time.monotonic())
        self.last = yield from self._drop_events(retrying)
        return self.last

    def wait(self, timeout_s: float) -> Generator[Sleep, None, GenerationResult]:
        """Return the job's result. Raises JobError, RequestError, WaitTimeout."""
        yield from self._drop_events(self._poll(timeout_s))
        return (yield from self._drop_events(self._result()))

    def events(self, timeout_s: float) -> Generator[Sleep | Event, None, None]:
        """Yield the job's events until the job ends. Raises the same errors as `wait`."""
        before: JobStatus | None = None
        reasons = _WaitReasons(self.provider)
        if self.last is not None and self.last.state is JobState.QUEUED:
            yield Queued(self.id)
            before = self.last
        for item in self._poll(timeout_s):
            if isinstance(item, JobStatus):
                yield from _events_of_change(before, item)
                before = item
            else:
                yield item
            if before is not None and before.state is JobState.QUEUED:
                yield from reasons.changed()
        yield Done((yield from self._result()))

    def _result(self) -> Generator[Sleep | ProviderUnavailable, None, GenerationResult]:
        """Return the result that belongs to the job's last status. Safe to retry: downloading changes nothing."""
        status = self.last
        if status is None:
            raise RuntimeError("the job was never polled")
        if status.error is not None:
            raise JobError.of(status.error, self.id)
        return (yield from self._retrying(lambda: self.provider.result(status), time.monotonic() + FETCH_PATIENCE_S))

    def _poll(self, timeout_s: float) -> Generator[Sleep | ProviderUnavailable | JobStatus, None, JobStatus]:
        """Yield each changed status, and return the final one. Polls at least once, even if `timeout_s` is 0."""
        deadline = time.monotonic() + timeout_s
        changed_at = time.monotonic()
        seen: JobStatus | None = None
        while True:
            try:
                status = yield from self._refresh(deadline)
            except (RequestError, JobError) as error:
                is_early = isinstance(error, RequestError) or self._is_new
                if is_early and _is_transient(error) and time.monotonic() >= deadline:
                    raise self._timeout(timeout_s, str(error)) from error
                raise
            if status != seen:
                changed_at = time.monotonic()
                seen = status
                yield status
            if status.state.is_final:
                return status
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise self._timeout(timeout_s)
            yield Sleep(min(left_s, self.provider.pause_s(time.monotonic() - changed_at)))

    def _refresh(self, deadline: float) -> Generator[Sleep | ProviderUnavailable, None, JobStatus]:
        if self.last is not None and self.last.state.is_final:
            return self.last
        self.last = yield from self._retrying(lambda: self.provider.status(self.id), deadline)
        self._is_new = False
        return self.last

    def _retrying(self, call: Callable[[], _T], deadline: float) -> Generator[Sleep | ProviderUnavailable, None, _T]:
        """Return what `call` returns. After a transient error, repeat `call` until `deadline`.

        `call` must be safe to repeat, unless `deadline` has already passed.
        """
        begun_at = time.monotonic()
        attempt = 0
        while True:
            try:
                return call()
            except ComfyClientError as error:
                left_s = min(deadline, self._retry_until(error, begun_at)) - time.monotonic()
                if not _is_transient(error) or left_s <= 0:
                    raise
                if isinstance(error, RequestError):
                    yield ProviderUnavailable(str(error))
                yield Sleep(min(left_s, backoff_s(attempt, getattr(error, "retry_after_s", None))))
                attempt += 1

    def _retry_until(self, error: ComfyClientError, begun_at: float) -> float:
        if isinstance(error, RequestError):
            return begun_at + PATIENCE_S
        return self._begun_at + PROPAGATION_S if self._is_new else begun_at + UNKNOWN_JOB_S

    def _drop_events(self, task: Generator[object, None, _T]) -> Generator[Sleep, None, _T]:
        """Yield only the Sleeps of a task, and return its result."""
        try:
            while True:
                item = next(task)
                if isinstance(item, Sleep):
                    yield item
        except StopIteration as end:
            result: _T = end.value
            return result
        finally:
            task.close()

    def _timeout(self, timeout_s: float, problem: str = "") -> WaitTimeout:
        """Return the error for an expired timeout, with the job's progress, `problem`, or the endpoint's health."""
        state = self.last.state.value if self.last else "unknown"
        health = None if problem else _health(self.provider)
        if self.last is not None and self.last.state is JobState.RUNNING:
            progress = self.progress
            activity = f"; it is running, {progress.percent}% done" if progress else "; it is running"
        elif problem:
            activity = f"; {problem}"
        else:
            activity = f"; {health.sentence}" if health else "; the endpoint's health is not available"
        when = f"after {timeout_s:.3g} s" if timeout_s else "yet"
        return WaitTimeout(
            f"Job {self.id} has not ended {when}{activity}",
            self.id,
            state=state,
            workers=dict(health.workers) if health else {},
            why=health.why if health else "",
        )


def _is_transient(error: ComfyClientError) -> bool:
    return error.code is ErrorCode.JOB_EXPIRED or (isinstance(error, RequestError) and error.is_transient)


def _health(provider: Provider) -> Health | None:
    try:
        return provider.health()
    except ComfyClientError:
        return None


class _WaitReasons:
    """Requests the endpoint's health from time to time, and yields a Waiting event if the reason has changed."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._pause_s = HEALTH_AFTER_S
        self._requested_at = time.monotonic()
        self._reported: Waiting | None = None

    def changed(self) -> Generator[Waiting, None, None]:
        if time.monotonic() - self._requested_at < self._pause_s:
            return
        health = _health(self._provider)
        self._requested_at = time.monotonic()
        self._pause_s = min(30.0, 2 * self._pause_s)
        if health is not None and (event := Waiting(health.why, health.sentence)) != self._reported:
            self._reported = event
            yield event


def _events_of_change(before: JobStatus | None, now: JobStatus) -> Generator[Event, None, None]:
    """Yield the events for a change from status `before` to status `now`."""
    was = before.state if before else None
    if now.state is JobState.QUEUED and was is not JobState.QUEUED:
        yield Queued(now.job_id)
    ran_between_polls = was is JobState.QUEUED and now.state is JobState.SUCCEEDED
    if ran_between_polls or (now.state is JobState.RUNNING and was is not JobState.RUNNING):
        yield Running(now.worker_id)
    progress, earlier = now.progress, before.progress if before else None
    if progress is None:
        return
    if progress.bytes_fields and progress.bytes_fields != (earlier.bytes_fields if earlier else None):
        yield Downloading(**progress.bytes_fields)
    if progress.steps and progress.sampling != (earlier.sampling if earlier else None):
        yield progress.sampling
    if progress.preview is not None and progress.preview != (earlier.preview if earlier else None):
        yield Preview(progress.preview)
