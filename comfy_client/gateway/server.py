"""The shim's HTTP server (Starlette): authentication, rate limits, signed URLs, and Scenario's error format.

After a job is stored, the response never has a status that the SDK retries (408, 409, 429, 5xx:
docs/reference/scenario.md#sdk-transport). Every error except 429 has the header `x-should-retry: false`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from functools import partial
from inspect import isawaitable
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from comfy_client.client import Client
from comfy_client.gateway.health import HealthMonitor
from comfy_client.gateway.monitoring import ROUTE, MonitoredApp
from comfy_client.gateway.openai.api import REQUEST_ID, REQUEST_ID_HEADER, Endpoint, OpenAiApi, RouteKey, is_call, mark
from comfy_client.gateway.openai.errors import error_body, unknown_route
from comfy_client.gateway.scenario.access import MAX_BODY_BYTES, Access, address_of, retry_hint
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
from comfy_client.gateway.scenario.metrics import CONTENT_TYPE
from comfy_client.gateway.scenario.openapi import document
from comfy_client.gateway.scenario.origin import is_json
from comfy_client.gateway.scenario.page.html import read_page
from comfy_client.gateway.scenario.responses import SECURITY_HEADERS, pieces
from comfy_client.gateway.scenario.routes import DRY_RUN, ROUTES, ApiRequest, ShimRoute, unsupported_route_advice
from comfy_client.gateway.scenario.service import ShimService
from comfy_client.gateway.scenario.settings import ShimSettings
from comfy_client.gateway.scenario.throttle import LoginThrottle
from comfy_client.gateway.scenario.uploads import SMALLER_IMAGE_ADVICE
from comfy_core.contract import Fault, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError
from comfy_core.images.codec import MAX_BYTES
from comfy_core.workflows import Workflow

MULTIPART_ADVICE = "Use a multipart upload (POST /uploads), or send a smaller image"
METRICS_ADVICE = "Set SCENARIO_SHIM_METRICS_TOKEN, and send that token as `Authorization: Bearer …`"
UPLOAD_EXAMPLE = '{"name": "knight.png", "image": "…"} to POST /assets'
IMAGE_POLICY = "default-src 'none'; sandbox"
"""The type of an image is that of the result. As HTML or SVG, it runs no script with the web page's origin."""
_log = logging.getLogger(__name__)


