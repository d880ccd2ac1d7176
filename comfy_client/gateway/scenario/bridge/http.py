"""Turns a caller's request into a call of Scenario, and Scenario's response into one of the shim."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from comfy_client.gateway.scenario.bridge.bridge import Bridge
from comfy_client.gateway.scenario.bridge.generate import ForwardedGenerate
from comfy_client.gateway.scenario.bridge.upstream import UpstreamCall
from comfy_client.gateway.scenario.errors import BAD_REQUEST, ShimError
from comfy_client.gateway.scenario.idempotency import RetryHint, fingerprint
from comfy_client.gateway.scenario.routes import DRY_RUN, is_dry_run


async def pass_through(bridge: Bridge, owner: str, request: Request, body: bytes, retry: RetryHint) -> Response:
    """Forward a request to Scenario and return its response. Raises ShimError."""
    path = scenario_path(request)
    headers = {"Cache-Control": "no-store"}
    content_type = request.headers.get("content-type", "")
    if request.method == "POST" and path.startswith("/generate/"):
        call = ForwardedGenerate(
            owner=owner,
            path=path,
            body=body,
            task=path.rpartition("/")[2],
            model_id="",
            fingerprint=fingerprint(owner, path, request.url.query, hashlib.sha256(body).hexdigest()),
            query=request.url.query,
            content_type=content_type,
            retry=retry,
        )
        if is_dry_run(request.query_params):
            return JSONResponse(await bridge.estimate(call), DRY_RUN, headers)
        generated = await bridge.generate(call)
        if not await request.is_disconnected():
            bridge.mark_answered(generated)
        return JSONResponse(generated, headers=headers)
    stack = AsyncExitStack()
    try:
        forwarded = UpstreamCall(request.method, path, request.url.query, body or None, content_type)
        response = await bridge.forward(owner, forwarded, stack)
    except BaseException:
        await stack.aclose()
        raise
    headers |= response.headers
    if isinstance(response.content, bytes):
        await stack.aclose()
        return Response(response.content, response.status, headers)
    return StreamingResponse(_pieces(response.content, stack), response.status, headers)


async def _pieces(pieces: AsyncIterator[bytes], stack: AsyncExitStack) -> AsyncIterator[bytes]:
    async with stack:
        async for piece in pieces:
            yield piece


def scenario_path(request: Request) -> str:
    """Return the path of a request at Scenario, percent-encoded and without `/v1`. Raises ShimError (400)."""
    path = str(request.scope["raw_path"], "ascii", "replace").removeprefix("/v1")
    if any(part in (".", "..") for part in path.split("/")):
        raise ShimError(BAD_REQUEST, "The path must not have the parts . and ..")
    return path
