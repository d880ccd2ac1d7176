"""Tracks the state of the ComfyUI that jobs run on: whether it is available, and which job's prompt ended it.

`comfyui_process` has the class for the worker's own ComfyUI. A ComfyUI at COMFYUI_URL cannot be restarted from here:
jobs fail immediately while it does not respond.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from comfy_core.comfyui.server import ComfyServer
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from worker.comfyui_log import ComfyLog
from worker.leases import Lease, Leases, RetryJob
from worker.watchdog import HUNG_S, PROBE_EVERY_S, Watchdog

_POLL_S = 0.05

log = logging.getLogger(__name__)


class Cause(Enum):
    """The reason why ComfyUI ended."""

    DIED = "died"
    HUNG = "hung"
    STUCK = "stuck"
    """It was killed because a prompt kept running after an interrupt."""


@dataclass(frozen=True)
class Death:
    """The end of a local ComfyUI, or a hang of a remote one. `culprit`: the lease whose prompt was running, if any."""

    cause: Cause
    culprit: Lease | None

    def error(self, log_tail: list[str]) -> JobError:
        """Return the error for the job whose prompt was running."""
        details = {"log_tail": log_tail} if log_tail else {}
        if self.cause is Cause.HUNG:
            return JobError.because(
                ErrorCode.EXECUTION_FAILED,
                "The graph made ComfyUI hang: it did not respond while this job ran. A node never released the GIL, "
                "for example in a backtracking regular expression.",
                reason="comfyui_hung",
                **details,
            )
        return JobError.because(ErrorCode.COMFYUI_UNAVAILABLE, "ComfyUI died while it ran the job", **details)


class ManagedComfyUI(Protocol):
    """The interface through which the handler uses a ComfyUI."""

    def rejection_error(self) -> JobError | None:
        """Return the error for a new job if ComfyUI is unusable."""

    def begin_lease(self, *, is_shared: bool) -> Lease:
        """Return a new lease; `end_lease` must be called for it.

        Set `is_shared` if ComfyUI still runs a prompt of an earlier job.
        """

    def note_queued(self, lease: Lease) -> None:
        """Record that the job starts to queue its prompts."""

    def end_lease(self, lease: Lease) -> None:
        """Record that the job no longer uses ComfyUI."""

    def await_available(self, stop_error: Callable[[], JobError | None]) -> None:
        """Return when ComfyUI is available. Raises JobError if it never will be, or the error of `stop_error`."""

    def failure_of(self, lease: Lease) -> JobError | None:
        """Return the error for the job of this lease if ComfyUI died or hung during the lease."""

    def was_ended(self, lease: Lease) -> bool:
        """Return whether ComfyUI has ended since the lease began. ComfyUI's queue is then lost."""

    def await_failure_of(
        self, lease: Lease, stop_error: Callable[[], JobError | None], at_least_s: float
    ) -> JobError | None:
        """Return the error of `failure_of` after waiting for the watchdog, or else the error of `stop_error`."""

    def abandon_error(self, lease: Lease | None) -> JobError | None:
        """Return the error for a job whose thread may wait much longer for ComfyUI, else None."""

    def note_success(self) -> None:
        """Record that a job succeeded."""

    def end_if_stuck(self, server: ComfyServer) -> None:
        """Kill ComfyUI after a delay if a prompt keeps running after an interrupt. Returns immediately."""


