"""Faults to inject, as methods. Any thread may call them while the platform runs.

| fault | what workers and clients see |
|---|---|
| respond(route, status, times, body, headers) | this response, see below; the request has no effect |
| hand_out(text) | workers: the next job-take or job-take-batch returns 200 with this text as JSON |
| hang(route, times) | no response, and the connection stays open |
| drop_connection(route, times, after_handling) | no response: the connection is closed before or after handling |
| late_404(seconds) | clients: 404 for a job's id for `seconds` after its submission; workers: nothing |
| lose_result(times) | the worker: 200; clients: COMPLETED without output |
| outage(seconds, status) | both: an HTML page with this status for every request; open long polls continue |
| throttle_workers(seconds) | workers: no jobs; clients: IN_QUEUE, and /health shows throttled workers |
| cold_start(seconds) | workers: no jobs; clients: IN_QUEUE, and /health shows a worker that is initializing |
| clear() | removes all faults |

A route is the part of the path after the endpoint. `final` and `progress` are the two kinds of job-done, `take` is
either kind of job-take. A job of `hand_out` is not stored: `platform.adopt(id)` stores it, so that its result counts.
A result that gets 400 or 413 was read and refused, so its job becomes COMPLETED without output, as on RunPod. With any
other status the platform did not receive the result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from .changes import Changes
from .values import JsonObject

Route: TypeAlias = Literal[
    "take",
    "job-take",
    "job-take-batch",
    "job-stop",
    "job-done",
    "final",
    "progress",
    "ping",
    "run",
    "runsync",
    "status",
    "cancel",
    "retry",
    "purge-queue",
    "health",
]
CLOCK_SLACK_S = 0.005
Shortage: TypeAlias = Literal["throttled", "initializing"]


@dataclass(frozen=True)
class QueueResponse:
    """A response instead of the platform's. Without a body, 5xx gets the edge's HTML and 4xx RunPod's error format."""

    route: Route
    status: int
    body: str | JsonObject | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class QueueHang:
    """No response, and the connection stays open."""

    route: Route


@dataclass(frozen=True)
class QueueDrop:
    """No response, and the connection is closed."""

    route: Route
    after_handling: bool


@dataclass(frozen=True)
class LostResult:
    """A result whose output is lost."""


class QueueFaults:
    """The methods that inject faults, and the faults that have not happened yet."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self.clear()

    def respond(
        self,
        route: Route,
        status: int,
        times: int = 1,
        body: str | JsonObject | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send this response to the next requests of a route."""
        self._arm(QueueResponse(_checked_route(route), status, body, headers or {}), times)

    def hand_out(self, text: str) -> None:
        """Send this text as JSON to the next job-take or job-take-batch."""
        self._arm(QueueResponse("take", 200, text, {"Content-Type": "application/json"}), 1)

    def hang(self, route: Route, times: int = 1) -> None:
        """Send no response to the next requests of a route."""
        self._arm(QueueHang(_checked_route(route)), times)

    def drop_connection(self, route: Route, times: int = 1, *, after_handling: bool = False) -> None:
        """Close the connection of the next requests of a route."""
        self._arm(QueueDrop(_checked_route(route), after_handling), times)

    def lose_result(self, times: int = 1) -> None:
        """Lose the output of the next results."""
        self._arm(LostResult(), times)

    def late_404(self, seconds: float) -> None:
        """Respond with 404 for a job for `seconds` after its submission."""
        self.late_404_s = seconds

    def outage(self, seconds: float, status: int = 502) -> None:
        """Respond to all requests with `status` for `seconds`."""
        self._outage_status = status
        self._outage_until = time.monotonic() + seconds

    def throttle_workers(self, seconds: float = math.inf) -> None:
        """Hand out no job for `seconds`, as if no GPU were available."""
        self._pause_jobs("throttled", seconds)

    def cold_start(self, seconds: float) -> None:
        """Hand out no job for `seconds`, as if the worker were starting."""
        self._pause_jobs("initializing", seconds)

    def clear(self) -> None:
        """Remove all faults."""
        with self._changes.lock:
            self._armed: list[QueueResponse | QueueHang | QueueDrop | LostResult] = []
            self.late_404_s = 0.0
            self._outage_status = 502
            self._outage_until = 0.0
            self._shortage: Shortage = "throttled"
            self._shortage_until = 0.0
        self._changes.notify()

    @property
    def outage_status(self) -> int | None:
        """Return the status of an outage, or None."""
        return self._outage_status if time.monotonic() < self._outage_until else None

    @property
    def shortage(self) -> Shortage | None:
        """Return the reason why no jobs are handed out, or None."""
        return self._shortage if time.monotonic() < self._shortage_until else None

    def take_fault(self, names: set[str]) -> QueueResponse | QueueHang | QueueDrop | None:
        """Remove and return the next fault of a request, or None. `names` are the routes of the request."""
        with self._changes.lock:
            for index, fault in enumerate(self._armed):
                if not isinstance(fault, LostResult) and fault.route in names:
                    del self._armed[index]
                    return fault
        return None

    def take_lost_result(self) -> bool:
        """Return whether a `lose_result` fault applies to the posted result, and remove that fault."""
        with self._changes.lock:
            if is_lost := LostResult() in self._armed:
                self._armed.remove(LostResult())
        return is_lost

    def _arm(self, fault: QueueResponse | QueueHang | QueueDrop | LostResult, times: int) -> None:
        with self._changes.lock:
            self._armed += [fault] * times

    def _pause_jobs(self, shortage: Shortage, seconds: float) -> None:
        self._shortage = shortage
        self._shortage_until = time.monotonic() + seconds
        if seconds < math.inf:
            self._changes.call_later(seconds + CLOCK_SLACK_S, self._changes.notify)


def _checked_route(route: Route) -> Route:
    if route not in get_args(Route):
        raise ValueError(f"{route!r} is not a route; the routes are {', '.join(get_args(Route))}")
    return route
