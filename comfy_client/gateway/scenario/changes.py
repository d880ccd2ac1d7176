"""The log of the jobs that changed last, in memory, so that the web page loads the changes instead of all jobs."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

MAX_CHANGED_JOBS = 5_000
"""The number of jobs that the log has. A page that missed more changes loads its list again."""


@dataclass(frozen=True)
class Changes:
    """The changes after a token.

    Attributes:
        job_ids: the changed jobs, the earliest change first.
        token: the token for the changes after these.
    """

    job_ids: tuple[str, ...]
    token: str


class ChangeLog:
    """The jobs that changed since the start of the process, by the number of their last change.

    A token is a number of a change of this process, with a text that no other process has.
    """

    def __init__(self, max_jobs: int = MAX_CHANGED_JOBS) -> None:
        self._max_jobs = max_jobs
        self._process = secrets.token_hex(4)
        self._last = 0
        self._forgotten = 0
        self._numbers: dict[str, int] = {}

    @property
    def token(self) -> str:
        """The token for the changes after now."""
        return self._token(self._last)

    def note(self, job_ids: Iterable[str]) -> None:
        """Add changes of these jobs."""
        for job_id in job_ids:
            self._last += 1
            self._numbers.pop(job_id, None)
            self._numbers[job_id] = self._last
        while len(self._numbers) > self._max_jobs:
            self._forgotten = self._numbers.pop(next(iter(self._numbers)))

    def since(self, token: str, limit: int) -> Changes | None:
        """Return the first `limit` changed jobs after a token. None if some may be missing: load the list again."""
        process, _, text = token.partition(".")
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else -1  # noqa: PLR2004 - limits the size of the number
        if process != self._process or not self._forgotten <= number <= self._last:
            return None
        newest_first = list(takewhile(lambda job_id: self._numbers[job_id] > number, reversed(self._numbers)))
        if len(newest_first) <= limit:
            return Changes(tuple(reversed(newest_first)), self.token)
        job_ids = tuple(newest_first[: -limit - 1 : -1])
        return Changes(job_ids, self._token(self._numbers[job_ids[-1]]))

    def _token(self, number: int) -> str:
        return f"{self._process}.{number}"
