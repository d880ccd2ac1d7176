"""Posts the progress of one job: in order, only the newest, at most once a second, and never after the result.

The SDK's own `progress_update` starts a thread for each call and does not order them: a post that arrives after the
result leaves the job IN_PROGRESS forever (runpod-python #250). Here one task posts sequentially; `drain` ends the task.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict

from comfy_core.contract import JsonObject
from comfy_core.images.codec import small_preview
from comfy_core.progress import Progress

INTERVAL_S = 1.0
DRAIN_TIMEOUT_S = 10.0
"""Seconds that `drain` waits for a post in progress before it cancels the post, which closes the connection."""

log = logging.getLogger(__name__)

Post = Callable[[JsonObject], Awaitable[None]]


def progress_output(progress: Progress) -> JsonObject:
    """Return what a caller receives as `output` while the job is IN_PROGRESS.

    `images` is always present and empty: callers of worker-comfyui, which posts no progress, read `output.images[0]` as
    soon as a job has an `output`.
    """
    output: JsonObject = {
        "images": [],
        "stage": progress.stage,
        **asdict(progress.sampling),
        **progress.bytes_fields,
    }
    if progress.preview is not None and (preview := small_preview(progress.preview)) is not None:
        output["preview"] = base64.b64encode(preview).decode("ascii")
    return output


class ProgressSender:
    """Posts the newest progress of one job. Create it in a running event loop; `report` is thread-safe."""

    def __init__(self, post: Post, interval_s: float = INTERVAL_S, drain_s: float = DRAIN_TIMEOUT_S) -> None:
        self._post = post
        self._interval_s = interval_s
        self._drain_s = drain_s
        self._newest: JsonObject | None = None
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._send_until_ended())

    def report(self, progress: JsonObject) -> None:
        """Schedule `progress` to be posted. It replaces an earlier progress that was not posted yet."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the job with it
            self._loop.call_soon_threadsafe(self._note, progress)

    async def drain(self) -> None:
        """Stop posting, and return when no post is in progress. A failed post is logged."""
        self._ended.set()
        self._changed.set()
        done, _ = await asyncio.wait({self._task}, timeout=self._drain_s)
        if not done:
            log.warning("posting progress timed out; cancelled")
            self._task.cancel()
            await asyncio.wait({self._task})
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            log.warning("progress could not be posted: %s", type(error).__name__)

    def _note(self, progress: JsonObject) -> None:
        self._newest = progress
        self._changed.set()

    async def _send_until_ended(self) -> None:
        while not self._ended.is_set():
            await self._changed.wait()
            self._changed.clear()
            newest, self._newest = self._newest, None
            if newest is None or self._ended.is_set():
                continue
            await self._post(newest)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), self._interval_s)
