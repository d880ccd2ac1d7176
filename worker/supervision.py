"""What a job needs to know of the ComfyUI that it runs on: whether it can be used, and what ended the job's use of it.

One of the worker's own is in `comfyui_process`. One that runs elsewhere (COMFYUI_URL) cannot be started again from
here: jobs fail at once for as long as it does not answer.
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
from comfy_core.contract import ErrorCode
from comfy_core.errors import JobError
from worker.comfyui_log import ComfyLog
from worker.leases import Lease, Leases, RetryJob
from worker.watchdog import HUNG_S, PROBE_EVERY_S, Watchdog

_POLL_S = 0.05

log = logging.getLogger(__name__)


class Cause(Enum):
    """What ended a ComfyUI."""

    DIED = "died"
    HUNG = "hung"
    STUCK = "stuck"
    """It was killed, as a prompt went on although it was interrupted."""


@dataclass(frozen=True)
class Death:
    """An end of ComfyUI, or a hang of one that cannot be ended. `culprit` is the use whose prompt ran, if one did."""

    cause: Cause
    culprit: Lease | None

    def error(self, log_tail: list[str]) -> JobError:
        """Return the error for the job whose prompt ran."""
        details = {"log_tail": log_tail} if log_tail else {}
        if self.cause is Cause.HUNG:
            return JobError.because(
                ErrorCode.EXECUTION_FAILED,
                "The graph made ComfyUI hang: it answered nothing while this job ran. A node never gave back Python's "
                "interpreter, such as a regular expression that backtracks. Change the graph: it will hang again.",
                reason="comfyui_hung",
                **details,
            )
        message = "ComfyUI died while it ran the job. Send the job again."
        return JobError.because(ErrorCode.COMFYUI_UNAVAILABLE, message, **details)


class ManagedComfyUI(Protocol):
    """A ComfyUI, as the handler sees it."""

    def refusal(self) -> JobError | None:
        """Return the error for a job that cannot even begin."""

    def begin_lease(self, *, is_shared: bool) -> Lease:
        """Return a new use of ComfyUI, which `end_lease` must end. `is_shared`: whether something else runs in it."""

    def note_queued(self, lease: Lease) -> None:
        """Note that the job begins to queue its prompts."""

    def end_lease(self, lease: Lease) -> None:
        """Note that a job uses ComfyUI no more."""

    def await_available(self, stop: Callable[[], JobError | None]) -> None:
        """Return when ComfyUI can be used. Raises JobError if it cannot, and what `stop` returns."""

    def failure_of(self, lease: Lease) -> JobError | None:
        """Return the error for a job whose use of ComfyUI has ended."""

    def was_ended(self, lease: Lease) -> bool:
        """Whether the process that the job used has ended, and its queue with it."""

    def await_failure_of(self, lease: Lease, stop: Callable[[], JobError | None], at_least_s: float) -> JobError | None:
        """Return what `failure_of` returns, after a wait if ComfyUI does not answer at this moment."""

    def abandon_error(self, lease: Lease | None) -> JobError | None:
        """Return the error for a job whose thread may wait for ComfyUI's answer much longer."""

    def note_success(self) -> None:
        """Note that a job has succeeded."""

    def end_if_stuck(self, server: ComfyServer) -> None:
        """Kill ComfyUI after a while if a prompt goes on although it was interrupted. Returns at once."""


