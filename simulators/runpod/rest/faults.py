"""The faults of the simulated REST API, as methods and as two attributes.

`prefix` is the start of a request's method and path, such as `POST /serverless`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RestResponse:
    """A response that is sent instead of the one that the simulated account would give.

    The request has no effect, unless `after_handling`.
    """

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    after_handling: bool = False


@dataclass(frozen=True)
class RestDrop:
    """No response: the connection is closed, before or after the request was handled."""

    after_handling: bool


class RestFaults:
    """The methods that inject faults, and the faults that have not happened yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[tuple[str, RestResponse | RestDrop]] = []
        self.forgets_models = False
        """Whether a PATCH of REST v2 removes the cached models, which REST v2 has no field for."""
        self.forbids_writing = False
        """Whether REST calls that change something are refused with 403. GraphQL calls are not."""
        self._requests_left: int | None = None
        self._handles_first_refused = False

    def respond(
        self,
        prefix: str,
        status: int,
        times: int = 1,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        *,
        after_handling: bool = False,
    ) -> None:
        """Send this response to the next requests that start with `prefix`."""
        self._arm(prefix, RestResponse(status, body, headers or {}, after_handling), times)

    def rate_limit(self, prefix: str, retry_after_s: int = 1, times: int = 1) -> None:
        """Refuse with 429 the next requests that start with `prefix`."""
        problem = {"title": "Too Many Requests", "status": 429, "detail": "rate limit exceeded for the minute window"}
        self.respond(prefix, 429, times, problem, {"Retry-After": str(retry_after_s)})

    def drop_connection(self, prefix: str, times: int = 1, *, after_handling: bool = False) -> None:
        """Close the connection of the next requests that start with `prefix`."""
        self._arm(prefix, RestDrop(after_handling), times)

    def refuse_after(self, requests: int, *, handles_first_refused: bool = False) -> None:
        """Handle the next `requests` requests, and refuse all later ones with 403 until `clear`.

        The account is left as if the caller had been killed there. With `handles_first_refused`, the first refused
        request still takes effect.
        """
        with self._lock:
            self._requests_left, self._handles_first_refused = requests, handles_first_refused

    def clear(self) -> None:
        """Remove the faults that have not happened yet, and end `refuse_after`.

        `forgets_models` and `forbids_writing` do not change.
        """
        with self._lock:
            self._armed, self._requests_left = [], None

    def take_fault(self, method_and_path: str) -> RestResponse | RestDrop | None:
        """Remove and return the next fault of a request, or None."""
        with self._lock:
            if self._requests_left is not None:
                self._requests_left -= 1
                if self._requests_left < 0:
                    return RestResponse(403, after_handling=self._handles_first_refused and self._requests_left == -1)
            for index, (prefix, fault) in enumerate(self._armed):
                if method_and_path.startswith(prefix):
                    del self._armed[index]
                    return fault
        return None

    def _arm(self, prefix: str, fault: RestResponse | RestDrop, times: int) -> None:
        with self._lock:
            self._armed += [(prefix, fault)] * times
