"""How threads and coroutines wait for the state to change."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import TypeVar

_Found = TypeVar("_Found")


class Changes:
    """One lock over the state, and a bell that whoever changes the state rings."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._condition = threading.Condition(self.lock)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()
        self._rings = 0

    def attach(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Let coroutines of this loop wait; None ends that."""
        self._loop = loop

    def ring(self) -> None:
        """Let everyone look again."""
        with self.lock:
            self._rings += 1
            self._condition.notify_all()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake)

    def soon(self, delay_s: float, call: Callable[[], object]) -> None:
        """Call something in the loop, so much later."""
        if self._loop is None:
            raise RuntimeError("the platform is not running")
        self._loop.call_soon_threadsafe(self._loop.call_later, delay_s, call)

    def wait(self, found: Callable[[], _Found], timeout_s: float) -> _Found:
        """Return what `found` returns once that is true, or what it returns at the deadline.

        The lock is free while `found` looks, so it may even call the platform over HTTP.
        """
        deadline = time.monotonic() + timeout_s
        seen = self._rings
        while not (value := found()) and (left_s := deadline - time.monotonic()) > 0:
            with self.lock:
                if self._rings == seen:
                    self._condition.wait(left_s)
                seen = self._rings
        return value

    async def until(self, found: Callable[[], _Found], timeout_s: float) -> _Found:
        """Return what `found` returns once that is true, or what it returns at the deadline."""
        deadline = time.monotonic() + timeout_s
        while not (value := found()) and (left_s := deadline - time.monotonic()) > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._event.wait(), left_s)
        return value

    def _wake(self) -> None:
        event, self._event = self._event, asyncio.Event()
        event.set()
