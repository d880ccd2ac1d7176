"""What can go wrong at Scenario, as verbs.

| verb | what callers see |
|---|---|
| answer(route, status, times, body) | that answer; without a body it is Scenario's error |
| throttle(seconds, times) | 429 to a submit, with `remainingSeconds` |
| drop_connection(route, times, after_handling) | no answer; the call may have been handled |
| fail_job(error, hint) | the next job ends as `failure` with that in its metadata |
| hold_job() | the next job stays at 40 %, until go_on(), or until it is cancelled |
| wait_in_line(seconds) | the next job is `queued`, then `warming-up`, for so long |
| cut_picture(times) | a picture's bytes end in the middle, and its length says so too |
| lose_assets() | jobs end well and have no assets |
| clear() | all is well again, and a job that was held goes on |
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Route: TypeAlias = Literal["generate", "job", "jobs", "action", "upload", "asset", "model", "picture"]
Body: TypeAlias = Mapping[str, Any] | str | None


@dataclass(frozen=True)
class ScenarioAnswer:
    """An answer that is not Scenario's own."""

    route: Route
    status: int
    body: Body = None


@dataclass(frozen=True)
class ScenarioDrop:
    """No answer."""

    route: Route
    after_handling: bool


@dataclass(frozen=True)
class Cut:
    """Half a picture."""

    route: Route = "picture"


class ScenarioFaults:
    """The verbs, and what of them is still to come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.failure: dict[str, str] = {}
        self.goes_on = threading.Event()
        self.clear()

    def answer(self, route: Route, status: int, times: int = 1, body: Body = None) -> None:
        """Answer the next calls of a route with a status."""
        self._arm(ScenarioAnswer(route, status, body), times)

    def throttle(self, seconds: float, times: int = 1) -> None:
        """Refuse the next submits for now."""
        self.answer("generate", 429, times, {"reason": "Too many requests", "remainingSeconds": seconds})

    def drop_connection(self, route: Route, times: int = 1, *, after_handling: bool = False) -> None:
        """Reset the connection of the next calls of a route."""
        self._arm(ScenarioDrop(route, after_handling), times)

    def fail_job(self, error: str, hint: str = "") -> None:
        """Let the next job end badly."""
        self.failure = {"error": error, **({"hint": hint} if hint else {})}

    def hold_job(self) -> None:
        """Let the next job stay in the middle."""
        self.goes_on.clear()
        self._holds = True

    def go_on(self) -> None:
        """Let it end."""
        self.goes_on.set()

    def holds_job(self) -> bool:
        """Take the wish that a job be held."""
        with self._lock:
            holds, self._holds = self._holds, False
        return holds

    def wait_in_line(self, seconds: float) -> None:
        """Let the next job wait before it starts."""
        self.line_s = seconds

    def cut_picture(self, times: int = 1) -> None:
        """Give half of the next pictures that are fetched."""
        self._arm(Cut(), times)

    def lose_assets(self) -> None:
        """Let jobs end without a picture."""
        self.loses_assets = True

    def clear(self) -> None:
        """Undo every fault that is still to come."""
        with self._lock:
            self._armed: list[ScenarioAnswer | ScenarioDrop | Cut] = []
        self.failure = {}
        self.line_s = 0.0
        self.loses_assets = False
        self._holds = False
        self.goes_on.set()

    def of_call(self, route: str) -> ScenarioAnswer | ScenarioDrop | Cut | None:
        """Take the next fault of a call."""
        with self._lock:
            for place, fault in enumerate(self._armed):
                if fault.route == route:
                    return self._armed.pop(place)
        return None

    def _arm(self, fault: ScenarioAnswer | ScenarioDrop | Cut, times: int) -> None:
        with self._lock:
            self._armed += [fault] * times