class ComfyUISupervisor:
    """The part that both kinds have in common: the uses, and the deaths in their order."""

    def __init__(self, log: ComfyLog | None = None) -> None:
        self.log = log or ComfyLog()
        self._leases = Leases()
        self._deaths: list[Death] = []
        self._watchdog: Watchdog | None = None

    @property
    def deaths(self) -> int:
        """How often ComfyUI has died, or hung where it runs elsewhere."""
        return len(self._deaths)

    def begin_lease(self, *, is_shared: bool = False) -> Lease:
        """Return a new use of ComfyUI, which `end_lease` must end."""
        if not self._is_silent():
            self._leases.forget_ended()
        return self._leases.begin(self.deaths, self.log.next_line, is_shared=is_shared)

    def note_queued(self, lease: Lease) -> None:
        """Note that the job begins to queue its prompts."""
        self._leases.note_queued(lease)

    def end_lease(self, lease: Lease) -> None:
        """Note that a job uses ComfyUI no more. While ComfyUI does not answer, its prompt may be the one that hangs."""
        self._leases.end(lease, may_run_on=self._is_silent())

    def failure_of(self, lease: Lease) -> JobError | None:
        """Return the error for a job whose use of ComfyUI has ended: RetryJob if another job was the cause."""
        if self.deaths == lease.deaths:
            return None
        death = self._deaths[lease.deaths]
        if death.culprit is lease:
            return death.error(self.log.excerpt_for(lease))
        message = "ComfyUI was ended by another job before this one ran. Send the job again."
        return RetryJob.because(ErrorCode.COMFYUI_UNAVAILABLE, message)

    def await_failure_of(self, lease: Lease, stop: Callable[[], JobError | None], at_least_s: float) -> JobError | None:
        """Return what `failure_of` returns; while ComfyUI does not answer, the watchdog's verdict is waited for.

        `at_least_s`: how long a death may take to be noted, where the job has seen signs of one.
        """
        deadline = time.monotonic() + at_least_s
        while self.deaths == lease.deaths and (time.monotonic() < deadline or self._is_silent()):
            if error := stop():
                return error
            time.sleep(_POLL_S)
        return self.failure_of(lease)

    def _is_silent(self) -> bool:
        """Whether ComfyUI lives and does not answer, so that the watchdog will soon say whether it hangs."""
        watchdog = self._watchdog
        return watchdog is not None and watchdog.is_connecting and watchdog.unanswered_s > 2 * PROBE_EVERY_S


class RemoteComfyUI(ComfyUISupervisor):
    """A ComfyUI that runs elsewhere. `start` watching it before use, `stop` it at the end."""

    def __init__(self, url: str, hung_s: float = HUNG_S) -> None:
        super().__init__()
        self._url = url
        self._hung_s = hung_s
        self._stopping = threading.Event()
        self._is_hung = False

    def start(self) -> None:
        """Watch ComfyUI from now on."""
        threading.Thread(target=self._watch, name="comfyui-watch", daemon=True).start()

    def stop(self) -> None:
        """Watch it no more."""
        self._stopping.set()

    def refusal(self) -> JobError | None:
        """Return the error for every job while ComfyUI hangs."""
        if not self._is_hung:
            return None
        message = "ComfyUI does not answer: it accepts connections, and hangs. Start it again, and send the job again."
        return JobError.because(ErrorCode.COMFYUI_UNAVAILABLE, message)

    def await_available(self, _stop: Callable[[], JobError | None]) -> None:
        """Raise JobError while ComfyUI hangs."""
        if error := self.refusal():
            raise error

    def failure_of(self, lease: Lease) -> JobError | None:
        """Return the error for a job during which ComfyUI hung. It cannot be run again here."""
        error = super().failure_of(lease)
        return (self.refusal() or JobError(error.report)) if isinstance(error, RetryJob) else error

    def was_ended(self, _lease: Lease) -> bool:
        """It may go on with its queue after a hang."""
        return False

    def abandon_error(self, lease: Lease | None) -> JobError | None:
        """Return the error for a job while ComfyUI hangs; its thread waits for an answer until a timeout."""
        return self.refusal() if lease is None else self.failure_of(lease)

    def note_success(self) -> None:
        """Nothing depends on it."""

    def end_if_stuck(self, server: ComfyServer) -> None:
        """It is not this worker's to kill."""

    def _watch(self) -> None:
        watchdog = Watchdog(self._url, self._hung_s)
        self._watchdog = watchdog
        while watchdog.await_hang(self._stopping.is_set):
            if watchdog.is_connecting:  # else it is gone, which every call finds out at once
                log.error("ComfyUI has not answered for %.0f s: it hangs", watchdog.unanswered_s)
                self._is_hung = True
                self._deaths.append(Death(Cause.HUNG, self._leases.running()))
                self._leases.forget_ended()
            while not self._stopping.is_set() and not watchdog.ask():
                self._stopping.wait(PROBE_EVERY_S)
            self._is_hung = False
            log.warning("ComfyUI answers again")
