"""Calls that a signal cannot stop halfway: they run in a thread of their own, and a signal only ends the wait for them.

Python runs the handlers of signals in the main thread, between any two instructions. If a handler raises (Ctrl-C) while
the thread enters a `threading.Condition`, for example that of a connection pool's queue, the Condition stays locked,
and the next call that needs it waits forever. `threading.Thread` and `concurrent.futures` have Conditions too. Plain
locks do not have the problem, and this module uses nothing else.
"""

from __future__ import annotations

import _thread
import math
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")

_WAKE_S = 0.5
"""How often a waiting thread wakes up. On Windows, and if another thread received it, a signal does not end the wait
for a lock, and its handler runs at the next wake-up."""


class NotStarted(Exception):  # noqa: N818 - not an error: nothing has happened
    """A signal interrupted `run` before the call began."""


class ThreadCall(Generic[Result]):
    """One call in a daemon thread. If a signal interrupts `run`, the call continues; `result` waits for it again."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._is_started = False
        self._is_finished = False
        self._running = threading.Lock()
        self._running.acquire()

    def run(self) -> Result:
        """Start the call, and return its result or raise its error."""
        self._is_started = True  # no handler runs between this line and the start: Python runs them at calls
        _thread.start_new_thread(self._run, ())
        return self.result()

    def result(self, timeout_s: float = math.inf) -> Result:
        """Wait for the call, and return its result or raise its error.

        Raises TimeoutError after `timeout_s`, and NotStarted.
        """
        if not self._is_started:
            raise NotStarted
        deadline = time.monotonic() + timeout_s
        while not self._is_finished:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            if self._running.acquire(timeout=min(left_s, _WAKE_S)):
                self._running.release()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._call())
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            self._error = error
        self._is_finished = True
        self._running.release()


def run_outside_main_thread(call: Callable[[], Result]) -> Result:
    """Return what `call` returns. The main thread runs it as a ThreadCall."""
    if threading.current_thread() is threading.main_thread():
        return ThreadCall(call).run()
    return call()
