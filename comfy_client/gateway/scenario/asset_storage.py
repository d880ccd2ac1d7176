"""Combines the database, the image files and the clock. Retries the writes that belong to a running job."""

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
from comfy_core.backoff import backoff_s
from comfy_core.errors import ComfyClientError
from comfy_core.images.child_process import check_image, converted, with_alpha_of
from comfy_core.images.codec import EncodedImage
from comfy_core.images.forms import ImageForm

DECODED_AT_ONCE = 2
"""Uploaded images that are decoded concurrently. Each may need 256 MB of memory and one CPU core."""
IMAGE_PATIENCE_S = 6 * 3600.0
"""How long the storage of a generated image is retried. This process may have the only copy, because RunPod deletes a
result after 30 minutes (docs/reference/runpod.md#retention)."""
LOG_EVERY = 8
"""Every eighth failure of a retried write is logged, starting with the first: about one line a minute."""

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
Clock = Callable[[], float]


class AssetStorage:
    """The database (only used by the event loop's thread), the image files, and the clock."""

    def __init__(self, store: Store, blobs: Blobs, clock: Clock = time.time) -> None:
        self.store = store
        self.blobs = blobs
        self.clock = clock
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._decoding = asyncio.Semaphore(DECODED_AT_ONCE)

    async def checked(self, data: bytes, *, form: ImageForm) -> EncodedImage:
        """Return a caller's image in a form that LoadImage accepts. Raises JobError."""
        async with self._decoding:
            return await asyncio.to_thread(check_image, data, "image", form=form)

    async def masked(self, image: bytes, mask: bytes) -> EncodedImage:
        """Return a caller's image with the alpha channel of a mask. Raises JobError."""
        async with self._decoding:
            return await asyncio.to_thread(with_alpha_of, image, mask)

    async def converted(self, data: bytes, output_format: str, width: int) -> EncodedImage:
        """Return a stored image in another format or width."""
        async with self._decoding:
            return await asyncio.to_thread(converted, data, output_format, width)

    @asynccontextmanager
    async def locked(self, *sha256s: str) -> AsyncIterator[None]:
        """Lock images by SHA-256, so that none is deleted as unused before its database row is written."""
        async with AsyncExitStack() as stack:
            for sha256 in sorted(set(sha256s)):
                await stack.enter_async_context(self._locks.setdefault(sha256, asyncio.Lock()))
            yield

    async def delete_unused(self, *sha256s: str) -> None:
        """Delete each of these images that no asset and no unfinished job uses."""
        for sha256 in set(sha256s):
            async with self.locked(sha256):
                if not self.store.is_used(sha256):
                    await asyncio.to_thread(self.blobs.delete, sha256)

    async def put(self, data: bytes, mime_type: str) -> None:
        """Store a generated image, with retries. Raises OSError or ComfyClientError after IMAGE_PATIENCE_S."""
        await retry_until_stored(
            lambda: asyncio.to_thread(self.blobs.put, data, mime_type), "an image", IMAGE_PATIENCE_S
        )

    async def write(self, write: Callable[[], _Result]) -> _Result:
        """Call `write`, which writes to the database, until it succeeds. Return the result of that call."""

        async def write_async() -> _Result:
            return write()

        return await retry_until_stored(write_async, "a job's state")

    @asynccontextmanager
    async def stored(self, image: EncodedImage) -> AsyncIterator[str]:
        """Store and lock a caller's image, and yield its SHA-256. The block then writes the database row of the image.

        Raises ShimError (507), or a ComfyClientError of the bucket. If the disk has no space for the image or for its
        row, the image is deleted, unless something else uses it.
        """
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(image.data).hexdigest())
        try:
            async with self.locked(sha256):
                with storing(self.store.file.parent):
                    await asyncio.to_thread(self.blobs.put, image.data, image.mime_type)
                yield sha256
        except ShimError:
            with suppress(OSError, ComfyClientError):
                await self.delete_unused(sha256)
            raise


async def retry_until_stored(
    store: Callable[[], Awaitable[_Result]], what: str, patience_s: float = math.inf
) -> _Result:
    """Call `store` until it succeeds, and return its result. After `patience_s`, raise the last error.

    The disk may be full, or the bucket unreachable. `what` names the stored thing in the log.
    """
    give_up_at = time.monotonic() + patience_s
    attempt = 0
    while True:
        try:
            return await store()
        except (OSError, ComfyClientError) as error:
            if time.monotonic() > give_up_at:
                raise
            if attempt % LOG_EVERY == 0:
                _log.warning("%s could not be stored, will retry: %s", what, error)
        await asyncio.sleep(backoff_s(attempt))
        attempt += 1


def new_id(kind: str) -> str:
    """Return a new id in Scenario's format: `job_`, `asset_` or `upload_`, and 24 letters and digits."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    return f"{kind}_{''.join(secrets.choice(alphabet) for _ in range(24))}"
