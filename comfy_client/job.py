"""The poller of one job at its provider, as steps: how it stands, what happens to it, its result, its cancel.

Every wait ends: with the job's end, with the caller's time (WaitTimeout, which says what the endpoint is doing), or
with a provider that has not answered well for PATIENCE_S (RequestError).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from comfy_client.coroutines import Sleep
from comfy_client.providers.interface import GenerationResult, Health, JobState, JobStatus, Progress, Provider
from comfy_core.contract import ErrorCode
from comfy_core.errors import ComfyClientError, JobError, RequestError, WaitTimeout

PATIENCE_S = 60.0
"""How long a provider may not answer well while a job is followed."""
FETCH_PATIENCE_S = 10.0
"""The same for a bucket that has the result of a job which has ended."""
PROPAGATION_S = 30.0
"""How long after its submission a job may be unknown: RunPod's own client asks for 31 s.

Source: docs/reference/runpod.md#job-states.
"""
UNKNOWN_S = 2.0
"""The same for a job that was seen before, or whose submission was not ours: it is gone."""
HEALTH_AFTER_S = 3.0
"""How long a job waits before its watcher asks why; asked again as often, and twice as late each time."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Queued:
    """The job waits."""

    job_id: str


@dataclass(frozen=True)
class Waiting:
    """Why the job waits: `why` is a word of `Health.why`, and `sentence` says it."""

    why: str
    sentence: str


@dataclass(frozen=True)
class Running:
    """A worker has the job."""

    worker_id: str | None


@dataclass(frozen=True)
class Sampling:
    """Step `step` of `steps` of picture `picture` of `pictures`; `percent` is of the whole job."""

    picture: int
    pictures: int
    step: int
    steps: int
    percent: int


@dataclass(frozen=True)
class Preview:
    """A small picture (JPEG) of how far it is."""

    jpeg: bytes


@dataclass(frozen=True)
class ProviderUnavailable:
    """The provider does not answer well for now; it is asked again."""

    problem: str


@dataclass(frozen=True)
class Done:
    """The job ended well. A job that fails ends the events with its error instead."""

    result: GenerationResult


Event: TypeAlias = Queued | Waiting | Running | Sampling | Preview | ProviderUnavailable | Done


