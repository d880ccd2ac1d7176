"""The shim's HTTP server (Starlette): authentication, rate limits, signed URLs, and Scenario's error format.

After a job is stored, the response never has a status that the SDK retries (408, 409, 429, 5xx:
docs/reference/scenario.md#sdk-transport). Every error except 429 has the header `x-should-retry: false`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from functools import partial
from inspect import isawaitable
from typing import TypeAlias
from urllib.parse import quote
from weakref import WeakValueDictionary

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from comfy_client.client import Client
from comfy_client.gateway.scenario.auth import CALLER_HEADER, PART_LIFE_S, Keys, Signer, image_expiry, url_secret
from comfy_client.gateway.scenario.blobs import Blobs
from comfy_client.gateway.scenario.bodies import MAX_JSON_BYTES, read_json
from comfy_client.gateway.scenario.bodies_reader import read_body, read_form
from comfy_client.gateway.scenario.bridge.bridge import Bridge
from comfy_client.gateway.scenario.bridge.http import pass_through
from comfy_client.gateway.scenario.errors import (
    FORBIDDEN,
    INTERNAL,
    METHOD_NOT_ALLOWED,
    NOT_IMPLEMENTED,
    TOO_MANY,
    UNAUTHORIZED,
    ShimError,
    bad_request,
    shim_error,
)
from comfy_client.gateway.scenario.health import HealthMonitor
from comfy_client.gateway.scenario.idempotency import RetryHint
from comfy_client.gateway.scenario.metrics import CONTENT_TYPE
from comfy_client.gateway.scenario.monitoring import ROUTE, MonitoredApp
from comfy_client.gateway.scenario.openapi import document
from comfy_client.gateway.scenario.origin import is_json, rejection_reason
from comfy_client.gateway.scenario.page.html import read_page
from comfy_client.gateway.scenario.routes import DRY_RUN, ROUTES, ApiRequest, ShimRoute, unsupported_route_advice
from comfy_client.gateway.scenario.service import ShimService
from comfy_client.gateway.scenario.settings import ShimSettings
from comfy_client.gateway.scenario.throttle import CallLimits, LoginThrottle
from comfy_client.gateway.scenario.uploads import SMALLER_IMAGE_ADVICE
from comfy_core.contract import Fault, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError
from comfy_core.images.codec import MAX_BYTES

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
MAX_BODY_BYTES = 40 * 1024 * 1024
"""An image of MAX_BYTES as base64, plus a margin."""
SMALL_BODY_BYTES = 1024 * 1024
LARGE_AT_ONCE = 4
"""Concurrent large request bodies per key: above SMALL_BODY_BYTES, or parts of uploads. They are held in memory."""
MULTIPART_ADVICE = "Use a multipart upload (POST /uploads), or send a smaller image"
METRICS_ADVICE = "Set SCENARIO_SHIM_METRICS_TOKEN, and send that token as `Authorization: Bearer …`"
UPLOAD_EXAMPLE = '{"name": "knight.png", "image": "…"} to POST /assets'
_CHUNK_BYTES = 64 * 1024
_MAX_KEY_CHARACTERS = 255
_PREFIXES = ("", "/v1")
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_log = logging.getLogger(__name__)
_base_url: ContextVar[str] = ContextVar("_base_url", default="")
"""The base URL of the current request."""


class ShimServer:
    """The ASGI application `app` of the shim. The caller has to close the client."""

    def __init__(self, client: Client, settings: ShimSettings, blobs: Blobs) -> None:
        self._settings = settings
        keys = Keys(settings.accounts, settings.tokens)
        self._is_open = keys.is_open
        self._logins = LoginThrottle(keys)
        self._metric_readers = LoginThrottle(Keys(tokens=(settings.metrics_token,), advice=METRICS_ADVICE))
        self._limits = CallLimits(settings.requests_per_minute, settings.polls_per_minute)
        self._large_slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self.service = ShimService(client, settings, blobs, url_of=self._image_url, part_of=self._part_url)
        self.health = HealthMonitor(self.service.store_file, client.health, self.service.metrics)
        self._signer = Signer(url_secret(settings.url_secret, settings.directory))
        endpoints: list[tuple[str, str, Endpoint]] = [
            ("GET", "/", self._page),
            ("GET", "/openapi.json", self._openapi),
            ("GET", "/health", self._health),
            ("GET", "/metrics", self._metrics),
            ("GET", "/pictures/{assetId}", self._image),
            ("PUT", "/parts/{uploadId}/{number:int}", self._put_part),
            *(
                (route.method, prefix + route.path, partial(self._api_call, route))
                for prefix in _PREFIXES
                for route in ROUTES
            ),
        ]
        if self.service.bridge is not None:
            forward = partial(self._pass_through, self.service.bridge)
            # `/assets/public` is a list of Scenario's, not an asset id, so it is before `/assets/{assetId}`.
            endpoints = [("GET", f"{prefix}/assets/public", forward) for prefix in _PREFIXES] + endpoints
            endpoints += [(method, "/{path:path}", forward) for method in ("GET", "POST", "PUT", "PATCH", "DELETE")]
        app = Starlette(
            routes=[
                Route(path, partial(self._checked, path.removeprefix("/v1"), endpoint), methods=[method])
                for method, path, endpoint in endpoints
            ],
            exception_handlers={
                HTTPException: self._error_response,
                ComfyClientError: self._error_response,
                Exception: self._internal_error,
            },
        )
        self.app = MonitoredApp(app, self.service.metrics, lambda: self.health.is_draining)

    async def _checked(self, template: str, endpoint: Endpoint, request: Request) -> Response:
        """Handle a request of a route. A shim without keys first rejects requests from pages of other sites."""
        request.scope[ROUTE] = template
        if self._is_open and (why := rejection_reason(request.method, request.headers, self._settings.public_url)):
            raise ShimError(FORBIDDEN, why, code=ErrorCode.AUTH_FAILED)
        return await endpoint(request)

    def _image_url(self, asset_id: str) -> str:
        path = f"/pictures/{asset_id}"
        return self._signed_url(path, image_expiry(time.time()))

    def _part_url(self, upload_id: str, number: int) -> tuple[str, float]:
        path = f"/parts/{upload_id}/{number}"
        expires = time.time() + PART_LIFE_S
        return self._signed_url(path, expires), expires

    def _signed_url(self, path: str, expires: float) -> str:
        return f"{self._settings.public_url or _base_url.get()}{path}?{self._signer.query(path, expires)}"

    def _check_signature(self, request: Request) -> None:
        if not self._signer.is_valid(request.url.path, request.query_params, time.time()):
            raise ShimError(
                UNAUTHORIZED,
                "The URL's signature is invalid or has expired. GET the asset for a new URL",
                code=ErrorCode.AUTH_FAILED,
            )

    async def _owner(self, request: Request) -> str:
        return await self._logins.owner(request.headers.get("authorization", ""), _address(request))

    async def _pass_through(self, bridge: Bridge, request: Request) -> Response:
        """Forward a request to Scenario. Its size is limited, and its images count as large bodies."""
        owner = await self._owner(request)
        self._limits.check(owner)
        return await self._forwarded(bridge, owner, request)

    async def _forwarded(self, bridge: Bridge, owner: str, request: Request) -> Response:
        async with self._body_slot(request, owner):
            body = await read_body(request, MAX_BODY_BYTES, MULTIPART_ADVICE)
            return await pass_through(bridge, owner, request, body, _retry_hint(request))

    async def _api_call(self, route: ShimRoute, request: Request) -> Response:
        owner = await self._owner(request)
        self._limits.check(owner, is_poll=route.is_poll)
        owner = self.service.callers.acting_for(owner, request.headers.get(CALLER_HEADER, ""))
        bridge = self.service.bridge
        if bridge is not None and self._is_forwarded(bridge, route, owner, request):
            return await self._forwarded(bridge, owner, request)
        if not self._settings.public_url:
            _base_url.set(str(request.base_url).rstrip("/"))
        request_body = await self._body(route, request, owner)
        call = ApiRequest(owner, request.path_params, dict(request.query_params), request_body, _retry_hint(request))
        result = route.handler(self.service, call)
        response_body = await result if isawaitable(result) else result
        match response_body:
            case {"job": {"jobId": str(job_id)}} if route.method == "POST" and not await request.is_disconnected():
                self.service.mark_answered(job_id)
        return _json(response_body, DRY_RUN if route.is_generating and call.is_dry_run else 200)

    def _is_forwarded(self, bridge: Bridge, route: ShimRoute, owner: str, request: Request) -> bool:
        """Return whether a call goes to Scenario unchanged: by the routing table, or for an upload created there."""
        if route.is_generating:
            return False
        upload_id = request.path_params.get("uploadId")
        is_foreign = upload_id is not None and not self.service.uploads.has(owner, upload_id)
        return is_foreign or bridge.serves(f"{route.method} {route.path}", owner)

    async def _body(self, route: ShimRoute, request: Request, owner: str) -> object:
        """Return the JSON body of a request, or None if it is empty. Raises ShimError."""
        if not route.may_have_image:
            data = await read_body(request, MAX_JSON_BYTES, "Send fewer or shorter fields")
            self._check_type(request, data)
            return await asyncio.to_thread(read_json, data)
        async with self._body_slot(request, owner):
            data = await read_body(request, MAX_BODY_BYTES, MULTIPART_ADVICE)
            if route.takes_form and request.headers.get("content-type", "").startswith("multipart/"):
                return await read_form(request, data)
            self._check_type(request, data)
            return await asyncio.to_thread(read_json, data)

    def _body_slot(self, request: Request, owner: str) -> AbstractAsyncContextManager[object]:
        """Return a slot for a large body, or a context that does nothing for a small one."""
        length = request.headers.get("content-length", "")
        is_small = request.method == "GET" or (length.isdigit() and int(length[:20]) <= SMALL_BODY_BYTES)
        return nullcontext() if is_small else self._large_body_slots(owner)

    def _large_body_slots(self, owner: str) -> asyncio.Semaphore:
        return self._large_slots.setdefault(owner, asyncio.Semaphore(LARGE_AT_ONCE))

    def _check_type(self, request: Request, data: bytes) -> None:
        """Raise ShimError (400) if a body is multipart, or, on a shim without keys, not declared as JSON."""
        kind = request.headers.get("content-type", "")
        if data and (kind.startswith("multipart/") or (self._is_open and not is_json(kind))):
            why = f"must be JSON, sent with Content-Type: application/json (received: {kind[:80] or 'none'})"
            raise bad_request([Fault("", f"{why}. Send an image as base64: {UPLOAD_EXAMPLE}")])

    async def _image(self, request: Request) -> Response:
        self._check_signature(request)
        query = request.query_params
        width = query.get("width", "")
        image = await self.service.assets.image(
            request.path_params["assetId"],
            output_format={"jpg": "jpeg"}.get(query.get("format", ""), query.get("format", "")),
            width=int(width) if width.isascii() and width.isdigit() and len(width) < 5 else 0,  # noqa: PLR2004 - pixels
        )
        disposition = f"inline; filename*=UTF-8''{quote(image.name, safe='')}"
        headers = {"Cache-Control": "private, max-age=86400, immutable", "Content-Disposition": disposition}
        headers["Content-Length"] = str(len(image.data))
        return StreamingResponse(
            _pieces(image.data), media_type=image.mime_type, headers={**_SECURITY_HEADERS, **headers}
        )

    async def _put_part(self, request: Request) -> Response:
        self._check_signature(request)
        uploads = self.service.uploads
        upload_id, number = request.path_params["uploadId"], request.path_params["number"]
        owner = uploads.owner_of_part(upload_id, number)
        self._limits.check(owner)
        async with self._large_body_slots(owner):
            advice = f"The maximum for all parts of an image is {MAX_BYTES:,} bytes. {SMALLER_IMAGE_ADVICE}"
            data = await read_body(request, uploads.max_part_bytes(upload_id, number), advice)
            await uploads.put_part(upload_id, number, data)
        return _json({}, headers={"ETag": f'"{number}"'})

    async def _page(self, _request: Request) -> Response:
        page = read_page()
        return HTMLResponse(page.html, headers={**_SECURITY_HEADERS, "Content-Security-Policy": page.policy})

    async def _openapi(self, request: Request) -> Response:
        return _json(document(self._settings.public_url or str(request.base_url).rstrip("/")))

    async def _health(self, _request: Request) -> Response:
        status, report = self.health.report()
        return _json(report, status)

    async def _metrics(self, request: Request) -> Response:
        """Return the metrics to a caller with the metrics token. Without one, only a shim without keys returns them."""
        if self._settings.metrics_token:
            await self._metric_readers.owner(request.headers.get("authorization", ""), _address(request))
        elif not self._is_open:
            raise ShimError(FORBIDDEN, METRICS_ADVICE, code=ErrorCode.AUTH_FAILED)
        return Response(await self.service.metrics.text(), headers={**_SECURITY_HEADERS, "Content-Type": CONTENT_TYPE})

    async def _error_response(self, request: Request, error: Exception) -> Response:
        trace_id = secrets.token_hex(8)
        match error:
            case ComfyClientError():
                response_error = shim_error(error)
            case HTTPException(status_code=405, headers=headers):
                allowed = (headers or {}).get("Allow", "others")
                reason = f"{request.method} {request.url.path[:120]} does not exist. That path supports {allowed}"
                response_error = ShimError(METHOD_NOT_ALLOWED, reason)
            case _:
                path = request.url.path
                reason = f"The shim has no {request.method} {path[:120]}: {unsupported_route_advice(path)}"
                response_error = ShimError(NOT_IMPLEMENTED, reason)
        path = request.url.path[:200]
        _log.info("%s: %s %r: %d (%s)", _address(request), request.method, path, response_error.status, trace_id)
        headers = {} if response_error.status == TOO_MANY else {"x-should-retry": "false"}
        return _json(response_error.body(trace_id), response_error.status, headers | response_error.headers)

    async def _internal_error(self, request: Request, error: Exception) -> Response:
        trace_id = secrets.token_hex(8)
        _log.error("bug in the shim: %s %r (%s)", request.method, request.url.path[:200], trace_id, exc_info=error)
        response_error = ShimError(INTERNAL, f"Bug in the shim. Search its log for {trace_id}", code=ErrorCode.INTERNAL)
        return _json(response_error.body(trace_id), INTERNAL, {"x-should-retry": "false"})


def _json(body: JsonObject, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(body, status, headers={**_SECURITY_HEADERS, **(headers or {})})


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _retry_hint(request: Request) -> RetryHint:
    count = request.headers.get("x-stainless-retry-count", "")
    key = request.headers.get("idempotency-key", "")[:_MAX_KEY_CHARACTERS]
    return RetryHint(int(count) if count.isascii() and count.isdigit() and len(count) < 3 else 0, key)  # noqa: PLR2004 - limits the size of the number


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    """Yield an image in pieces, so that the stall timeout does not hit clients that read slowly."""
    for begin in range(0, len(data), _CHUNK_BYTES):
        yield data[begin : begin + _CHUNK_BYTES]
