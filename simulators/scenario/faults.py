"""The faults of the simulated Scenario API, as methods.

| fault | what callers see |
|---|---|
| respond(route, status, times, body) | this response; without a body, it is an error in Scenario's format |
| throttle(seconds, times) | 429 to a submit, with `remainingSeconds` |
| drop_connection(route, times, after_handling) | no response: the connection is closed before or after handling |
| fail_job(error, hint) | the next job ends as `failure`, with these texts in its metadata |
| hold_job() | the next job stays at 40 % until release(), or until it is cancelled |
| wait_in_queue(seconds) | jobs are `queued`, then `warming-up`, for `seconds` |
| stall(route, seconds, times) | the request is handled, and the response comes `seconds` later, or at clear() |
| cut_response(route, times) | the request is handled, and the connection is closed after half of the response |
| cut_image(times) | only half of the bytes of an image, with that Content-Length |
| lose_assets() | jobs succeed without assets |
| release() | the held job continues |
| clear() | removes all faults, and a held job continues |
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Route: TypeAlias = Literal[
    "generate",
    "job",
    "jobs",
    "action",
    "upload",
    "uploads",
    "complete",
    "part",
    "asset",
    "assets",
    "tags",
    "model",
    "models",
    "inference",
    "inferences",
    "image",
]
Body: TypeAlias = Mapping[str, Any] | str | None


@dataclass(frozen=True)
class ScenarioResponse:
    """A response instead of Scenario's."""

    route: Route
    status: int
    body: Body = None


@dataclass(frozen=True)
class ScenarioDrop:
    """No response, and the connection is closed."""

    route: Route
    after_handling: bool


@dataclass(frozen=True)
class Cut:
    """An image of which only half of the bytes are sent."""

    route: Route = "image"


@dataclass(frozen=True)
class ScenarioStall:
    """A response that comes late. `is_over` ends the wait early."""

    route: Route
    seconds: float
    is_over: threading.Event


@dataclass(frozen=True)
class ScenarioBreak:
    """A response whose connection is closed after half of the bytes."""

    route: Route


ScenarioFault: TypeAlias = ScenarioResponse | ScenarioDrop | Cut | ScenarioStall | ScenarioBreak


class ScenarioFaults:
    """The methods that inject faults, and the faults that have not happened yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.failure: dict[str, str] = {}
        self.released = threading.Event()
        self._stalls_end = threading.Event()
        self.clear()

    def respond(self, route: Route, status: int, times: int = 1, body: Body = None) -> None:
        """Send this response to the next requests of a route."""
        self._arm(ScenarioResponse(route, status, body), times)

    def throttle(self, seconds: float, times: int = 1) -> None:
        """Refuse the next submissions with 429."""
        self.respond("generate", 429, times, {"reason": "Too many requests", "remainingSeconds": seconds})

    def drop_connection(self, route: Route, times: int = 1, *, after_handling: bool = False) -> None:
        """Close the connection of the next requests of a route."""
        self._arm(ScenarioDrop(route, after_handling), times)

    def fail_job(self, error: str, hint: str = "") -> None:
        """Make the next job fail."""
        self.failure = {"error": error, **({"hint": hint} if hint else {})}

    def hold_job(self) -> None:
        """Hold the next job at 40 %."""
        self.released.clear()
        self._holds = True

    def release(self) -> None:
        """Let the held job continue."""
        self.released.set()

    def take_hold(self) -> bool:
        """End the effect of `hold_job`; return whether the job that runs now must be held."""
        with self._lock:
            holds, self._holds = self._holds, False
        return holds

    def wait_in_queue(self, seconds: float) -> None:
        """Make jobs wait before they start."""
        self.queue_s = seconds

    def stall(self, route: Route, seconds: float = 600.0, times: int = 1) -> None:
        """Handle the next requests of a route at once, and send their responses `seconds` later, or at `clear`."""
        self._arm(ScenarioStall(route, seconds, self._stalls_end), times)

    def cut_response(self, route: Route, times: int = 1) -> None:
        """Handle the next requests of a route, and close the connection after half of the response."""
        self._arm(ScenarioBreak(route), times)

    def cut_image(self, times: int = 1) -> None:
        """Send only half of the bytes of the next images."""
        self._arm(Cut(), times)

    def lose_assets(self) -> None:
        """Make jobs succeed without an asset."""
        self.loses_assets = True

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._armed: list[ScenarioFault] = []
        self._stalls_end.set()
        self._stalls_end = threading.Event()
        self.failure = {}
        self.queue_s = 0.0
        self.loses_assets = False
        self._holds = False
        self.released.set()

    def take_fault(self, route: str) -> ScenarioFault | None:
        """Remove and return the next fault of a request, or None."""
        with self._lock:
            for index, fault in enumerate(self._armed):
                if fault.route == route:
                    return self._armed.pop(index)
        return None

    def _arm(self, fault: ScenarioFault, times: int) -> None:
        with self._lock:
            self._armed += [fault] * times
