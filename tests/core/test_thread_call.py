"""ThreadCall: a signal at any moment of `run` leaves a call that has a result, or that never began."""

from __future__ import annotations

import threading

import pytest

from comfy_core.thread_call import NotStarted, ThreadCall
from tests.interrupts import is_interrupted_at

TIMEOUT_S = 10.0


def outcome(call: ThreadCall[str]) -> str:
    """Return the call's result, or `not started`. Raises TimeoutError."""
    try:
        return call.result(TIMEOUT_S)
    except NotStarted:
        return "not started"


def test_an_interrupted_call_has_a_result_or_never_began() -> None:
    """The begun calls are all finished, and those that report `not started` have never run."""
    begun: list[str] = []

    def work() -> str:
        begun.append("work")
        return "done"

    outcomes: list[str] = []
    while is_interrupted_at(len(outcomes), (call := ThreadCall(work)).run):
        outcomes.append(outcome(call))

    assert set(outcomes) == {"done", "not started"}
    assert len(begun) == outcomes.count("done") + 1  # the call that was not interrupted


def test_a_wait_for_a_result_ends() -> None:
    """`result` raises TimeoutError, and can be called again."""
    released = threading.Event()
    call = ThreadCall(lambda: released.wait(TIMEOUT_S))
    assert is_interrupted_at(2, call.run)
    with pytest.raises(TimeoutError):
        call.result(0.01)
    released.set()

    assert call.result(TIMEOUT_S)
