"""Work that waits, as generators: they yield a `Sleep` where they would sleep, and whatever else they have to tell.

So one code serves threads (`run`, `iterate`) and asyncio (`arun`, `aiterate`), where each step between two pauses is
done in a thread and no thread is held while nothing happens. Work that is given up (Ctrl-C, a cancelled task) is
closed: a generator that has something to undo does it at GeneratorExit.
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
    """Nothing is to be done for so long."""

    seconds: float


Task: TypeAlias = Generator[Any, None, Result]
"""Yields `Sleep` and what is told (events), and returns a Result."""


def run(task: Task[Result], sleep: Callable[[float], object] = time.sleep) -> Result:
    """Do the work and return its result; what it tells is dropped. What `sleep` raises gives the work up."""
    try:
        while True:
            step = next(task)
            if isinstance(step, Sleep):
                sleep(step.seconds)
    except StopIteration as end:
        result: Result = end.value
        return result
    finally:
        task.close()


def iterate(task: Generator[Sleep | Event, None, Any]) -> Iterator[Event]:
    """Yield what the work tells, while it is done."""
    try:
        for step in task:
            if isinstance(step, Sleep):
                time.sleep(step.seconds)
            else:
                yield step
    finally:
        task.close()


@dataclass(frozen=True)
class _Finished:
    value: Any


def _advance(task: Task[Any]) -> object:
    """Return what the work yields next, or its end: StopIteration cannot leave a thread's future."""
    try:
        return next(task)
    except StopIteration as end:
        return _Finished(end.value)


async def _advance_in_thread(task: Task[Any]) -> object:
    """Do one step in a thread. A task that is cancelled meanwhile waits for it, and closes the work."""
    step = asyncio.ensure_future(asyncio.to_thread(_advance, task))
    try:
        told = await asyncio.shield(step)
        if isinstance(told, Sleep):
            await asyncio.sleep(told.seconds)
    except asyncio.CancelledError:
        await asyncio.wait({step})
        await asyncio.to_thread(task.close)
        raise
    return told


async def arun(task: Task[Result]) -> Result:
    """Do the work and return its result, without holding the loop."""
    while True:
        told = await _advance_in_thread(task)
        if isinstance(told, _Finished):
            result: Result = told.value
            return result


async def aiterate(task: Generator[Sleep | Event, None, Any]) -> AsyncIterator[Event]:
    """Yield what the work tells, without holding the loop."""
    try:
        while not isinstance(told := await _advance_in_thread(task), _Finished):
            if not isinstance(told, Sleep):
                yield told  # type: ignore[misc] # neither a pause nor the end: what the work tells
    finally:
        await asyncio.to_thread(task.close)
