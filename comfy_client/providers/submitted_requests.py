"""In-memory cache of submitted requests, used to complete results that lack their inputs.

The cache is not shared between processes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from comfy_core.request.rendering import Rendered, Request

_CACHED_JOBS = 256


@dataclass(frozen=True)
class SubmittedRequest:
    """A job's request, and its rendered graphs."""

    request: Request
    rendered: Rendered


class RequestCache:
    """The most recently submitted requests by job id. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, SubmittedRequest] = OrderedDict()

    def remember(self, job_id: str, submitted: SubmittedRequest) -> None:
        """Cache the request of a job. If the cache is full, evict the oldest request."""
        with self._lock:
            self._jobs[job_id] = submitted
            while len(self._jobs) > _CACHED_JOBS:
                self._jobs.popitem(last=False)

    def get(self, job_id: str) -> SubmittedRequest | None:
        """Return the request of a job, or None if it is not cached."""
        return self._jobs.get(job_id)
