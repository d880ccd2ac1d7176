"""Runs the steps of a sampler. A step takes time, can be interrupted, is reported, and can have faults."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass

from simulators.comfyui.faults import ComfyUIFaults, Cut
from simulators.comfyui.images import Sketch, preview
from simulators.comfyui.sockets import JPEG

PREVIEW_QUALITY = 95

OnStep = Callable[[int, "tuple[int, bytes] | None"], None]
"""Called after each step with its number and preview."""


class SamplingInterrupted(Exception):  # noqa: N818  not an error
    """The prompt was interrupted."""


@dataclass(frozen=True)
class Pace:
    """The duration of a step, and whether it sends a preview."""

    step_s: float = 0.0
    previews: bool = False


class SamplingLoop:
    """Runs the steps of samplers, one sampler at a time."""

    def __init__(self, pace: Pace, faults: ComfyUIFaults, cut: Callable[[Cut], None]) -> None:
        self._pace = pace
        self._faults = faults
        self._cut = cut
        self._woken = asyncio.Event()
        self._is_interrupted = False
        self._is_released = False
        self.hanging_step: int | None = None
        self.steps_done = 0

    def begin(self) -> None:
        """Clear an interruption that arrived before the prompt started."""
        self._is_interrupted, self.hanging_step = False, None

    def interrupt(self) -> None:
        """Interrupt the running prompt at its next step or before its next node."""
        self._is_interrupted = True
        self._woken.set()

    def release(self) -> None:
        """Release a hanging step."""
        self._is_released = True
        self._woken.set()

    def check(self) -> None:
        """Raise SamplingInterrupted if the prompt was interrupted."""
        if self._is_interrupted:
            raise SamplingInterrupted

    async def run(self, sketch: Sketch, steps: int, on_step: OnStep) -> None:
        """Run all steps of a sampler."""
        for step in range(1, steps + 1):
            await self._wait(step)
            self.check()
            self.steps_done += 1
            on_step(step, await self._preview(sketch, step / steps))
            while cut := self._faults.take_cut(step):
                self._cut(cut.how)

    async def _wait(self, step: int) -> None:
        if (released := self._faults.take_server_block(step)) is not None:
            released.wait()  # blocks the server's thread
        hang = self._faults.take_hang(step)
        if hang is None:
            await (self._wait_until_woken(self._pace.step_s) if self._pace.step_s else asyncio.sleep(0))
            return
        self._is_released, self.hanging_step = False, step
        while not self._is_released and (hang.ignores_interrupt or not self._is_interrupted):
            self._woken.clear()
            await self._woken.wait()
        self.hanging_step = None

    async def _wait_until_woken(self, seconds: float) -> None:
        self._woken.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._woken.wait(), seconds)

    async def _preview(self, sketch: Sketch, done: float) -> tuple[int, bytes] | None:
        if not self._pace.previews:
            return None
        return JPEG, await asyncio.to_thread(_jpeg, sketch, done)


def _jpeg(sketch: Sketch, done: float) -> bytes:
    file = io.BytesIO()
    preview(sketch, done).save(file, "JPEG", quality=PREVIEW_QUALITY)
    return file.getvalue()
