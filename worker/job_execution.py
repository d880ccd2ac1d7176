"""One job in its thread, from its ticket to its result or its error report.

A job whose ComfyUI was ended by another job is run again, from the request on. Nothing of it was delivered, so that is
safe.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from comfy_core.comfyui.prompt_monitor import RunProgress
from comfy_core.contract import ErrorCode, ErrorReport, JsonObject
from comfy_core.errors import ComfyUIBroken, JobError, RequestError
from worker import logs
from worker.disk import sweep
from worker.jobs import Control, Worker, run_job
from worker.leases import Lease, RetryJob
from worker.lifecycle import Lifecycle
from worker.progress import progress_of
from worker.prompt_order import Ticket, TicketLock
from worker.supervision import ManagedComfyUI, RemoteComfyUI

MAX_RUNS = 3
"""How often a job is run at most, as ComfyUI can be ended by other jobs again and again."""
MAX_FAILURES = 3
"""Jobs in a row that fail because of ComfyUI or its disk, before the worker retires."""
DEATH_S = 2.0
"""How long after a lost connection the death of ComfyUI may be noted."""
_OF_THE_DISK = frozenset({ErrorCode.DISK_FULL, ErrorCode.COMFYUI_UNAVAILABLE, ErrorCode.EXECUTION_FAILED})
"""Codes that a full disk can be behind."""

log = logging.getLogger(__name__)

Report = Callable[[JsonObject], None]


def make_threads(jobs: int) -> ThreadPoolExecutor:
    """Return threads for so many jobs in hand; further ones wait, in the order in which they came."""
    return ThreadPoolExecutor(jobs, thread_name_prefix="job")


class Failures:
    """Counts the jobs in a row that failed because of ComfyUI or its disk, and has the worker retire in the end."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._count = 0

    def note(self, error: JobError) -> None:
        """Count an error, unless ComfyUI lives and refused this one job."""
        cause = error.__cause__
        is_answer = isinstance(cause, RequestError) and cause.status is not None
        if error.code is ErrorCode.DISK_FULL or (error.code is ErrorCode.COMFYUI_UNAVAILABLE and not is_answer):
            self._count += 1
            if self._count >= MAX_FAILURES:
                self._lifecycle.retire(f"{self._count} jobs in a row failed: {error.report.message}")

    def note_success(self) -> None:
        """Begin to count again."""
        self._count = 0


@dataclass(frozen=True)
class Service:
    """What the jobs of this process share, and what surrounds them.

    Attributes:
        full_disk: returns a sentence that names a disk which is full, if one is.
        longest_s: how long a job's thread may take in all. Every wait in it ends long before; one that goes on hangs in
            a library, and only the end of the process ends it.
        threads: where jobs run. asyncio's own would be shared with whoever else waits in a thread.
    """

    worker: Worker
    lifecycle: Lifecycle
    comfyui: ManagedComfyUI = field(default_factory=lambda: RemoteComfyUI(""))
    full_disk: Callable[[], str] = lambda: ""
    tickets: TicketLock = field(default_factory=TicketLock)
    threads: ThreadPoolExecutor = field(default_factory=lambda: make_threads(2))
    longest_s: float = 1800.0
    failures: Failures = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "failures", Failures(self.lifecycle))


