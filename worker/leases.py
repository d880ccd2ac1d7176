"""Tracks which jobs use ComfyUI and which of their prompts is running. No I/O.

ComfyUI runs prompts one at a time, in queue order. When it dies or hangs, the job whose prompt was running fails; the
other jobs are retried.
"""

from __future__ import annotations

import threading

from comfy_core.errors import JobError


class RetryJob(JobError):  # noqa: N818 - a control signal, not a failure
    """ComfyUI ended, but not because of this job, so the job can be retried on the new process."""


class Lease:
    """One job's use of one ComfyUI process. The job's thread updates the flags.

    Attributes:
        deaths: number of ComfyUI deaths when the lease began.
        first_line: number of the first ComfyUI log line written since the lease began.
        is_shared: whether another job used ComfyUI at the same time, so that log lines may be about that job.
        is_queued: whether the job has started to queue its prompts.
        has_started: whether ComfyUI reported that one of the prompts is running.
        has_run: whether all prompts have finished.
    """

    def __init__(self, deaths: int = 0, first_line: int = 0) -> None:
        self.deaths = deaths
        self.first_line = first_line
        self.is_shared = False
        self.is_queued = False
        self.has_started = False
        self.has_run = False


class Leases:
    """The active leases. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: list[Lease] = []
        self._queued: list[Lease] = []

    def begin(self, deaths: int, first_line: int, *, is_shared: bool = False) -> Lease:
        """Return a new lease; `end` must be called for it. Set `is_shared` if ComfyUI runs a prompt of an ended job."""
        lease = Lease(deaths, first_line)
        with self._lock:
            self._current.append(lease)
            if is_shared or len(self._current) > 1:
                for each in self._current:
                    each.is_shared = True
        return lease

    def note_queued(self, lease: Lease) -> None:
        """Record that the job starts to queue its prompts."""
        with self._lock:
            if not lease.is_queued:
                lease.is_queued = True
                self._queued.append(lease)

    def end(self, lease: Lease, *, may_still_run: bool = False) -> None:
        """Record that the job no longer uses ComfyUI. If `may_still_run`, its prompt may still be running."""
        with self._lock:
            self._current.remove(lease)
            if lease.is_queued and not (may_still_run and not lease.has_run):
                self._queued.remove(lease)

    def forget_ended(self) -> None:
        """Record that no prompt of a job whose lease has ended is still running."""
        with self._lock:
            self._queued = [lease for lease in self._queued if lease in self._current]

    @property
    def count(self) -> int:
        """Number of active leases."""
        with self._lock:
            return len(self._current)

    def running(self) -> Lease | None:
        """Return the lease whose prompt is running: the last one that started, otherwise the first one queued, or None.

        A node that holds the GIL can block ComfyUI from reporting that its prompt started.
        """
        with self._lock:
            unfinished = [lease for lease in self._queued if not lease.has_run]
        started = [lease for lease in unfinished if lease.has_started]
        return next(iter(started[-1:] or unfinished), None)
