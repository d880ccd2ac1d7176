"""HTTP calls to Scenario.com with the owner's key. No call is ever repeated.

The caller decides whether to repeat a call: it gets Scenario's own status and headers. Messages never contain the key.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlencode

import httpx

from comfy_client.gateway.scenario.errors import UNREACHABLE, ShimError
from comfy_core.backoff import parse_retry_after
from comfy_core.contract import JsonObject
from comfy_core.error_codes import ErrorCode

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 120.0
"""Maximum wait for the next bytes of a response. Scenario's SDK waits 60 s for a response."""
CONNECTIONS = 64
"""Concurrent calls to Scenario. Further ones wait POOL_TIMEOUT_S and fail then."""
POOL_TIMEOUT_S = 20.0
MAX_JSON_BYTES = 32 * 1024 * 1024
KEPT_HEADERS = ("content-type", "content-disposition", "etag", "retry-after", "x-should-retry")
"""The response headers that the caller gets."""

OnCall: TypeAlias = Callable[[str, int | None, float], None]
"""Gets the method of a call to Scenario, the status or None without a response, and the seconds until then."""

_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class UpstreamRefused(ShimError):  # noqa: N818 - a response
    """Scenario responded with an error, which the caller gets unchanged."""

    def __init__(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            value = None
        self._body = value if isinstance(value, dict) else {}
        reason = str(self._body.get("reason") or self._body.get("message") or f"Scenario responded with {status}")
        kept = {name: headers[name] for name in ("retry-after", "x-should-retry") if name in headers}
        super().__init__(status, reason[:2000], code=ErrorCode.UNRECOGNIZED, headers=kept)

    @property
    def pause_s(self) -> float | None:
        """How long Scenario wants the caller to wait, or None if Scenario's response does not say it."""
        remaining = self._body.get("remainingSeconds")
        return (
            float(remaining)
            if isinstance(remaining, int | float)
            else parse_retry_after(self.headers.get("retry-after"))
        )

    def body(self, trace_id: str) -> JsonObject:
        """Return Scenario's body, with the fields that every error of the shim has."""
        return {**super().body(trace_id), **self._body, "side": "scenario"}


@dataclass(frozen=True)
class UpstreamCall:
    """A call. `path` begins with a slash and comes after the base URL. `query` is encoded."""

    method: str
    path: str
    query: str = ""
    content: bytes | AsyncIterator[bytes] | None = None
    content_type: str = ""


class Upstream:
    """Scenario's API at `base_url`. `on_call` gets the outcome of each call."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        api_secret: str,
        *,
        read_timeout_s: float = READ_TIMEOUT_S,
        on_call: OnCall = lambda *_: None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._on_call = on_call
        timeout = httpx.Timeout(read_timeout_s, connect=CONNECT_TIMEOUT_S, pool=POOL_TIMEOUT_S)
        limits = httpx.Limits(max_connections=CONNECTIONS)
        self._http = httpx.AsyncClient(
            auth=httpx.BasicAuth(api_key, api_secret), timeout=timeout, limits=limits, follow_redirects=False
        )
        self._files = httpx.AsyncClient(timeout=timeout, limits=limits, follow_redirects=True)
        """The client for URLs that Scenario returned. It does not send the key."""

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()
        await self._files.aclose()

    async def json(self, call: UpstreamCall) -> tuple[int, JsonObject]:
        """Return the status and the JSON object of a response.

        Raises ShimError (502) if there is no complete response, and UpstreamRefused for a status of 400 or above.
        """
        async with self.stream(call) as response:
            content = await self._content(call, response, MAX_JSON_BYTES)
        if response.status_code >= httpx.codes.BAD_REQUEST:
            raise UpstreamRefused(response.status_code, content, response.headers)
        try:
            value: Any = json.loads(content or b"{}")
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise self._lost(call, "its response is not a JSON object")
        return response.status_code, value

    @asynccontextmanager
    async def stream(self, call: UpstreamCall) -> AsyncIterator[httpx.Response]:
        """Make a call and yield the response, whose body is not read yet. Raises ShimError (502)."""
        headers = {"Content-Type": call.content_type} if call.content_type else {}
        url = httpx.URL(f"{self.base_url}{call.path}{'?' if call.query else ''}{call.query}")
        request = self._http.build_request(call.method, url, content=call.content, headers=headers)
        begun_at = time.monotonic()
        status = None
        try:
            response = await self._http.send(request, stream=True)
            status = response.status_code
        except _UNSENT as error:
            raise ShimError(
                UNREACHABLE,
                f"Scenario was not reached for {call.method} {call.path} ({_reason(error)}). Nothing was sent. Check "
                "https://status.scenario.com and the shim's network; send the request again",
                code=ErrorCode.NETWORK,
                may_run=False,
            ) from error
        except httpx.HTTPError as error:
            raise self._lost(call, _reason(error)) from error
        finally:
            self._on_call(call.method, status, time.monotonic() - begun_at)
        try:
            yield response
        except httpx.HTTPError as error:
            raise self._lost(call, _reason(error)) from error
        finally:
            await response.aclose()

    async def download(self, url: str, max_bytes: int) -> bytes:
        """Return the file at a URL that Scenario returned, without sending the key. Raises ShimError (502)."""
        call = UpstreamCall("GET", "/(an asset's URL)")
        try:
            async with self._files.stream("GET", url) as response:
                response.raise_for_status()
                return await self._content(call, response, max_bytes)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._lost(call, _reason(error)) from error

    async def put_part(self, url: str, data: bytes) -> None:
        """Upload one part of an image to the URL that Scenario returned. Raises ShimError (502)."""
        call = UpstreamCall("PUT", "/(the URL of an upload's part)")
        try:
            response = await self._files.put(url, content=data, follow_redirects=False)
            response.raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._lost(call, _reason(error)) from error

    async def _content(self, call: UpstreamCall, response: httpx.Response, max_bytes: int) -> bytes:
        pieces, size = [], 0
        async for piece in response.aiter_bytes():
            size += len(piece)
            if size > max_bytes:
                raise self._lost(call, f"its response has more than {max_bytes:,} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    def _lost(self, call: UpstreamCall, why: str) -> ShimError:
        """Return the error for a call whose outcome is unknown."""
        is_read = call.method in ("GET", "HEAD")
        remedy = (
            "Send it again"
            if is_read
            else "Scenario may have accepted it, so it was not sent again. Look at GET /jobs before you send it again"
        )
        message = f"Scenario's response to {call.method} {call.path} was lost ({why}). {remedy}"
        return ShimError(UNREACHABLE, message, code=ErrorCode.NETWORK, may_run=not is_read)


async def private_models(upstream: Upstream) -> list[JsonObject]:
    """Return the records of all private models of the account, then close `upstream`. Raises ShimError."""
    models: list[JsonObject] = []
    token = ""
    try:
        while True:
            query = urlencode({"privacy": "private", **({"paginationToken": token} if token else {})})
            _, page = await upstream.json(UpstreamCall("GET", "/models", query))
            listed = [each for each in page.get("models") or [] if isinstance(each, dict) and each.get("id")]
            models += listed
            token = str(page.get("nextPaginationToken") or "")
            if not (token and listed):
                return models
    finally:
        await upstream.close()


def json_object(value: object) -> JsonObject:
    """Return a JSON value if it is an object, else an empty object."""
    return value if isinstance(value, dict) else {}


def _reason(error: Exception) -> str:
    """Return a short description of an httpx error, without its URL."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"status {error.response.status_code}"
    return type(error).__name__
