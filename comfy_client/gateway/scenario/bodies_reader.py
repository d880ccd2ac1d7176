"""Reads request bodies within limits on size and time."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from comfy_client.gateway.scenario.bodies import Attached
from comfy_client.gateway.scenario.errors import NOT_FOUND, TIMED_OUT, TOO_LARGE, ShimError, bad_request
from comfy_core.contract import Fault, JsonObject
from comfy_core.error_codes import ErrorCode

BODY_GRACE_S = 20.0
"""Time limit for a body. Every MIN_BYTES_PER_S bytes received add one second."""
MIN_BYTES_PER_S = 20_000


async def read_body(request: Request, max_bytes: int, advice: str, grace_s: float = BODY_GRACE_S) -> bytes:
    """Return the whole body.

    Raises ShimError: 413 with `advice` as soon as the body exceeds `max_bytes`, 408 if it is too slow, 404 if the
    caller disconnected.
    """
    reason = f"The body has more than {max_bytes:,} bytes. {advice}"
    too_large = ShimError(TOO_LARGE, reason, code=ErrorCode.PAYLOAD_TOO_LARGE)
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > max_bytes:
        raise too_large
    parts: list[bytes] = []
    size = 0
    begun_at = time.monotonic()
    stream = request.stream()
    try:
        while True:
            left_s = begun_at + grace_s + size / MIN_BYTES_PER_S - time.monotonic()
            chunk = await asyncio.wait_for(anext(stream, None), left_s)
            if chunk is None:
                return b"".join(parts)
            size += len(chunk)
            if size > max_bytes:
                raise too_large
            parts.append(chunk)
    except ClientDisconnect:
        raise ShimError(NOT_FOUND, "The caller disconnected") from None
    except TimeoutError:
        raise ShimError(
            TIMED_OUT,
            f"The body arrived too slowly: {size:,} bytes in {time.monotonic() - begun_at:.0f} s. Send it faster",
            code=ErrorCode.NETWORK,
            headers={"Connection": "close"},
        ) from None


async def read_form(request: Request, data: bytes) -> JsonObject:
    """Return a multipart upload (`multipart/form-data`) as the JSON body of POST /assets. Raises ShimError (400).

    The image is the first file. Its name is the field `name`, or else its file name.
    """

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield data

    try:
        form = await MultiPartParser(request.headers, chunks(), max_files=1, max_fields=20).parse()
    except (MultiPartException, KeyError) as error:
        raise bad_request([Fault("", f"is not valid multipart/form-data ({error})")]) from None
    fields = {name: value for name, value in form.items() if isinstance(value, str)}
    file = next((value for value in form.values() if isinstance(value, UploadFile)), None)
    if file is None:
        raise bad_request([Fault("", "has no file. Send the image as a file, or as JSON with name and image")])
    content = await file.read()
    await form.close()
    image = Attached.of(await asyncio.to_thread(base64.b64encode, content))
    return {"name": file.filename or "image.png", **fields, "image": image}