class JobPoller:
    """One job. `last` is how it stood when it was last looked at, at first by its submit's answer, if that was ours."""

    def __init__(self, provider: Provider, job_id: str, last: JobStatus | None = None) -> None:
        self.provider = provider
        self.id = job_id
        self.last = last
        self._is_new = last is not None
        """Whether its submit was ours, and it has not been seen since."""
        self._begun_at = time.monotonic()

    @property
    def progress(self) -> Progress | None:
        """How far the job was when it was last looked at."""
        return self.last.progress if self.last else None

    def status(self) -> Generator[Sleep, None, JobStatus]:
        """Return how the job stands. An end that was seen once is not asked for again."""
        return (yield from self._drop_events(self._look(time.monotonic() + PATIENCE_S)))

    def cancel(self, patience_s: float = PATIENCE_S) -> Generator[Sleep, None, None]:
        """End the job; one that has ended stays as it is. Asked again for up to `patience_s`."""
        ask = self._retrying(lambda: self.provider.cancel(self.id), time.monotonic() + patience_s)
        yield from self._drop_events(ask)

    def retry(self) -> Generator[Sleep, None, JobStatus]:
        """Start the job once more after it failed. Raises RequestError where it did not fail."""
        ask = self._retrying(lambda: self.provider.retry(self.id), time.monotonic())
        self.last = yield from self._drop_events(ask)
        return self.last

    def wait(self, timeout_s: float) -> Generator[Sleep, None, GenerationResult]:
        """Return what the job made. Raises JobError, RequestError, WaitTimeout."""
        yield from self._drop_events(self._poll(timeout_s))
        return (yield from self._drop_events(self._result()))

    def events(self, timeout_s: float) -> Generator[Sleep | Event, None, None]:
        """Yield what happens until the job's end. Raises as `wait` does."""
        before: JobStatus | None = None
        why = _WaitReasons(self.provider)
        if self.last is not None and self.last.state is JobState.QUEUED:
            yield Queued(self.id)
            before = self.last
        for told in self._poll(timeout_s):
            if isinstance(told, JobStatus):
                yield from _events_of_change(before, told)
                before = told
            else:
                yield told
            if before is not None and before.state is JobState.QUEUED:
                yield from why.news()
        yield Done((yield from self._result()))

    def _result(self) -> Generator[Sleep | ProviderUnavailable, None, GenerationResult]:
        """Return what the job made, of its last status. It may be fetched twice: nothing is changed by it."""
        status = self.last
        if status is None:
            raise RuntimeError("the job was never looked at")
        if status.error is not None:
            raise JobError.of(status.error, self.id)
        return (yield from self._retrying(lambda: self.provider.result(status), time.monotonic() + FETCH_PATIENCE_S))

    def _poll(self, timeout_s: float) -> Generator[Sleep | ProviderUnavailable | JobStatus, None, JobStatus]:
        """Yield each change of the job until its end, and return that. Looks once even where there is no time left."""
        deadline = time.monotonic() + timeout_s
        changed_at = time.monotonic()
        seen: JobStatus | None = None
        while True:
            try:
                status = yield from self._look(deadline)
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

    def _look(self, deadline: float) -> Generator[Sleep | ProviderUnavailable, None, JobStatus]:
        if self.last is not None and self.last.state.is_final:
            return self.last
        self.last = yield from self._retrying(lambda: self.provider.status(self.id), deadline)
        self._is_new = False
        return self.last

    def _retrying(self, ask: Callable[[], _T], deadline: float) -> Generator[Sleep | ProviderUnavailable, None, _T]:
        """Ask until there is an answer: all that is asked here may be asked twice, and only transient errors are."""
        begun_at = time.monotonic()
        attempt = 0
        while True:
            try:
                return ask()
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
        return self._begun_at + PROPAGATION_S if self._is_new else begun_at + UNKNOWN_S

    def _drop_events(self, steps: Generator[object, None, _T]) -> Generator[Sleep, None, _T]:
        """Do the steps without what they tell."""
        try:
            while True:
                told = next(steps)
                if isinstance(told, Sleep):
                    yield told
        except StopIteration as end:
            answer: _T = end.value
            return answer
        finally:
            steps.close()

    def _timeout(self, timeout_s: float, problem: str = "") -> WaitTimeout:
        """Return the error that says what the endpoint is doing, where it can be asked."""
        state = self.last.state.value if self.last else "unknown"
        health = None if problem else _health(self.provider)
        if self.last is not None and self.last.state is JobState.RUNNING:
            progress = self.progress
            doing = f"; it runs, {progress.percent}% done" if progress else "; it runs"
        elif problem:
            doing = f"; {problem}"
        else:
            doing = f"; {health.sentence}" if health else "; the endpoint does not say what it is doing"
        when = f"after {timeout_s:.3g} s" if timeout_s else "yet"
        return WaitTimeout(
            f"Job {self.id} has not ended {when}{doing}. It goes on: wait for it again with its id, or cancel it",
            self.id,
            state=state,
            workers=dict(health.workers) if health else {},
            why=health.why if health else "",
        )


def backoff_s(attempt: int, asked_s: float | None = None) -> float:
    """Return the pause behind an attempt (the first is 0): 0.5 s, doubled each time up to 8 s, or what was asked."""
    return asked_s if asked_s is not None else min(8.0, 0.5 * 2.0**attempt)


def _is_transient(error: ComfyClientError) -> bool:
    return error.code is ErrorCode.JOB_EXPIRED or (isinstance(error, RequestError) and error.is_transient)


def _health(provider: Provider) -> Health | None:
    try:
        return provider.health()
    except ComfyClientError:
        return None


class _WaitReasons:
    """Asks now and then why a job waits, and tells what is new."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._pause_s = HEALTH_AFTER_S
        self._asked_at = time.monotonic()
        self._told: Waiting | None = None

    def news(self) -> Generator[Waiting, None, None]:
        if time.monotonic() - self._asked_at < self._pause_s:
            return
        health = _health(self._provider)
        self._asked_at = time.monotonic()
        self._pause_s = min(30.0, 2 * self._pause_s)
        if health is not None and (told := Waiting(health.why, health.sentence)) != self._told:
            self._told = told
            yield told


def _events_of_change(before: JobStatus | None, now: JobStatus) -> Generator[Event, None, None]:
    """Yield what a change of a job's status means."""
    was = before.state if before else None
    if now.state is JobState.QUEUED and was is not JobState.QUEUED:
        yield Queued(now.job_id)
    ran_unseen = was is JobState.QUEUED and now.state is JobState.SUCCEEDED
    if ran_unseen or (now.state is JobState.RUNNING and was is not JobState.RUNNING):
        yield Running(now.worker_id)
    progress, earlier = now.progress, before.progress if before else None
    if progress is None:
        return
    if progress.steps and _place(progress) != (_place(earlier) if earlier else None):
        yield Sampling(*_place(progress))
    if progress.preview is not None and progress.preview != (earlier.preview if earlier else None):
        yield Preview(progress.preview)


def _place(progress: Progress) -> tuple[int, int, int, int, int]:
    return progress.picture, progress.pictures, progress.step, progress.steps, progress.percent
