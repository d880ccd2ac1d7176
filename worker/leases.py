"""The jobs that use ComfyUI at this moment, and which of them it runs. No I/O.

ComfyUI runs prompts one at a time, in the order in which they were queued. When it dies or hangs, the job whose prompt
runs is the one that ends with an error; the others are run again.
"""

from __future__ import annotations

import threading

from comfy_core.errors import JobError


class RetryJob(JobError):  # noqa: N818 - an outcome, like JobCancelled
    """ComfyUI was ended by something else than this job: the job can be run again on the new one."""


class Lease:
    """One job's use of one ComfyUI process. Whoever runs the job sets the flags as it goes on.

    Attributes:
        deaths: how often ComfyUI had died when the use began.
        first_line: the number of the first line of ComfyUI's log that was written since.
        is_shared: whether another job used ComfyUI meanwhile, so that lines of its log may be about that one.
        is_queued: whether the job has begun to queue its prompts.
        has_started: whether ComfyUI has reported that it runs one of them.
        has_run: whether all of them have ended.
    """

    def __init__(self, deaths: int = 0, first_line: int = 0) -> None:
        self.deaths = deaths
        self.first_line = first_line
        self.is_shared = False
        self.is_queued = False
        self.has_started = False
        self.has_run = False


class Leases:
    """The uses that have begun and not ended. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: list[Lease] = []
        self._queued: list[Lease] = []

    def begin(self, deaths: int, first_line: int, *, is_shared: bool = False) -> Lease:
        """Return a new use, which `end` must end. `is_shared`: whether something else runs in ComfyUI already."""
        lease = Lease(deaths, first_line)
        with self._lock:
            self._current.append(lease)
            if is_shared or len(self._current) > 1:
                for each in self._current:
                    each.is_shared = True
        return lease

    def note_queued(self, lease: Lease) -> None:
        """Note that a job begins to queue its prompts."""
        with self._lock:
            if not lease.is_queued:
                lease.is_queued = True
                self._queued.append(lease)

    def end(self, lease: Lease, *, may_run_on: bool = False) -> None:
        """Note that a job uses ComfyUI no more. `may_run_on`: whether its prompt may run all the same."""
        with self._lock:
            self._current.remove(lease)
            if lease.is_queued and not (may_run_on and not lease.has_run):
                self._queued.remove(lease)

    def forget_ended(self) -> None:
        """Note that no prompt of a job that has ended runs on."""
        with self._lock:
            self._queued = [lease for lease in self._queued if lease in self._current]

    @property
    def count(self) -> int:
        """How many jobs use ComfyUI."""
        with self._lock:
            return len(self._current)

    def running(self) -> Lease | None:
        """Return the use whose prompt ComfyUI runs: the last that has started, else the first that was queued.

        A node that holds the interpreter can keep the report of its own start from being sent.
        """
        with self._lock:
            unended = [lease for lease in self._queued if not lease.has_run]
        started = [lease for lease in unended if lease.has_started]
        return next(iter(started[-1:] or unended), None)
