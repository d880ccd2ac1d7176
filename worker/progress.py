"""Progress of one job: ordered, at most one a second, only the newest, and drained before the result is returned.

The SDK's own `progress_update` starts a thread a call and orders nothing: one that lands after the result leaves the
job IN_PROGRESS for good (runpod-python #250). Here one task sends, one post at a time, and `drain` ends it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import Awaitable, Callable

from comfy_core.comfyui.prompt_monitor import RunProgress
from comfy_core.contract import JsonObject
from comfy_core.images.codec import small_preview

INTERVAL_S = 1.0
DRAIN_S = 10.0
"""How long a post that is under way is waited for; then it is given up and its connection closed."""

log = logging.getLogger(__name__)

Post = Callable[[JsonObject], Awaitable[None]]


def progress_of(sampling: RunProgress) -> JsonObject:
    """Return what a caller sees as `output` while the job is IN_PROGRESS.

    `images` is always there and empty: callers of worker-comfyui, which posts no progress, read `output.images[0]` as
    soon as a job has an `output`.
    """
    progress: JsonObject = {
        "images": [],
        "stage": "sampling",
        "picture": sampling.picture,
        "pictures": sampling.pictures,
        "step": sampling.step,
        "steps": sampling.steps,
        "percent": sampling.percent,
    }
    if sampling.preview is not None and (preview := small_preview(sampling.preview)) is not None:
        progress["preview"] = base64.b64encode(preview).decode("ascii")
    return progress


class ProgressSender:
    """Sends the newest progress of one job. Made in a running event loop; `report` may be called from any thread."""

    def __init__(self, post: Post, interval_s: float = INTERVAL_S, drain_s: float = DRAIN_S) -> None:
        self._post = post
        self._interval_s = interval_s
        self._drain_s = drain_s
        self._newest: JsonObject | None = None
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._send_always())

    def report(self, progress: JsonObject) -> None:
        """Have `progress` sent when its turn comes; an older one that was not sent yet is dropped."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the job with it
            self._loop.call_soon_threadsafe(self._note, progress)

    async def drain(self) -> None:
        """Return when nothing is under way any more and nothing will be sent. A post that failed is logged."""
        self._ended.set()
        self._changed.set()
        done, _ = await asyncio.wait({self._task}, timeout=self._drain_s)
        if not done:
            log.warning("a post of progress hangs; giving it up")
            self._task.cancel()
            await asyncio.wait({self._task})
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            log.warning("progress could not be posted: %s", type(error).__name__)

    def _note(self, progress: JsonObject) -> None:
        self._newest = progress
        self._changed.set()

    async def _send_always(self) -> None:
        while not self._ended.is_set():
            await self._changed.wait()
            self._changed.clear()
            newest, self._newest = self._newest, None
            if newest is None or self._ended.is_set():
                continue
            await self._post(newest)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), self._interval_s)
