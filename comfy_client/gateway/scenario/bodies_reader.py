"""Reads request bodies within limits on size and time."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from comfy_client.gateway.scenario.bodies import Attached
from comfy_client.gateway.scenario.errors import NOT_FOUND, TIMED_OUT, TOO_LARGE, ShimError, bad_request
from comfy_core.contract import Fault, JsonObject
from comfy_core.error_codes import ErrorCode

BODY_GRACE_S = 20.0
"""Time limit for a body. Every MIN_BYTES_PER_S bytes received add one second."""
MIN_BYTES_PER_S = 20_000
MAX_FORM_FIELDS = 60
MAX_FORM_FILES = 17
"""OpenAI's limit of 16 images, and a mask."""


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
    async with _form(request, data, max_files=1) as form:
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        file = next((value for value in form.values() if isinstance(value, UploadFile)), None)
        if file is None:
            raise bad_request([Fault("", "has no file. Send the image as a file, or as JSON with name and image")])
        return {"name": file.filename or "image.png", **fields, "image": await _attached(file)}


async def read_image_form(request: Request, data: bytes) -> JsonObject:
    """Return a multipart form as a JSON body whose files are base64. Raises ShimError (400).

    The values of a field whose name ends with `[]` are a list, as are several values of one name.
    """
    values: dict[str, list[str]] = {}
    async with _form(request, data, max_files=MAX_FORM_FILES) as form:
        for name, value in form.multi_items():
            values.setdefault(name, []).append(value if isinstance(value, str) else await _attached(value))
    is_list = {name: name.endswith("[]") or len(items) > 1 for name, items in values.items()}
    return {name.removesuffix("[]"): items if is_list[name] else items[0] for name, items in values.items()}


@asynccontextmanager
async def _form(request: Request, data: bytes, *, max_files: int) -> AsyncIterator[FormData]:
    """Yield a parsed multipart body, and close its files. Raises ShimError (400)."""

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield data

    try:
        form = await MultiPartParser(request.headers, chunks(), max_files=max_files, max_fields=MAX_FORM_FIELDS).parse()
    except (MultiPartException, KeyError) as error:
        raise bad_request([Fault("", f"is not valid multipart/form-data ({error})")]) from None
    try:
        yield form
    finally:
        await form.close()


async def _attached(file: UploadFile) -> Attached:
    return Attached.of(await asyncio.to_thread(base64.b64encode, await file.read()))