class ShimServer:
    """The ASGI application `app` of the shim. The caller has to close the client.

    Args:
        workflows: the models of OpenAI's API, or None for a server without that API.
        has_scenario: whether Scenario's routes exist with the prefix `/v1`, too. Without it they only serve the web
            page.
    """

    def __init__(
        self,
        client: Client,
        settings: ShimSettings,
        blobs: Blobs,
        *,
        workflows: Mapping[str, Workflow] | None = None,
        has_scenario: bool = True,
    ) -> None:
        self._settings = settings
        self._access = Access(settings)
        self._metric_readers = LoginThrottle(Keys(tokens=(settings.metrics_token,), advice=METRICS_ADVICE))
        self.service = ShimService(client, settings, blobs, url_of=self._image_url, part_of=self._part_url)
        self.health = HealthMonitor(self.service.store_file, client.health, self.service.metrics)
        self._signer = Signer(url_secret(settings.url_secret, settings.directory))
        prefixes = ("", "/v1") if has_scenario else ("",)
        endpoints: list[tuple[str, str, Endpoint]] = [
            ("GET", "/", self._page),
            ("GET", "/openapi.json", self._openapi),
            ("GET", "/health", self._health),
            ("GET", "/metrics", self._metrics),
            ("GET", "/pictures/{assetId}", self._image),
            ("PUT", "/parts/{uploadId}/{number:int}", self._put_part),
            *(
                (route.method, prefix + route.path, partial(self._api_call, route))
                for prefix in prefixes
                for route in ROUTES
            ),
        ]
        if self.service.bridge is not None:
            forward = partial(self._pass_through, self.service.bridge)
            # `/assets/public` is a list of Scenario's, not an asset id, so it is before `/assets/{assetId}`.
            endpoints = [("GET", f"{prefix}/assets/public", forward) for prefix in prefixes] + endpoints
            endpoints += [(method, "/{path:path}", forward) for method in ("GET", "POST", "PUT", "PATCH", "DELETE")]
        checked: dict[RouteKey, Endpoint] = {
            (method, path): partial(self._checked, path, endpoint) for method, path, endpoint in endpoints
        }
        self._has_openai = workflows is not None
        if workflows is not None:
            openai = OpenAiApi(self.service, self._access, workflows, is_strict=settings.is_strict)
            checked = openai.added_to(checked, self._checked)
        app = Starlette(
            routes=[Route(path, endpoint, methods=[method]) for (method, path), endpoint in checked.items()],
            exception_handlers={
                HTTPException: self._error_response,
                ComfyClientError: self._error_response,
                Exception: self._internal_error,
            },
        )
        self.app = MonitoredApp(app, self.service.metrics, lambda: self.health.is_draining)

    async def _checked(self, path: str, endpoint: Endpoint, request: Request) -> Response:
        """Handle a request of a route. A shim without keys first rejects requests from pages of other sites."""
        request.scope[ROUTE] = path.removeprefix("/v1")
        self._access.check_origin(request)
        return await endpoint(request)

    def _image_url(self, asset_id: str) -> str:
        path = f"/pictures/{asset_id}"
        return self._signed_url(path, image_expiry(time.time()))

    def _part_url(self, upload_id: str, number: int) -> tuple[str, float]:
        path = f"/parts/{upload_id}/{number}"
        expires = time.time() + PART_LIFE_S
        return self._signed_url(path, expires), expires

    def _signed_url(self, path: str, expires: float) -> str:
        return f"{self._access.base_url}{path}?{self._signer.query(path, expires)}"

    def _check_signature(self, request: Request) -> None:
        if not self._signer.is_valid(request.url.path, request.query_params, time.time()):
            raise ShimError(
                UNAUTHORIZED,
                "The URL's signature is invalid or has expired. GET the asset for a new URL",
                code=ErrorCode.AUTH_FAILED,
            )

    async def _pass_through(self, bridge: Bridge, request: Request) -> Response:
        """Forward a request to Scenario. Its size is limited, and its images count as large bodies."""
        owner = await self._access.owner(request)
        return await self._forwarded(bridge, owner, request)

    async def _forwarded(self, bridge: Bridge, owner: str, request: Request) -> Response:
        async with self._access.body_slot(request, owner):
            body = await read_body(request, MAX_BODY_BYTES, MULTIPART_ADVICE)
            return await pass_through(bridge, owner, request, body, retry_hint(request))

    async def _api_call(self, route: ShimRoute, request: Request) -> Response:
        owner = await self._access.owner(request, is_poll=route.is_poll)
        owner = self.service.callers.acting_for(owner, request.headers.get(CALLER_HEADER, ""))
        bridge = self.service.bridge
        if bridge is not None and self._is_forwarded(bridge, route, owner, request):
            return await self._forwarded(bridge, owner, request)
        self._access.remember_base_url(request)
        request_body = await self._body(route, request, owner)
        call = ApiRequest(owner, request.path_params, dict(request.query_params), request_body, retry_hint(request))
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
        async with self._access.body_slot(request, owner):
            data = await read_body(request, MAX_BODY_BYTES, MULTIPART_ADVICE)
            if route.takes_form and request.headers.get("content-type", "").startswith("multipart/"):
                return await read_form(request, data)
            self._check_type(request, data)
            return await asyncio.to_thread(read_json, data)

    def _check_type(self, request: Request, data: bytes) -> None:
        """Raise ShimError (400) if a body is multipart, or, on a shim without keys, not declared as JSON."""
        kind = request.headers.get("content-type", "")
        if data and (kind.startswith("multipart/") or (self._access.is_open and not is_json(kind))):
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
        headers = {
            "Cache-Control": "private, max-age=86400, immutable",
            "Content-Disposition": disposition,
            "Content-Security-Policy": IMAGE_POLICY,
        }
        headers["Content-Length"] = str(len(image.data))
        return StreamingResponse(
            pieces(image.data), media_type=image.mime_type, headers={**SECURITY_HEADERS, **headers}
        )

    async def _put_part(self, request: Request) -> Response:
        self._check_signature(request)
        uploads = self.service.uploads
        upload_id, number = request.path_params["uploadId"], request.path_params["number"]
        owner = uploads.owner_of_part(upload_id, number)
        self._access.limits.check(owner)
        async with self._access.large_body_slots(owner):
            advice = f"The maximum for all parts of an image is {MAX_BYTES:,} bytes. {SMALLER_IMAGE_ADVICE}"
            data = await read_body(request, uploads.max_part_bytes(upload_id, number), advice)
            await uploads.put_part(upload_id, number, data)
        return _json({}, headers={"ETag": f'"{number}"'})

    async def _page(self, _request: Request) -> Response:
        page = read_page()
        return HTMLResponse(page.html, headers={**SECURITY_HEADERS, "Content-Security-Policy": page.policy})

    async def _openapi(self, request: Request) -> Response:
        return _json(document(self._settings.public_url or str(request.base_url).rstrip("/")))

    async def _health(self, _request: Request) -> Response:
        status, report = self.health.report()
        return _json(report, status)

    async def _metrics(self, request: Request) -> Response:
        """Return the metrics to a caller with the metrics token. Without one, only a shim without keys returns them."""
        if self._settings.metrics_token:
            await self._metric_readers.owner(request.headers.get("authorization", ""), address_of(request))
        elif not self._access.is_open:
            raise ShimError(FORBIDDEN, METRICS_ADVICE, code=ErrorCode.AUTH_FAILED)
        return Response(await self.service.metrics.text(), headers={**SECURITY_HEADERS, "Content-Type": CONTENT_TYPE})

    async def _error_response(self, request: Request, error: Exception) -> Response:
        path = request.url.path
        if self._has_openai and isinstance(error, HTTPException) and is_call(request):
            mark(request)
        match error:
            case ComfyClientError():
                response_error = shim_error(error)
            case HTTPException(status_code=405, headers=headers):
                allowed = (headers or {}).get("Allow", "others")
                reason = f"{request.method} {path[:120]} does not exist. That path supports {allowed}"
                response_error = ShimError(METHOD_NOT_ALLOWED, reason)
            case _ if REQUEST_ID in request.scope:
                response_error = unknown_route(request.method, path)
            case _:
                reason = f"The shim has no {request.method} {path[:120]}: {unsupported_route_advice(path)}"
                response_error = ShimError(NOT_IMPLEMENTED, reason)
        trace_id = _trace_id(request)
        _log.info(
            "%s: %s %r: %d (%s)", address_of(request), request.method, path[:200], response_error.status, trace_id
        )
        return _rendered(request, response_error, trace_id)

    async def _internal_error(self, request: Request, error: Exception) -> Response:
        trace_id = _trace_id(request)
        _log.error("bug in the shim: %s %r (%s)", request.method, request.url.path[:200], trace_id, exc_info=error)
        reason = f"Bug in the shim. Search its log for {trace_id}"
        return _rendered(request, ShimError(INTERNAL, reason, code=ErrorCode.INTERNAL), trace_id)


def _rendered(request: Request, error: ShimError, trace_id: str) -> Response:
    """Return the response for an error, in the format of the request's API."""
    headers = {} if error.status == TOO_MANY else {"x-should-retry": "false"}
    headers |= error.headers
    if REQUEST_ID in request.scope:
        return _json(error_body(error), error.status, {**headers, REQUEST_ID_HEADER: trace_id})
    return _json(error.body(trace_id), error.status, headers)


def _trace_id(request: Request) -> str:
    """Return the id of a request in the log and in its response."""
    return str(request.scope.get(REQUEST_ID) or secrets.token_hex(8))


def _json(body: JsonObject, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(body, status, headers={**SECURITY_HEADERS, **(headers or {})})
