"""Rate limits for requests per key, and for failed logins per client address. Independent of HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import time
from collections import Counter

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from comfy_client.gateway.scenario.auth import Keys
from comfy_client.gateway.scenario.errors import TOO_MANY, UNAUTHORIZED, ShimError
from comfy_core.error_codes import ErrorCode

FAILURES_PER_MINUTE = 10
"""Failed logins of one address that get an immediate response. After that, PENALTY_S and CONCURRENT_LOGINS apply."""
ALL_FAILURES_PER_MINUTE = 300
"""The same limit for all addresses together."""
PENALTY_S = 0.5
"""Delay of the response to further failed logins."""
CONCURRENT_LOGINS = 2
"""Concurrent logins of a throttled address; more get 429 unchecked. This allows 4 guesses per second."""
ALL_CONCURRENT_LOGINS = 20
"""The same limit for all addresses together: 40 guesses per second."""

_log = logging.getLogger(__name__)


class Limit:
    """A rate limit per minute, counted separately for each name."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._item = RateLimitItemPerMinute(per_minute)
        self._window = SlidingWindowCounterRateLimiter(MemoryStorage())

    def hit(self, name: str) -> bool:
        """Count one event and return whether it is within the limit."""
        return self._window.hit(self._item, name)

    def is_reached(self, name: str) -> bool:
        """Return whether one more event would exceed the limit."""
        return not self._window.test(self._item, name)

    def seconds_to_reset(self, name: str) -> int:
        """Return the seconds until the limit resets, at least 1."""
        return max(1, round(self._window.get_window_stats(self._item, name).reset_time - time.time()))


class CallLimits:
    """Rate limits per key. Polls have a separate limit, so that polls and other requests do not block each other."""

    def __init__(self, calls_per_minute: int, polls_per_minute: int) -> None:
        self._calls = Limit(calls_per_minute)
        self._polls = Limit(polls_per_minute)

    def check(self, owner: str, *, is_poll: bool = False) -> None:
        """Count a request. Raises ShimError (429)."""
        limit = self._polls if is_poll else self._calls
        if limit.hit(owner):
            return
        what = "polls" if is_poll else "requests"
        left_s = limit.seconds_to_reset(owner)
        raise too_many(
            f"More than {limit.per_minute} {what} per minute with this key. Wait {left_s} s. Poll a job every 2 or 3 s",
            left_s,
            actionName=what,
            actionLimit=limit.per_minute,
        )


class LoginThrottle:
    """Checks keys and slows down brute-force attempts.

    A key that was valid once is never delayed, even if its address is throttled.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._failures = Limit(FAILURES_PER_MINUTE)
        self._all_failures = Limit(ALL_FAILURES_PER_MINUTE)
        self._valid_digests: set[bytes] = set()
        self._checking: Counter[str] = Counter()

    async def owner(self, authorization: str, address: str) -> str:
        """Return the owner for an `Authorization` header. Raises ShimError: 401, or 429 after many failures."""
        if self._keys.is_open or not authorization:  # A missing key is not a guess.
            return self._keys.owner(authorization)
        network = _network(address)
        digest = hashlib.sha256(authorization.encode()).digest()
        is_slow = digest not in self._valid_digests and (
            self._failures.is_reached(network) or self._all_failures.is_reached("")
        )
        if is_slow and (
            self._checking[network] >= CONCURRENT_LOGINS or self._checking.total() >= ALL_CONCURRENT_LOGINS
        ):
            raise self._too_many(network)
        try:
            owner = self._keys.owner(authorization)
        except ShimError as error:
            if error.status != UNAUTHORIZED:
                raise
            self._failures.hit(network)
            self._all_failures.hit("")
            _log.warning("wrong key from %s", address)
            if not is_slow:
                raise
            await self._delay(network)
            raise self._too_many(network) from None
        self._valid_digests.add(digest)
        return owner

    async def _delay(self, network: str) -> None:
        self._checking[network] += 1
        try:
            await asyncio.sleep(PENALTY_S)
        finally:
            self._checking[network] -= 1
            if not self._checking[network]:
                del self._checking[network]

    def _too_many(self, network: str) -> ShimError:
        left_s = self._failures.seconds_to_reset(network)
        return too_many(f"Too many wrong keys from this address. Wait {left_s} s, and check key and secret", left_s)


def too_many(reason: str, left_s: int, **facts: str | int) -> ShimError:
    """Return the error (429) with the seconds to wait and `facts` (docs/reference/scenario.md#rate-limits)."""
    error = ShimError(TOO_MANY, reason, code=ErrorCode.RATE_LIMITED, headers={"Retry-After": str(left_s)})
    error.facts = {"remainingSeconds": left_s, **facts}
    return error


def _network(address: str) -> str:
    """Return the throttled network: an IPv4 address, or the /64 of an IPv6 address, which one host can own."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 6 and parsed.ipv4_mapped is None:  # noqa: PLR2004 - IPv6
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
