"""A ticket lock, with which concurrent jobs queue their prompts in ComfyUI in the order of the jobs' arrival."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from comfy_core.errors import JobError

_TICK_S = 0.1


class TicketLock:
    """Issues tickets in the order of the calls to `take`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = 0
        self._open: set[int] = set()

    def take(self, stop_error: Callable[[], JobError | None]) -> Ticket:
        """Return the next ticket.

        The caller ends it, with `Ticket.end` or by leaving its `with` block. Entering the block can raise the error of
        `stop_error`.
        """
        return Ticket(self, self.next_number(), stop_error)

    def next_number(self) -> int:
        """Return the number of a new ticket, which must be ended."""
        with self._changed:
            self._taken += 1
            self._open.add(self._taken)
            return self._taken

    def wait_for(self, number: int, stop_error: Callable[[], JobError | None]) -> None:
        """Return when every earlier ticket has ended. Raises the error that `stop_error` returns."""
        with self._changed:
            while any(earlier < number for earlier in self._open):
                error = stop_error()
                if error is not None:
                    raise error
                self._changed.wait(_TICK_S)

    def end(self, number: int) -> None:
        """Release a ticket, so that later ones can proceed."""
        with self._changed:
            self._open.discard(number)
            self._changed.notify_all()


class Ticket:
    """One job's ticket, a context manager: entering waits for earlier tickets, leaving releases this ticket."""

    def __init__(self, tickets: TicketLock, number: int, stop_error: Callable[[], JobError | None]) -> None:
        self._tickets = tickets
        self._number = number
        self._stop_error = stop_error

    def __enter__(self) -> None:
        self._tickets.wait_for(self._number, self._stop_error)

    def __exit__(self, *_: object) -> None:
        self.end()

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Release the ticket, and take a new one at the end of the block, behind the jobs that have arrived by then."""
        self.end()
        try:
            yield
        finally:
            self._number = self._tickets.next_number()

    def end(self) -> None:
        """Release the ticket, whether or not it was entered."""
        self._tickets.end(self._number)
