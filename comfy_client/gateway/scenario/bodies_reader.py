"""Reads a request's body within limits of size and time."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import ClientDisconnect, Request

from comfy_client.gateway.scenario.errors import NOT_FOUND, TIMED_OUT, TOO_LARGE, ShimError
from comfy_core.contract import ErrorCode

GRACE_S = 20.0
"""How long any body may take. Each LEAST_BYTES_PER_S that arrive add a second."""
LEAST_BYTES_PER_S = 20_000


async def read_body(request: Request, most: int, advice: str, grace_s: float = GRACE_S) -> bytes:
    """Return the whole body.

    Raises ShimError: 413 with `advice` as soon as it is known to have more than `most` bytes, 408 if it is slow, 404 if
    the caller went away.
    """
    reason = f"The body has more than {most:,} bytes. {advice}"
    too_large = ShimError(TOO_LARGE, reason, code=ErrorCode.PAYLOAD_TOO_LARGE)
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > most:
        raise too_large
    parts: list[bytes] = []
    size = 0
    begun_at = time.monotonic()
    stream = request.stream()
    try:
        while True:
            left_s = begun_at + grace_s + size / LEAST_BYTES_PER_S - time.monotonic()
            chunk = await asyncio.wait_for(anext(stream, None), left_s)
            if chunk is None:
                return b"".join(parts)
            size += len(chunk)
            if size > most:
                raise too_large
            parts.append(chunk)
    except ClientDisconnect:
        raise ShimError(NOT_FOUND, "The caller went away") from None
    except TimeoutError:
        raise ShimError(
            TIMED_OUT,
            f"The body came too slowly: {size:,} bytes in {time.monotonic() - begun_at:.0f} s. Send it again, faster",
            code=ErrorCode.NETWORK,
            headers={"Connection": "close"},
        ) from None