class JobExecution:
    """One job. It takes its ticket when it is made."""

    def __init__(self, service: Service, job: Mapping[str, Any], report: Report) -> None:
        self._service = service
        self._job = job
        self._report = report
        self._job_id = str(job.get("id", "unknown"))[:256]
        self._lease: Lease | None = None
        self._ticket = service.tickets.take(self._stop)
        self._begun_at: float | None = None
        self.cancelled = threading.Event()

    @property
    def took_s(self) -> float:
        """How long the job has run in its thread; 0 while it waits for one."""
        return 0.0 if self._begun_at is None else time.monotonic() - self._begun_at

    def end(self) -> None:
        """Let later jobs pass: this one does not run in a thread."""
        self._ticket.end()

    def outcome(self) -> JsonObject:
        """Return the job's result, or its error. In its thread."""
        logs.job_id.set(self._job_id)
        self._begun_at = time.monotonic()
        try:
            result = self._run()
            log.info("done in %.2f s", self.took_s)
        except JobError as error:
            return self.failed(error)
        except Exception:
            log.exception("a bug")
            return self.bug()
        else:
            self._service.failures.note_success()
            return result
        finally:
            self._ticket.end()
            self._service.comfyui.end_if_stuck(self._service.worker.server)

    def failed(self, error: JobError) -> JsonObject:
        """Return an error as the job's outcome, and note it."""
        log.warning("%s after %.2f s", error.code.value, self.took_s)
        if not self.cancelled.is_set():  # else it was answered before its thread ended
            self._service.failures.note(error)
        try:
            return {"error": error.report.to_json()}
        except (TypeError, ValueError, RecursionError):  # a detail that is no JSON
            log.exception("a bug")
            return self.bug()

    def bug(self) -> JsonObject:
        """Return the error for what nobody foresaw."""
        message = f"A bug in the worker; its log has the traceback for job {self._job_id}."
        return {"error": ErrorReport(ErrorCode.INTERNAL, message).to_json()}

    def abandon_error(self) -> JobError | None:
        """Return the error for the job if its thread cannot be waited for. Not in its thread."""
        if self._begun_at is None and (error := self._service.lifecycle.stop_error()):
            return error
        return self._service.comfyui.abandon_error(self._lease)

    def _run(self) -> JsonObject:
        for _ in range(MAX_RUNS - 1):
            try:
                return self._run_once()
            except RetryJob:
                log.warning("ComfyUI was ended by another job; this one is run again")
        return self._run_once()

    def _run_once(self) -> JsonObject:
        service, comfyui = self._service, self._service.comfyui
        comfyui.await_available(self._stop)
        lease = self._lease = comfyui.begin_lease(is_shared=bool(service.worker.server.stuck_prompts))
        control = Control(self._stop, self._observe, _Queueing(self._ticket, comfyui, lease), self._note_run)
        try:
            result = run_job(service.worker, self._job, control)
        except ComfyUIBroken as error:
            service.lifecycle.retire(error.report.message)
            raise
        except JobError as error:
            raise self._explained(error, lease) from error.__cause__
        finally:
            self._lease = None
            comfyui.end_lease(lease)
        comfyui.note_success()
        return result

    def _observe(self, sampling: RunProgress) -> None:
        if self._lease is not None:
            self._lease.has_started = True
        self._report(progress_of(sampling))

    def _note_run(self) -> None:
        if self._lease is not None:
            self._lease.has_run = True

    def _explained(self, error: JobError, lease: Lease) -> JobError:
        """Return the error with what is known of ComfyUI and of the disk."""
        server = self._service.worker.server
        cause = error.__cause__
        if isinstance(cause, RequestError) and cause.status is None:
            error = self._service.comfyui.await_failure_of(lease, self._stop, DEATH_S) or error
        elif error.code is ErrorCode.DEADLINE_EXCEEDED:  # its prompt may be the one that makes ComfyUI hang
            error = self._service.comfyui.await_failure_of(lease, self._stop, 0) or error
        if self._service.comfyui.was_ended(lease):
            server.cleanup.note_restart()
        if error.code in _OF_THE_DISK and (problem := self._service.full_disk()):
            log.error("%s", problem)
            if not lease.is_shared and server.directory is not None:
                sweep(server.directory)
            return JobError.because(ErrorCode.DISK_FULL, f"{problem} Send the job again.")
        return error

    def _stop(self) -> JobError | None:
        if self.cancelled.is_set():
            return JobError.because(ErrorCode.CANCELLED, "The job was cancelled.")
        died = self._service.comfyui.failure_of(self._lease) if self._lease is not None else None
        return died or self._service.lifecycle.stop_error()


class _Queueing:
    """The ticket of a job, which notes when the job begins to queue its prompts."""

    def __init__(self, ticket: Ticket, comfyui: ManagedComfyUI, lease: Lease) -> None:
        self._ticket = ticket
        self._comfyui = comfyui
        self._lease = lease

    def __enter__(self) -> None:
        self._ticket.__enter__()
        self._comfyui.note_queued(self._lease)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ticket.__exit__(kind, error, trace)
