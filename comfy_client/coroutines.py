"""Work that waits, as generators: they yield a `Pause` where they would sleep, and whatever else they have to tell.

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

Told = TypeVar("Told")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Pause:
    """Nothing is to be done for so long."""

    seconds: float


Steps: TypeAlias = Generator[Any, None, Result]
"""Yields `Pause` and what is told (events), and returns a Result."""


def run(steps: Steps[Result], sleep: Callable[[float], object] = time.sleep) -> Result:
    """Do the work and return its result; what it tells is dropped. What `sleep` raises gives the work up."""
    try:
        while True:
            step = next(steps)
            if isinstance(step, Pause):
                sleep(step.seconds)
    except StopIteration as end:
        result: Result = end.value
        return result
    finally:
        steps.close()


def iterate(steps: Generator[Pause | Told, None, Any]) -> Iterator[Told]:
    """Yield what the work tells, while it is done."""
    try:
        for step in steps:
            if isinstance(step, Pause):
                time.sleep(step.seconds)
            else:
                yield step
    finally:
        steps.close()


@dataclass(frozen=True)
class _End:
    value: Any


def _advance(steps: Steps[Any]) -> object:
    """Return what the work yields next, or its end: StopIteration cannot leave a thread's future."""
    try:
        return next(steps)
    except StopIteration as end:
        return _End(end.value)


async def _astep(steps: Steps[Any]) -> object:
    """Do one step in a thread. A task that is cancelled meanwhile waits for it, and closes the work."""
    step = asyncio.ensure_future(asyncio.to_thread(_advance, steps))
    try:
        told = await asyncio.shield(step)
        if isinstance(told, Pause):
            await asyncio.sleep(told.seconds)
    except asyncio.CancelledError:
        await asyncio.wait({step})
        await asyncio.to_thread(steps.close)
        raise
    return told


async def arun(steps: Steps[Result]) -> Result:
    """Do the work and return its result, without holding the loop."""
    while True:
        told = await _astep(steps)
        if isinstance(told, _End):
            result: Result = told.value
            return result


async def aiterate(steps: Generator[Pause | Told, None, Any]) -> AsyncIterator[Told]:
    """Yield what the work tells, without holding the loop."""
    try:
        while not isinstance(told := await _astep(steps), _End):
            if not isinstance(told, Pause):
                yield told  # type: ignore[misc] # neither a pause nor the end: what the work tells
    finally:
        await asyncio.to_thread(steps.close)
