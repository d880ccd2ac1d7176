"""TicketLock: concurrent jobs queue their prompts in order of arrival, and a finished job blocks no other."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from simulators.waiting import until
from worker.prompt_order import Ticket, TicketLock

CANCELLED = JobError.because(ErrorCode.CANCELLED, "The job was cancelled.")


def never() -> None:
    """Stop nothing."""


def test_fifty_threads_enter_in_the_order_of_their_tickets() -> None:
    """Threads enter in the order of their tickets, whatever the order in which they start."""
    tickets = TicketLock()
    taken = list(enumerate(tickets.take(never) for _ in range(50)))
    entered: list[int] = []
    inside: list[int] = []

    def enter(number: int, turn: Ticket) -> None:
        with turn:
            inside.append(number)
            entered.append(number)
            assert inside == [number]
            inside.remove(number)

    threads = [threading.Thread(target=enter, args=pair) for pair in reversed(taken)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert entered == list(range(50))


def test_a_later_ticket_waits_for_an_earlier_one() -> None:
    """The second ticket is entered only when the first has ended."""
    tickets = TicketLock()
    first, second = tickets.take(never), tickets.take(never)
    entered = threading.Event()

    def enter() -> None:
        with second:
            entered.set()

    thread = threading.Thread(target=enter)
    with first:
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(5)
    thread.join(5)


def test_a_ticket_released_without_being_entered_lets_others_pass() -> None:
    """A job that is rejected before it queues anything blocks no other."""
    tickets = TicketLock()
    refused, next_one = tickets.take(never), tickets.take(never)
    refused.end()

    with next_one:
        pass


def test_a_ticket_can_be_entered_again() -> None:
    """A job that queues twice (memory was freed) does not wait for later jobs the second time."""
    tickets = TicketLock()
    first, second = tickets.take(never), tickets.take(never)
    with first:
        pass
    with second, first:
        pass


def test_a_ticket_may_be_released_twice() -> None:
    """The handler releases every ticket, also one that was already left."""
    tickets = TicketLock()
    turn = tickets.take(never)
    with turn:
        pass
    turn.end()
    turn.end()

    with tickets.take(never):
        pass


def test_stop_ends_the_wait() -> None:
    """A job that is cancelled while it waits for its ticket ends, and lets later ones pass."""
    tickets = TicketLock()
    stopped = threading.Event()
    errors: list[JobError] = []
    with ExitStack() as first_runs:
        first_runs.enter_context(tickets.take(never))
        waiting = tickets.take(lambda: CANCELLED if stopped.is_set() else None)
        last = tickets.take(never)

        def wait() -> None:
            try:
                waiting.__enter__()
            except JobError as error:
                errors.append(error)
            finally:
                waiting.end()

        thread = threading.Thread(target=wait)
        thread.start()
        assert not until(lambda: errors, 0.2)
        stopped.set()
        thread.join(2)
        assert errors == [CANCELLED]
    with last:
        pass


def test_an_error_releases_the_ticket() -> None:
    """A prompt that ComfyUI rejects releases its job's ticket."""
    tickets = TicketLock()
    first, second = tickets.take(never), tickets.take(never)
    with pytest.raises(JobError), first:
        raise CANCELLED
    with second:
        pass
