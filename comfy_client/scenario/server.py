"""The shim over HTTP (Starlette): authentication, limits, signed addresses, and errors in Scenario's shape.

An answer behind a stored job is never one that the SDK repeats (408, 409, 429, 5xx: reference/scenario.md 1.5), and
every error says `x-should-retry: false` but a 429.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from comfy_client.client import Client
from comfy_client.contract import ErrorCode, JsonObject
from comfy_client.errors import ComfyClientError
from comfy_client.images import MAX_BYTES
from comfy_client.scenario.auth import PART_LIFE_S, Keys, Signer, picture_expiry, url_secret
from comfy_client.scenario.blobs import Blobs
from comfy_client.scenario.errors import (
    INTERNAL,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    NOT_HERE,
    TOO_LARGE,
    TOO_MANY,
    UNAUTHORIZED,
    ShimError,
    shim_error,
)
from comfy_client.scenario.openapi import document
from comfy_client.scenario.page import read_page
from comfy_client.scenario.repeats import Repeat
from comfy_client.scenario.routes import ROUTES, Answer, Call, ShimRoute, read_body, why_not_here
from comfy_client.scenario.service import ShimService
from comfy_client.scenario.settings import ShimSettings

MAX_BODY_BYTES = 40 * 1024 * 1024
"""A picture of MAX_BYTES as base64, and some more."""
_MAX_KEY = 255
_PREFIXES = ("", "/v1")
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_log = logging.getLogger(__name__)
_base_url: ContextVar[str] = ContextVar("_base_url", default="")
"""The address that the call came to."""


@dataclass
class _Limiter:
    """How often an owner may call."""

    per_minute: int

    def __post_init__(self) -> None:
        self._limit = RateLimitItemPerMinute(self.per_minute)
        self._window = SlidingWindowCounterRateLimiter(MemoryStorage())

    def check(self, owner: str) -> None:
        """Count a call. Raises ShimError (429)."""
        if self._window.hit(self._limit, owner):
            return
        left_s = max(1, round(self._window.get_window_stats(self._limit, owner).reset_time - time.time()))
        raise ShimError(
            TOO_MANY,
            f"More than {self.per_minute} calls in a minute: go on in {left_s} s, and poll a job every 2 or 3 s",
            code=ErrorCode.RATE_LIMITED,
            headers={"Retry-After": str(left_s)},
            remainingSeconds=left_s,
        )


class ShimServer:
    """The application `app` over a client and its settings. The client is the caller's to close."""

    def __init__(self, client: Client, settings: ShimSettings, blobs: Blobs) -> None:
        self._settings = settings
        self._keys = Keys(settings.accounts, settings.tokens)
        self._signer = Signer(url_secret(settings.url_secret, settings.directory))
        self._limiter = _Limiter(settings.requests_per_minute)
        self.service = ShimService(client, settings, blobs, url_of=self._picture_url, part_of=self._part_url)
        routes = [
            Route(prefix + route.path, partial(self._answered, route), methods=[route.method])
            for prefix in _PREFIXES
            for route in ROUTES
        ]
        self.app = Starlette(
            routes=[
                *routes,
                Route("/", self._page, methods=["GET"]),
                Route("/openapi.json", self._openapi, methods=["GET"]),
                Route("/health", self._health, methods=["GET"]),
                Route("/pictures/{assetId}", self._picture, methods=["GET"]),
                Route("/parts/{uploadId}/{number:int}", self._put_part, methods=["PUT"]),
            ],
            exception_handlers={
                HTTPException: self._refused,
                ComfyClientError: self._refused,
                Exception: self._broken,
            },
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async with self.service:
            yield

    # --- addresses

    def _picture_url(self, asset_id: str) -> str:
        path = f"/pictures/{asset_id}"
        return self._address(path, picture_expiry(time.time()))

    def _part_url(self, upload_id: str, number: int) -> tuple[str, float]:
        path = f"/parts/{upload_id}/{number}"
        until = time.time() + PART_LIFE_S
        return self._address(path, until), until

    def _address(self, path: str, until: float) -> str:
        return f"{self._settings.public_url or _base_url.get()}{path}?{self._signer.query(path, until)}"

    def _check_signature(self, request: Request) -> None:
        if not self._signer.is_good(request.url.path, request.query_params, time.time()):
            raise ShimError(
                UNAUTHORIZED,
                "The address is not signed by the shim, or has ended: GET the asset for a new one",
                code=ErrorCode.AUTH_FAILED,
            )

    # --- answers

    async def _answered(self, route: ShimRoute, request: Request) -> Response:
        owner = self._keys.owner(request.headers.get("authorization", ""))
        self._limiter.check(owner)
        if not self._settings.public_url:
            _base_url.set(str(request.base_url).rstrip("/"))
        body = read_body(await _limited_body(request, MAX_BODY_BYTES))
        call = Call(owner, request.path_params, dict(request.query_params), body, _repeat(request))
        answer = await route.handler(self.service, call)
        if isinstance(answer, Answer):
            return _json(answer.body, answer.status)
        match answer:
            case {"job": {"jobId": str(job_id)}} if route.method == "POST" and not await request.is_disconnected():
                self.service.answered(job_id)
        return _json(answer)

    async def _picture(self, request: Request) -> Response:
        self._check_signature(request)
        query = request.query_params
        width = query.get("width", "")
        picture = await self.service.assets.picture(
            request.path_params["assetId"],
            output_format={"jpg": "jpeg"}.get(query.get("format", ""), query.get("format", "")),
            width=int(width) if width.isascii() and width.isdigit() and len(width) < 5 else 0,  # noqa: PLR2004 - pixels
        )
        disposition = f"inline; filename*=UTF-8''{quote(picture.name, safe='')}"
        headers = {"Cache-Control": "private, max-age=86400, immutable", "Content-Disposition": disposition}
        return Response(picture.data, media_type=picture.mime_type, headers={**_SECURITY_HEADERS, **headers})

    async def _put_part(self, request: Request) -> Response:
        self._check_signature(request)
        data = await _limited_body(request, MAX_BYTES)
        await self.service.uploads.put_part(request.path_params["uploadId"], request.path_params["number"], data)
        return _json({}, headers={"ETag": f'"{request.path_params["number"]}"'})

    async def _page(self, _request: Request) -> Response:
        page = read_page()
        return HTMLResponse(page.html, headers={**_SECURITY_HEADERS, "Content-Security-Policy": page.policy})

    async def _openapi(self, request: Request) -> Response:
        return _json(document(self._settings.public_url or str(request.base_url).rstrip("/")))

    async def _health(self, _request: Request) -> Response:
        return _json({"status": "ok"})

    # --- errors

    async def _refused(self, request: Request, error: Exception) -> Response:
        trace_id = secrets.token_hex(8)
        match error:
            case ComfyClientError():
                told = shim_error(error)
            case HTTPException(status_code=405, headers=headers):
                allowed = (headers or {}).get("Allow", "others")
                reason = f"{request.method} {request.url.path[:120]} is not there; it has {allowed}"
                told = ShimError(METHOD_NOT_ALLOWED, reason)
            case _:
                reason = f"{request.method} {request.url.path[:120]} is not there: {why_not_here(request.url.path)}"
                told = ShimError(NOT_HERE, reason)
        _log.info("%s %r: %d (%s)", request.method, request.url.path[:200], told.status, trace_id)
        headers = {} if told.status == TOO_MANY else {"x-should-retry": "false"}
        return _json(told.body(trace_id), told.status, headers | told.headers)

    async def _broken(self, request: Request, error: Exception) -> Response:
        trace_id = secrets.token_hex(8)
        _log.error("a bug in the shim, at %s %r (%s)", request.method, request.url.path[:200], trace_id, exc_info=error)
        told = ShimError(INTERNAL, f"A bug in the shim; its log has {trace_id}", code=ErrorCode.INTERNAL)
        return _json(told.body(trace_id), INTERNAL, {"x-should-retry": "false"})


def _json(body: JsonObject, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(body, status, headers={**_SECURITY_HEADERS, **(headers or {})})


def _repeat(request: Request) -> Repeat:
    count = request.headers.get("x-stainless-retry-count", "")
    key = request.headers.get("idempotency-key", "")[:_MAX_KEY]
    return Repeat(int(count) if count.isascii() and count.isdigit() and len(count) < 3 else 0, key)  # noqa: PLR2004 - no endless number


async def _limited_body(request: Request, most: int) -> bytes:
    """Return the whole body. Raises ShimError (413) as soon as it is known to be too large."""
    too_large = ShimError(
        TOO_LARGE,
        f"The body has more than {most:,} bytes: upload the picture in parts (POST /uploads), or smaller",
        code=ErrorCode.PAYLOAD_TOO_LARGE,
    )
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > most:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > most:
                raise too_large
            parts.append(chunk)
    except ClientDisconnect:
        raise ShimError(NOT_FOUND, "The caller went away") from None
    return b"".join(parts)
