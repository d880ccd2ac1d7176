"""Runs one job in a thread, from request to result or error report.

If another job made ComfyUI die, this job is retried from the start. That is safe, because this job has not
delivered any output.
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

from comfy_core.contract import ErrorReport, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyUIBroken, JobError, RequestError
from comfy_core.progress import MODEL_STAGE, Progress
from comfy_core.request.models_task import is_models_task
from worker import logs
from worker.disk import delete_job_files
from worker.job_record import JobNotes
from worker.jobs import Control, Worker, run_job
from worker.leases import Lease, RetryJob
from worker.lifecycle import Lifecycle
from worker.models_task import run_models_task
from worker.progress import progress_output
from worker.prompt_order import Ticket, TicketLock
from worker.supervision import ManagedComfyUI, RemoteComfyUI

MAX_RUNS = 3
"""Maximum runs of one job, because other jobs can end ComfyUI repeatedly."""
MAX_FAILURES = 3
"""Number of consecutive jobs that fail because of ComfyUI or its disk, after which the worker retires."""
DEATH_DETECTION_S = 2.0
"""Seconds after a lost connection within which a death of ComfyUI is detected."""
_DISK_CODES = frozenset({ErrorCode.DISK_FULL, ErrorCode.COMFYUI_UNAVAILABLE, ErrorCode.EXECUTION_FAILED})
"""Error codes that a full disk can cause."""

log = logging.getLogger(__name__)

Report = Callable[[JsonObject], None]


def make_threads(jobs: int) -> ThreadPoolExecutor:
    """Return a pool for `jobs` concurrent jobs; further jobs wait in order of arrival."""
    return ThreadPoolExecutor(jobs, thread_name_prefix="job")


class FailureCounter:
    """Counts consecutive jobs that failed because of ComfyUI or its disk, and retires the worker at the limit."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._count = 0

    def note(self, error: JobError) -> None:
        """Count the error if the disk is full, or if ComfyUI is unavailable and sent no error response."""
        cause = error.__cause__
        was_rejected = isinstance(cause, RequestError) and cause.status is not None
        if error.code is ErrorCode.DISK_FULL or (error.code is ErrorCode.COMFYUI_UNAVAILABLE and not was_rejected):
            self._count += 1
            if self._count >= MAX_FAILURES:
                self._lifecycle.retire(f"{self._count} jobs in a row failed: {error.report.message}")

    def note_success(self) -> None:
        """Reset the count."""
        self._count = 0


@dataclass(frozen=True)
class Service:
    """What all jobs of this process share.

    Attributes:
        full_disk_problem: returns a sentence that names a full disk, or an empty string.
        max_job_s: maximum time of a job's thread. Every wait in the thread ends much sooner, so a thread that takes
            longer hangs in a library, and only the exit of the process ends it.
        threads: the pool for jobs. asyncio's default pool is shared with other code that blocks.
    """

    worker: Worker
    lifecycle: Lifecycle
    comfyui: ManagedComfyUI = field(default_factory=lambda: RemoteComfyUI(""))
    full_disk_problem: Callable[[], str] = lambda: ""
    tickets: TicketLock = field(default_factory=TicketLock)
    threads: ThreadPoolExecutor = field(default_factory=lambda: make_threads(2))
    max_job_s: float = 1800.0
    failures: FailureCounter = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "failures", FailureCounter(self.lifecycle))


