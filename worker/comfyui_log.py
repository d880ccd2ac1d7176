"""Keeps the last lines of ComfyUI's output, and selects the lines that an error may contain.

An error is returned to the job's caller, so it contains only lines that were written since the job began. If another
job used ComfyUI at the same time, the error contains no lines, because lines could contain the other job's file names,
prompts and paths.
"""

from __future__ import annotations

import collections
import logging
import threading
from typing import IO

from comfy_core.comfyui.responses import cleaned_line, log_excerpt
from worker.leases import Lease

KEPT_LINES = 100

log = logging.getLogger("comfyui")


class ComfyLog:
    """The last KEPT_LINES lines of successive ComfyUI processes. Lines are numbered from 0, in the order of `read`."""

    def __init__(self) -> None:
        self._lines: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
        self._lock = threading.Lock()
        self._count = 0

    @property
    def next_line(self) -> int:
        """The number that the next line will get."""
        with self._lock:
            return self._count

    def read(self, output: IO[str]) -> None:
        """Collect the lines of `output`, except empty ones, until it ends."""
        with output:
            for line in output:
                if text := line.rstrip():
                    with self._lock:
                        self._lines.append(text)
                        self._count += 1
                    log.debug(text)

    def lines(self, since: int = 0) -> list[str]:
        """Return the kept lines from number `since`, cleaned for the worker's log."""
        with self._lock:
            kept = list(self._lines)
            first = self._count - len(kept)
        return [cleaned_line(line) for line in kept[max(0, since - first) :]]

    def excerpt_for(self, lease: Lease) -> list[str]:
        """Return the lines that an error of the job with this lease may contain."""
        return [] if lease.is_shared else log_excerpt(self.lines(lease.first_line))
