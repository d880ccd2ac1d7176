"""What can be made to go wrong, as verbs; each counts for requests whose method and path begin so, in order."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RestAnswer:
    """An answer in place of the account's; nothing happened, but with `after_handling`."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    after_handling: bool = False


@dataclass(frozen=True)
class RestDrop:
    """No answer: the connection is cut, before or after what was asked for was done."""

    after_handling: bool


class RestFaults:
    """The verbs, and what of them is still to come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[tuple[str, RestAnswer | RestDrop]] = []
        self.forgets_models = False
        """Whether a PATCH of REST v2 drops the cached models, which it has no field for."""
        self.forbids_writing = False
        """Whether the key may only read."""
        self._left: int | None = None
        self._last_counts = False

    def answer(
        self,
        asked: str,
        status: int,
        times: int = 1,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        *,
        after_handling: bool = False,
    ) -> None:
        """Answer the next requests of `asked` ("POST /serverless") with a status."""
        self._arm(asked, RestAnswer(status, body, headers or {}, after_handling), times)

    def rate_limit(self, asked: str, retry_after_s: int = 1, times: int = 1) -> None:
        """Refuse the next requests of `asked` with 429."""
        problem = {"title": "Too Many Requests", "status": 429, "detail": "rate limit exceeded for the minute window"}
        self.answer(asked, 429, times, problem, {"Retry-After": str(retry_after_s)})

    def drop_connection(self, asked: str, times: int = 1, *, after_handling: bool = False) -> None:
        """Reset the connection of the next requests of `asked`."""
        self._arm(asked, RestDrop(after_handling), times)

    def end_after(self, requests: int, *, last_counts: bool = False) -> None:
        """Refuse all after so many requests, until `clear`; with `last_counts` the first of these is done all the same.

        To whoever asks it is as if it were killed there: what it did counts, and it does nothing more.
        """
        with self._lock:
            self._left, self._last_counts = requests, last_counts

    def clear(self) -> None:
        """Undo what is still to come."""
        with self._lock:
            self._armed, self._left = [], None

    def of_request(self, asked: str) -> RestAnswer | RestDrop | None:
        """Take the next fault of a request."""
        with self._lock:
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    return RestAnswer(403, after_handling=self._last_counts and self._left == -1)
            for place, (begin, fault) in enumerate(self._armed):
                if asked.startswith(begin):
                    del self._armed[place]
                    return fault
        return None

    def _arm(self, asked: str, fault: RestAnswer | RestDrop, times: int) -> None:
        with self._lock:
            self._armed += [(asked, fault)] * times
