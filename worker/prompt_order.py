"""The order of jobs: those that run at once queue their prompts in the order in which they came."""

from __future__ import annotations

import threading
from collections.abc import Callable

from comfy_core.errors import JobError

_TICK_S = 0.1


class Turns:
    """Hands out turns. `take` in the order in which the jobs came."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = 0
        self._open: set[int] = set()

    def take(self, stop: Callable[[], JobError | None]) -> Turn:
        """Return the next turn, which `Turn.end` must end. A wait for it ends with what `stop` returns."""
        with self._changed:
            self._taken += 1
            self._open.add(self._taken)
            return Turn(self, self._taken, stop)

    def wait_for(self, number: int, stop: Callable[[], JobError | None]) -> None:
        """Return when every earlier turn has ended. Raises what `stop` returns."""
        with self._changed:
            while any(earlier < number for earlier in self._open):
                error = stop()
                if error is not None:
                    raise error
                self._changed.wait(_TICK_S)

    def end(self, number: int) -> None:
        """Let the next ones pass."""
        with self._changed:
            self._open.discard(number)
            self._changed.notify_all()


class Turn:
    """One job's turn: entering waits for the earlier ones, leaving lets the later ones pass."""

    def __init__(self, turns: Turns, number: int, stop: Callable[[], JobError | None]) -> None:
        self._turns = turns
        self._number = number
        self._stop = stop

    def __enter__(self) -> None:
        self._turns.wait_for(self._number, self._stop)

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End the turn, whether or not it was entered."""
        self._turns.end(self._number)
