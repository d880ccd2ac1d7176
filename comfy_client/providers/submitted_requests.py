"""What was asked of the last jobs, for results that do not say it themselves. In memory: another process knows none."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from comfy_core.request.reading import Rendered, Request

_KNOWN_JOBS = 256


@dataclass(frozen=True)
class SubmittedRequest:
    """One job's request, and what was made of it."""

    request: Request
    rendered: Rendered


class RequestCache:
    """The last jobs that were asked for, by their ids. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, SubmittedRequest] = OrderedDict()

    def remember(self, job_id: str, asked: SubmittedRequest) -> None:
        """Keep what was asked of a job; the oldest are forgotten."""
        with self._lock:
            self._jobs[job_id] = asked
            while len(self._jobs) > _KNOWN_JOBS:
                self._jobs.popitem(last=False)

    def of(self, job_id: str) -> SubmittedRequest | None:
        """Return what was asked of a job, or None where this process did not ask."""
        return self._jobs.get(job_id)