class ComfyUISupervisor:
    """Base class that tracks the leases, and the deaths in order."""

    def __init__(self, log: ComfyLog | None = None) -> None:
        self.log = log or ComfyLog()
        self._leases = Leases()
        self._deaths: list[Death] = []
        self._watchdog: Watchdog | None = None
        self._succeeded_after = -1

    @property
    def deaths(self) -> int:
        """The number of times that ComfyUI has died, or hung if it is remote."""
        return len(self._deaths)

    @property
    def has_succeeded(self) -> bool:
        """Whether a job has succeeded since the last death."""
        return self._succeeded_after == self.deaths

    def note_success(self) -> None:
        """Record that a job succeeded."""
        self._succeeded_after = self.deaths

    def begin_lease(self, *, is_shared: bool = False) -> Lease:
        """Return a new lease; `end_lease` must be called for it."""
        if not self._is_silent():
            self._leases.forget_ended()
        return self._leases.begin(self.deaths, self.log.next_line, is_shared=is_shared)

    def note_queued(self, lease: Lease) -> None:
        """Record that the job starts to queue its prompts."""
        self._leases.note_queued(lease)

    def end_lease(self, lease: Lease) -> None:
        """Record that the job no longer uses ComfyUI. While ComfyUI is silent, the job's prompt may still run."""
        self._leases.end(lease, may_still_run=self._is_silent())

    def failure_of(self, lease: Lease) -> JobError | None:
        """Return the error for the job if ComfyUI ended during its lease: RetryJob if another job ended ComfyUI."""
        if self.deaths == lease.deaths:
            return None
        death = self._deaths[lease.deaths]
        if death.culprit is lease:
            return death.error(self.log.excerpt_for(lease))
        return RetryJob.because(ErrorCode.COMFYUI_UNAVAILABLE, "Another job ended ComfyUI before this one ran")

    def await_failure_of(
        self, lease: Lease, stop_error: Callable[[], JobError | None], at_least_s: float
    ) -> JobError | None:
        """Return the result of `failure_of`. While ComfyUI does not respond, wait for the watchdog's decision.

        A job that has lost its connection waits `at_least_s`, so that a death of ComfyUI is recorded. An error of
        `stop_error` ends the wait.
        """
        deadline = time.monotonic() + at_least_s
        while self.deaths == lease.deaths and (time.monotonic() < deadline or self._is_silent()):
            if error := stop_error():
                return error
            time.sleep(_POLL_S)
        return self.failure_of(lease)

    def _is_silent(self) -> bool:
        """Return whether ComfyUI accepts connections but does not respond, so that the watchdog will decide soon."""
        watchdog = self._watchdog
        return watchdog is not None and watchdog.is_connecting and watchdog.no_response_s > 2 * PROBE_EVERY_S


class RemoteComfyUI(ComfyUISupervisor):
    """A ComfyUI at COMFYUI_URL. Call `start` before use and `stop` at the end."""

    def __init__(self, url: str, hung_s: float = HUNG_S) -> None:
        super().__init__()
        self._url = url
        self._hung_s = hung_s
        self._stopping = threading.Event()
        self._is_hung = False

    def start(self) -> None:
        """Start monitoring ComfyUI."""
        threading.Thread(target=self._watch, name="comfyui-watch", daemon=True).start()

    def stop(self) -> None:
        """Stop monitoring ComfyUI."""
        self._stopping.set()

    def rejection_error(self) -> JobError | None:
        """Return the error for every job while ComfyUI hangs."""
        if not self._is_hung:
            return None
        problem = "ComfyUI hangs and must be restarted: it accepts connections but does not respond"
        return JobError.because(ErrorCode.COMFYUI_UNAVAILABLE, problem)

    def await_available(self, _stop_error: Callable[[], JobError | None]) -> None:
        """Raise JobError while ComfyUI hangs."""
        if error := self.rejection_error():
            raise error

    def failure_of(self, lease: Lease) -> JobError | None:
        """Return the error for a job during which ComfyUI hung. No job is retried: ComfyUI cannot be restarted here."""
        error = super().failure_of(lease)
        return (self.rejection_error() or JobError(error.report)) if isinstance(error, RetryJob) else error

    def was_ended(self, _lease: Lease) -> bool:
        """Return False: a remote ComfyUI may continue its queue after a hang."""
        return False

    def abandon_error(self, lease: Lease | None) -> JobError | None:
        """Return the error for a job while ComfyUI hangs. The job's thread would wait until a timeout."""
        return self.rejection_error() if lease is None else self.failure_of(lease)

    def end_if_stuck(self, server: ComfyServer) -> None:
        """Do nothing: this worker cannot kill a remote ComfyUI."""

    def _watch(self) -> None:
        watchdog = Watchdog(self._url, self._hung_s)
        self._watchdog = watchdog
        while watchdog.await_hang(self._stopping.is_set):
            if watchdog.is_connecting:  # otherwise connections are refused, and every call fails immediately
                log.error("ComfyUI hangs: no response for %.0f s", watchdog.no_response_s)
                self._is_hung = True
                self._deaths.append(Death(Cause.HUNG, self._leases.running()))
                self._leases.forget_ended()
            while not self._stopping.is_set() and not watchdog.probe():
                self._stopping.wait(PROBE_EVERY_S)
            self._is_hung = False
            log.warning("ComfyUI responds again")
