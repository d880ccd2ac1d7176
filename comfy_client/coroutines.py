"""Drivers for generator-based work, so that one implementation serves threads and asyncio.

A task is a generator. It yields a `Sleep` when it has to wait, yields events for its caller, and returns its result.
`run` and `iterate` drive a task in the current thread. `arun` and `aiterate` drive it from asyncio: the code between
two sleeps runs in a thread, and no thread is held during a sleep.

When a task is abandoned (Ctrl-C, a cancelled asyncio task), its generator is closed. The generator cleans up when it
receives GeneratorExit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

Event = TypeVar("Event")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Sleep:
    """Yielded by a task that has nothing to do for `seconds`."""

    seconds: float


Task: TypeAlias = Generator[Any, None, Result]
"""Yields `Sleep` and events, and returns a Result."""


def run(task: Task[Result], sleep: Callable[[float], object] = time.sleep) -> Result:
    """Run a task in this thread and return its result. Events are dropped. If `sleep` raises, the task is closed."""
    try:
        while True:
            item = next(task)
            if isinstance(item, Sleep):
                sleep(item.seconds)
    except StopIteration as end:
        result: Result = end.value
        return result
    finally:
        task.close()


def iterate(task: Generator[Sleep | Event, None, Any]) -> Iterator[Event]:
    """Run a task in this thread and yield its events."""
    try:
        for item in task:
            if isinstance(item, Sleep):
                time.sleep(item.seconds)
            else:
                yield item
    finally:
        task.close()


@dataclass(frozen=True)
class _Finished:
    value: Any


def _advance(task: Task[Any]) -> object:
    """Return the task's next item, or its result as _Finished: a future cannot carry StopIteration."""
    try:
        return next(task)
    except StopIteration as end:
        return _Finished(end.value)


async def _advance_in_thread(task: Task[Any]) -> object:
    """Return the task's next item. If the item is a Sleep, sleep before that.

    If this call is cancelled, wait for the thread, then close the task.
    """
    advancing = asyncio.ensure_future(asyncio.to_thread(_advance, task))
    try:
        item = await asyncio.shield(advancing)
        if isinstance(item, Sleep):
            await asyncio.sleep(item.seconds)
    except asyncio.CancelledError:
        await asyncio.wait({advancing})
        await asyncio.to_thread(task.close)
        raise
    return item


async def arun(task: Task[Result]) -> Result:
    """Run a task from asyncio and return its result. The event loop is not blocked."""
    while True:
        item = await _advance_in_thread(task)
        if isinstance(item, _Finished):
            result: Result = item.value
            return result


async def aiterate(task: Generator[Sleep | Event, None, Any]) -> AsyncIterator[Event]:
    """Run a task from asyncio and yield its events. The event loop is not blocked."""
    try:
        while not isinstance(item := await _advance_in_thread(task), _Finished):
            if not isinstance(item, Sleep):
                yield item  # type: ignore[misc] # neither Sleep nor _Finished: an event
    finally:
        await asyncio.to_thread(task.close)
