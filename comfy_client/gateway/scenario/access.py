"""Admits requests: the caller's key, rate limits, limits on large bodies, and the base URL of the current request."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from weakref import WeakValueDictionary

from starlette.requests import Request

from comfy_client.gateway.scenario.auth import Keys
from comfy_client.gateway.scenario.errors import FORBIDDEN, ShimError
from comfy_client.gateway.scenario.idempotency import RetryHint
from comfy_client.gateway.scenario.origin import rejection_reason
from comfy_client.gateway.scenario.settings import ShimSettings
from comfy_client.gateway.scenario.throttle import CallLimits, LoginThrottle
from comfy_core.error_codes import ErrorCode

MAX_BODY_BYTES = 40 * 1024 * 1024
"""An image of MAX_BYTES as base64, plus a margin."""
SMALL_BODY_BYTES = 1024 * 1024
LARGE_AT_ONCE = 4
"""Concurrent large request bodies per key: above SMALL_BODY_BYTES, or parts of uploads. They are held in memory."""
_MAX_KEY_CHARACTERS = 255
_base_url: ContextVar[str] = ContextVar("_base_url", default="")
"""The base URL of the current request."""


class Access:
    """Admits the requests of one server."""

    def __init__(self, settings: ShimSettings) -> None:
        self._public_url = settings.public_url
        keys = Keys(settings.accounts, settings.tokens)
        self.is_open = keys.is_open
        """Whether requests need no key."""
        self._logins = LoginThrottle(keys)
        self.limits = CallLimits(settings.requests_per_minute, settings.polls_per_minute)
        self._large_slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def check_origin(self, request: Request) -> None:
        """Raise ShimError (403) for a request from a page of another site to a server without keys."""
        if self.is_open and (why := rejection_reason(request.method, request.headers, self._public_url)):
            raise ShimError(FORBIDDEN, why, code=ErrorCode.AUTH_FAILED)

    async def owner(self, request: Request, *, is_poll: bool = False) -> str:
        """Return the owner of the request's key, and count the request. Raises ShimError (401, 429)."""
        owner = await self._logins.owner(request.headers.get("authorization", ""), address_of(request))
        self.limits.check(owner, is_poll=is_poll)
        return owner

    def body_slot(self, request: Request, owner: str) -> AbstractAsyncContextManager[object]:
        """Return a slot for a large body, or a context that does nothing for a small one."""
        length = request.headers.get("content-length", "")
        is_small = request.method == "GET" or (length.isdigit() and int(length[:20]) <= SMALL_BODY_BYTES)
        return nullcontext() if is_small else self.large_body_slots(owner)

    def large_body_slots(self, owner: str) -> asyncio.Semaphore:
        """Return the semaphore for the large bodies of one key."""
        return self._large_slots.setdefault(owner, asyncio.Semaphore(LARGE_AT_ONCE))

    def remember_base_url(self, request: Request) -> None:
        """Use the URL of this request for the signed URLs in its response, unless a public URL is configured."""
        if not self._public_url:
            _base_url.set(str(request.base_url).rstrip("/"))

    @property
    def base_url(self) -> str:
        """The URL at which the caller of the current request reaches the server."""
        return self._public_url or _base_url.get()


def address_of(request: Request) -> str:
    """Return the client's address, or an empty text."""
    return request.client.host if request.client else ""


def retry_hint(request: Request) -> RetryHint:
    """Return the retry headers of a request."""
    count = request.headers.get("x-stainless-retry-count", "")
    key = request.headers.get("idempotency-key", "")[:_MAX_KEY_CHARACTERS]
    return RetryHint(int(count) if count.isascii() and count.isdigit() and len(count) < 3 else 0, key)  # noqa: PLR2004 - limits the size of the number