class JobExecution:
    """The execution of one job. The constructor takes the job's ticket, so call it in the jobs' order of arrival."""

    def __init__(self, service: Service, job: Mapping[str, Any], report: Report) -> None:
        self._service = service
        self._job = job
        self._report = report
        self._job_id = str(job.get("id", "unknown"))[:256]
        self._lease: Lease | None = None
        self._ticket = service.tickets.take(self._stop_error)
        self._begun_at: float | None = None
        self.cancel_requested = threading.Event()
        """Set it to end the job."""
        self.notes = JobNotes()
        """What is known about the job so far, for its record in the log."""

    @property
    def duration_s(self) -> float:
        """Seconds since the job's thread started; 0 while it waits for a thread."""
        return 0.0 if self._begun_at is None else time.monotonic() - self._begun_at

    def release_ticket(self) -> None:
        """Release the job's ticket. Call it if the job never runs in a thread."""
        self._ticket.end()

    def run(self) -> JsonObject:
        """Run the job, and return its result or error. Call it in the job's thread."""
        logs.job_id.set(self._job_id)
        self._begun_at = time.monotonic()
        try:
            result = self._run_with_retries()
            log.info("done in %.2f s", self.duration_s)
        except JobError as error:
            return self.error_outcome(error)
        except Exception:
            log.exception("unexpected error: a bug in the worker")
            return self.bug_outcome()
        else:
            return result
        finally:
            self._ticket.end()
            self._service.comfyui.end_if_stuck(self._service.worker.server)

    def error_outcome(self, error: JobError) -> JsonObject:
        """Return an error as the job's outcome, and count it."""
        log.warning("%s after %.2f s", error.code.value, self.duration_s)
        if not self.cancel_requested.is_set():  # otherwise the response was already sent
            self._service.failures.note(error)
        try:
            return {"error": error.report.to_json()}
        except (TypeError, ValueError, RecursionError):  # a detail is not JSON
            log.exception("unexpected error: a bug in the worker")
            return self.bug_outcome()

    def bug_outcome(self) -> JsonObject:
        """Return the error `internal`, for a job with an unexpected exception or a thread that does not end."""
        problem = f"A bug in the worker. Its log has the traceback for job {self._job_id}."
        return {"error": ErrorReport.because(ErrorCode.INTERNAL, problem).to_json()}

    def abandon_error(self) -> JobError | None:
        """Return the error to send if the job's thread cannot be waited for, else None. Call it from another thread."""
        if self._begun_at is None and (error := self._service.lifecycle.stop_error()):
            return error
        return self._service.comfyui.abandon_error(self._lease)

    def _run_with_retries(self) -> JsonObject:
        if is_models_task(self._job.get("input")):
            self._ticket.end()
            return run_models_task(self._service.worker, self._job, Control(self._stop_error, self._observe))
        for _ in range(MAX_RUNS - 1):
            try:
                return self._run_once()
            except RetryJob:
                log.warning("another job ended ComfyUI; retrying this job")
        return self._run_once()

    def _run_once(self) -> JsonObject:
        service, comfyui = self._service, self._service.comfyui
        self.notes.runs += 1
        comfyui.await_available(self._stop_error)
        lease = self._lease = comfyui.begin_lease(is_shared=bool(service.worker.server.cleanup.stuck_prompts))
        turn = _Queueing(self._ticket, comfyui, lease)
        control = Control(self._stop_error, self._observe, turn, self._note_run, self._ticket.set_aside, self.notes)
        try:
            result = run_job(service.worker, self._job, control)
        except ComfyUIBroken as error:
            service.lifecycle.retire(error.report.message)
            raise
        except JobError as error:
            raise self._more_specific(error, lease) from error.__cause__
        finally:
            self._lease = None
            comfyui.end_lease(lease)
        comfyui.note_success()
        service.failures.note_success()
        return result

    def _observe(self, progress: Progress) -> None:
        if self._lease is not None and progress.stage != MODEL_STAGE:
            self._lease.has_started = True
        self._report(progress_output(progress))

    def _note_run(self) -> None:
        if self._lease is not None:
            self._lease.has_run = True

    def _more_specific(self, error: JobError, lease: Lease) -> JobError:
        """Return `error`, or a more specific error if ComfyUI's state or the disk explains it.

        If the disk is full and no other job uses ComfyUI, also delete the files that jobs left.
        """
        server = self._service.worker.server
        cause = error.__cause__
        if isinstance(cause, RequestError) and cause.status is None:
            error = self._service.comfyui.await_failure_of(lease, self._stop_error, DEATH_DETECTION_S) or error
        elif error.code is ErrorCode.DEADLINE_EXCEEDED:  # this job's prompt may have made ComfyUI hang
            error = self._service.comfyui.await_failure_of(lease, self._stop_error, 0) or error
        if self._service.comfyui.was_ended(lease):
            server.cleanup.note_restart()
        if error.code in _DISK_CODES and (problem := self._service.full_disk_problem()):
            log.error("%s", problem)
            if not lease.is_shared and server.directory is not None:
                delete_job_files(server.directory)
            return JobError.because(ErrorCode.DISK_FULL, problem)
        return error

    def _stop_error(self) -> JobError | None:
        if self.cancel_requested.is_set():
            return JobError.because(ErrorCode.CANCELLED)
        died = self._service.comfyui.failure_of(self._lease) if self._lease is not None else None
        return died or self._service.lifecycle.stop_error()


class _Queueing:
    """The job's ticket as a context manager. Entering it also records that the job starts to queue its prompts."""

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
