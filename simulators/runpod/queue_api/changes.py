"""Lets threads and coroutines wait for changes of the state."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

_Found = TypeVar("_Found")


class Changes:
    """The lock of the platform's state. Threads and coroutines wait here until the state changes."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._condition = threading.Condition(self.lock)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()
        self._count = 0

    def attach(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Set the event loop of the waiting coroutines; None removes it."""
        self._loop = loop

    def notify(self) -> None:
        """Wake all waiting threads and coroutines, so that they check the state again."""
        with self.lock:
            self._count += 1
            self._condition.notify_all()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake)

    def call_later(self, delay_s: float, call: Callable[[], object]) -> None:
        """Call a function in the event loop after a delay."""
        if self._loop is None:
            raise RuntimeError("the platform is not running")
        self._loop.call_soon_threadsafe(self._loop.call_later, delay_s, call)

    def wait(self, found: Callable[[], _Found], timeout_s: float) -> _Found:
        """Return the first true result of `found`, or the last result at the deadline.

        The lock is not held while `found` runs, so `found` may call the platform over HTTP.
        """
        deadline = time.monotonic() + timeout_s
        seen = self._count
        while not (value := found()) and (left_s := deadline - time.monotonic()) > 0:
            with self.lock:
                if self._count == seen:
                    self._condition.wait(left_s)
                seen = self._count
        return value

    async def until(self, found: Callable[[], _Found], timeout_s: float, jitter_s: float = 0.0) -> _Found:
        """Return the first true result of `found`, or the last result at the deadline.

        After a change, `found` is called after a random delay of at most `jitter_s`.
        """
        deadline = time.monotonic() + timeout_s
        while not (value := found()) and (left_s := deadline - time.monotonic()) > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._event.wait(), left_s)
                if jitter_s:
                    await asyncio.sleep(random.uniform(0, jitter_s))  # noqa: S311 - not for security
        return value

    def _wake(self) -> None:
        event, self._event = self._event, asyncio.Event()
        event.set()
