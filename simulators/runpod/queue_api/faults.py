"""What can be made to go wrong, as verbs. They may be called from any thread, at any time while the platform runs.

| verb | what each side sees |
|---|---|
| answer(route, status, times, body, headers) | that answer in place of the platform's; nothing happened, see below |
| hand_out(text) | workers: the next job-take or job-take-batch answers 200 with that text as JSON |
| hang(route, times) | no answer, and the connection stays open |
| drop_connection(route, times, after_handling) | no answer, the connection is cut; the request counted or it did not |
| late_404(seconds) | clients: 404 for a job's id for so long after it was submitted; workers: nothing |
| lose_result(times) | the worker: 200; clients: COMPLETED without output |
| outage(seconds, status) | both: an HTML page with that status for every request; long polls that are held go on |
| throttle_workers(seconds) | workers: no jobs; clients: IN_QUEUE, and /health shows them throttled |
| cold_start(seconds) | workers: no jobs; clients: IN_QUEUE, and /health shows one initializing |
| clear() | all is well again |

A route is the word after the endpoint in the path. `final` and `progress` single out the two kinds of job-done, `take`
is either kind of job-take. What `hand_out` sends is not a stored job: `platform.adopt(id)` makes its result count.
A result answered with 400 or 413 was read and refused, so its job becomes COMPLETED without output, as on RunPod. With
any other status the platform did not see the result.
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
    "job-stream",
    "final",
    "progress",
    "ping",
    "run",
    "runsync",
    "status",
    "stream",
    "cancel",
    "retry",
    "purge-queue",
    "health",
]
CLOCK_SLACK_S = 0.005
Shortage: TypeAlias = Literal["throttled", "initializing"]


@dataclass(frozen=True)
class QueueAnswer:
    """An answer that is not the platform's. Without a body it is an edge's HTML for 5xx, and a problem for 4xx."""

    route: Route
    status: int
    body: str | JsonObject | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class QueueHang:
    """No answer, ever."""

    route: Route


@dataclass(frozen=True)
class QueueDrop:
    """No answer."""

    route: Route
    after_handling: bool


@dataclass(frozen=True)
class LostResult:
    """A result that vanishes."""


class QueueFaults:
    """The verbs, and what of them is still to come."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self.clear()

    def answer(
        self,
        route: Route,
        status: int,
        times: int = 1,
        body: str | JsonObject | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer the next requests of a route with a status."""
        self._arm(QueueAnswer(_known(route), status, body, headers or {}), times)

    def hand_out(self, text: str) -> None:
        """Answer the next take with a text, as JSON."""
        self._arm(QueueAnswer("take", 200, text, {"Content-Type": "application/json"}), 1)

    def hang(self, route: Route, times: int = 1) -> None:
        """Answer the next requests of a route never."""
        self._arm(QueueHang(_known(route)), times)

    def drop_connection(self, route: Route, times: int = 1, *, after_handling: bool = False) -> None:
        """Reset the connection of the next requests of a route."""
        self._arm(QueueDrop(_known(route), after_handling), times)

    def lose_result(self, times: int = 1) -> None:
        """Take the next results, and lose their output."""
        self._arm(LostResult(), times)

    def late_404(self, seconds: float) -> None:
        """Let jobs be unknown for so long after they were submitted."""
        self.late_404_s = seconds

    def outage(self, seconds: float, status: int = 502) -> None:
        """Answer everything with a status for so long."""
        self._outage_status = status
        self._outage_until = time.monotonic() + seconds

    def throttle_workers(self, seconds: float = math.inf) -> None:
        """Hand out no job for so long, for want of GPUs."""
        self._withhold("throttled", seconds)

    def cold_start(self, seconds: float) -> None:
        """Hand out no job for so long, since the worker is still starting."""
        self._withhold("initializing", seconds)

    def clear(self) -> None:
        """Undo every fault that is still to come."""
        with self._changes.lock:
            self._armed: list[QueueAnswer | QueueHang | QueueDrop | LostResult] = []
            self.late_404_s = 0.0
            self._outage_status = 502
            self._outage_until = 0.0
            self._shortage: Shortage = "throttled"
            self._shortage_until = 0.0
        self._changes.ring()

    @property
    def outage_status(self) -> int | None:
        """Return what everything is answered with, if there is an outage."""
        return self._outage_status if time.monotonic() < self._outage_until else None

    @property
    def shortage(self) -> Shortage | None:
        """Return why no jobs are handed out, if so."""
        return self._shortage if time.monotonic() < self._shortage_until else None

    def of_request(self, names: set[str]) -> QueueAnswer | QueueHang | QueueDrop | None:
        """Take the next fault of a request that goes by these names."""
        with self._changes.lock:
            for place, fault in enumerate(self._armed):
                if not isinstance(fault, LostResult) and fault.route in names:
                    del self._armed[place]
                    return fault
        return None

    def loses_result(self) -> bool:
        """Return whether the result at hand is to be lost."""
        with self._changes.lock:
            if is_lost := LostResult() in self._armed:
                self._armed.remove(LostResult())
        return is_lost

    def _arm(self, fault: QueueAnswer | QueueHang | QueueDrop | LostResult, times: int) -> None:
        with self._changes.lock:
            self._armed += [fault] * times

    def _withhold(self, shortage: Shortage, seconds: float) -> None:
        self._shortage = shortage
        self._shortage_until = time.monotonic() + seconds
        if seconds < math.inf:
            self._changes.soon(seconds + CLOCK_SLACK_S, self._changes.ring)


def _known(route: Route) -> Route:
    if route not in get_args(Route):
        raise ValueError(f"{route!r} is no route; the routes are {', '.join(get_args(Route))}")
    return route
