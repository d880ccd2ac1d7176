"""What stores jobs, assets and pictures: the database, the blobs, the clock, and the patience for a full disk."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TypeVar
from weakref import WeakValueDictionary

from comfy_client.gateway.scenario.blobs import Blobs
from comfy_client.gateway.scenario.errors import ShimError, storing
from comfy_client.gateway.scenario.store import Store
from comfy_client.job import backoff_s
from comfy_core.errors import ComfyClientError
from comfy_core.images.child_process import check_picture, converted
from comfy_core.images.codec import Picture

DECODED_AT_ONCE = 2
"""Pictures of callers that are decoded at once: each may take 256 MB of memory, and a core."""
PICTURE_PATIENCE_S = 6 * 3600.0
"""How long storing a made picture is tried. It was paid for, and this process may have the only copy: RunPod keeps a
result for 30 minutes (docs/reference/runpod.md#retention)."""
LOG_EVERY = 8
"""A write that fails again and again is logged at its first failure, and then once in so many: about a minute."""

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")
Clock = Callable[[], float]


class Keeper:
    """The store (used by the loop's thread alone), the blobs, and the time of day."""

    def __init__(self, store: Store, blobs: Blobs, clock: Clock = time.time) -> None:
        self.store = store
        self.blobs = blobs
        self.clock = clock
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._decoding = asyncio.Semaphore(DECODED_AT_ONCE)

    async def checked(self, data: bytes, *, flatten: bool) -> Picture:
        """Return a caller's picture, checked. Raises JobError (invalid_image)."""
        async with self._decoding:
            return await asyncio.to_thread(check_picture, data, "image", flatten=flatten)

    async def converted(self, data: bytes, output_format: str, width: int) -> Picture:
        """Return a stored picture in another format or width."""
        async with self._decoding:
            return await asyncio.to_thread(converted, data, output_format, width)

    @asynccontextmanager
    async def holding(self, *sha256s: str) -> AsyncIterator[None]:
        """Lock pictures while they are stored but not yet named by a row, or found unused and deleted."""
        async with AsyncExitStack() as stack:
            for sha256 in sorted(set(sha256s)):
                await stack.enter_async_context(self._locks.setdefault(sha256, asyncio.Lock()))
            yield

    async def forget(self, *sha256s: str) -> None:
        """Delete the pictures that no row needs."""
        for sha256 in set(sha256s):
            async with self.holding(sha256):
                if not self.store.is_used(sha256):
                    await asyncio.to_thread(self.blobs.delete, sha256)

    async def put(self, data: bytes, mime_type: str) -> None:
        """Store a made picture, again and again: the same bytes twice change nothing.

        Raises OSError or ComfyClientError after PICTURE_PATIENCE_S.
        """
        await patiently(lambda: asyncio.to_thread(self.blobs.put, data, mime_type), "a picture", PICTURE_PATIENCE_S)

    async def write(self, write: Callable[[], _Answer]) -> _Answer:
        """Return what `write` returns, called again and again until the store takes it."""

        async def written() -> _Answer:
            return write()

        return await patiently(written, "a job's state")

    @asynccontextmanager
    async def stored(self, picture: Picture) -> AsyncIterator[str]:
        """Store a caller's picture, and hold it until its row is written; yield its sha256.

        Raises ShimError (507), or the error of a bucket. A picture without a row is deleted again.
        """
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(picture.data).hexdigest())
        try:
            async with self.holding(sha256):
                with storing(self.store.file.parent):
                    await asyncio.to_thread(self.blobs.put, picture.data, picture.mime_type)
                yield sha256
        except ShimError:
            with suppress(OSError, ComfyClientError):
                await self.forget(sha256)
            raise


async def patiently(keep: Callable[[], Awaitable[_Answer]], what: str, patience_s: float = math.inf) -> _Answer:
    """Return what `keep` returns; while the disk is full or the bucket is away, call it again for `patience_s`."""
    give_up_at = time.monotonic() + patience_s
    attempt = 0
    while True:
        try:
            return await keep()
        except (OSError, ComfyClientError) as error:
            if time.monotonic() > give_up_at:
                raise
            if attempt % LOG_EVERY == 0:
                _log.warning("%s could not be stored yet, it is tried again: %s", what, error)
        await asyncio.sleep(backoff_s(attempt))
        attempt += 1


def new_id(kind: str) -> str:
    """Return a new id in Scenario's manner: `job_`, `asset_` or `upload_`, and 24 letters and digits."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    return f"{kind}_{''.join(secrets.choice(alphabet) for _ in range(24))}"
