"""TicketLock: tickets are entered in the order in which they were taken, and a released ticket blocks no other."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from simulators.waiting import until
from worker.prompt_order import Ticket, TicketLock

CANCELLED = JobError.because(ErrorCode.CANCELLED, "The job was cancelled.")


def no_stop_error() -> None:
    """Return no error: the job is not cancelled."""


def test_fifty_threads_enter_in_the_order_of_their_tickets() -> None:
    """Threads enter in the order of their tickets, whatever the order in which they start."""
    tickets = TicketLock()
    taken = list(enumerate(tickets.take(no_stop_error) for _ in range(50)))
    entered: list[int] = []
    inside: list[int] = []

    def enter(number: int, ticket: Ticket) -> None:
        with ticket:
            inside.append(number)
            entered.append(number)
            assert inside == [number]
            inside.remove(number)

    threads = [threading.Thread(target=enter, args=pair) for pair in reversed(taken)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert entered == list(range(50))


def test_a_later_ticket_waits_for_an_earlier_one() -> None:
    """The second ticket is entered only after the first was left."""
    tickets = TicketLock()
    first, second = tickets.take(no_stop_error), tickets.take(no_stop_error)
    entered = threading.Event()

    def enter() -> None:
        with second:
            entered.set()

    thread = threading.Thread(target=enter)
    with first:
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(60)
    thread.join(60)


def test_a_ticket_released_without_being_entered_lets_others_pass() -> None:
    """A ticket that is released without being entered, such as that of a rejected job, does not block the next one."""
    tickets = TicketLock()
    rejected, next_one = tickets.take(no_stop_error), tickets.take(no_stop_error)
    rejected.end()

    with next_one:
        pass


def test_a_ticket_can_be_entered_again() -> None:
    """A job that queues its prompts twice enters its ticket again, even while a later ticket is entered."""
    tickets = TicketLock()
    first, second = tickets.take(no_stop_error), tickets.take(no_stop_error)
    with first:
        pass
    with second, first:
        pass


def test_a_ticket_may_be_released_twice() -> None:
    """A ticket that was left may be released twice, and the next ticket can be entered."""
    tickets = TicketLock()
    ticket = tickets.take(no_stop_error)
    with ticket:
        pass
    ticket.end()
    ticket.end()

    with tickets.take(no_stop_error):
        pass


def test_a_cancellation_ends_the_wait() -> None:
    """A job that is cancelled while it waits for its turn gets the cancellation, and the next ticket can be entered."""
    tickets = TicketLock()
    stopped = threading.Event()
    errors: list[JobError] = []
    with ExitStack() as first_runs:
        first_runs.enter_context(tickets.take(no_stop_error))
        waiting = tickets.take(lambda: CANCELLED if stopped.is_set() else None)
        last = tickets.take(no_stop_error)

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
        thread.join(60)
        assert errors == [CANCELLED]
    with last:
        pass


def test_an_error_releases_the_ticket() -> None:
    """An error inside a ticket leaves the ticket, so the next one can be entered."""
    tickets = TicketLock()
    first, second = tickets.take(no_stop_error), tickets.take(no_stop_error)
    with pytest.raises(JobError), first:
        raise CANCELLED
    with second:
        pass


def test_a_ticket_that_is_set_aside_lets_later_ones_pass() -> None:
    """A later ticket is entered while an earlier one is set aside; the earlier one then waits behind it."""
    tickets = TicketLock()
    first, second = tickets.take(no_stop_error), tickets.take(no_stop_error)
    with first.set_aside(), second:
        pass
    third = tickets.take(no_stop_error)
    with first:
        pass
    with third:
        pass
