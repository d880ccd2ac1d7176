"""Limits on calls per key, and on key guesses per address."""

from __future__ import annotations

import asyncio
import base64

import pytest

from comfy_client.gateway.scenario.auth import LOCAL_OWNER, Keys, owner_of
from comfy_client.gateway.scenario.errors import ShimError
from comfy_client.gateway.scenario.throttle import CONCURRENT_LOGINS, FAILURES_PER_MINUTE, CallLimits, LoginThrottle

KEYS = Keys({"key": "secret", "other": "secret"}, ("token",))


def basic(key: str, secret: str) -> str:
    """Return a Basic authorization header."""
    return f"Basic {base64.b64encode(f'{key}:{secret}'.encode()).decode()}"


async def statuses(logins: LoginThrottle, count: int, address: str = "192.0.2.1") -> list[int]:
    """Guess at once with all `logins`; return the status of each."""

    async def guess(number: int) -> int:
        try:
            await logins.owner(basic("key", f"guess {number}"), address)
        except ShimError as refused:
            return refused.status if refused.status == 401 or int(refused.headers["Retry-After"]) >= 1 else 0
        return 200

    return await asyncio.gather(*(guess(number) for number in range(count)))


def test_an_address_that_guesses_is_slowed_down() -> None:
    """An address's first wrong keys get 401, all further ones 429, and few of those are checked at all."""

    async def run_client() -> tuple[list[int], float]:
        logins = LoginThrottle(KEYS)
        first = await statuses(logins, FAILURES_PER_MINUTE)
        begun_at = asyncio.get_running_loop().time()
        assert await statuses(logins, CONCURRENT_LOGINS + 50) == [429] * (CONCURRENT_LOGINS + 50)
        return first, asyncio.get_running_loop().time() - begun_at

    first, seconds = asyncio.run(run_client())

    assert first == [401] * FAILURES_PER_MINUTE
    assert seconds >= 0.4


def test_valid_keys_are_not_delayed_by_guesses() -> None:
    """A valid key is accepted at once while guesses are checked, even from the same address."""

    async def run_client() -> None:
        logins = LoginThrottle(KEYS)
        assert await logins.owner(basic("key", "secret"), "192.0.2.1") == owner_of("key")
        await statuses(logins, FAILURES_PER_MINUTE + 5)
        assert await logins.owner("Bearer token", "192.0.2.1") == owner_of("token")
        busy = asyncio.create_task(statuses(logins, CONCURRENT_LOGINS))
        await asyncio.sleep(0)
        assert await logins.owner(basic("key", "secret"), "192.0.2.1") == owner_of("key")
        assert await logins.owner(basic("other", "secret"), "192.0.2.2") == owner_of("other")
        await busy

    asyncio.run(run_client())


def test_guesses_are_counted_by_network() -> None:
    """The addresses of one IPv6 /64 count as one caller; another network has its own count."""

    async def run_client() -> tuple[list[int], list[int]]:
        logins = LoginThrottle(KEYS)
        for number in range(FAILURES_PER_MINUTE):
            assert await statuses(logins, 1, f"2001:db8::{number:x}") == [401]
        return await statuses(logins, 1, "2001:db8::ffff"), await statuses(logins, 1, "2001:db8:0:1::1")

    assert asyncio.run(run_client()) == ([429], [401])


def test_a_missing_key_is_not_a_guess() -> None:
    """The page sends requests before a key is entered; a shim without keys accepts all."""

    async def run_client() -> str:
        logins = LoginThrottle(KEYS)
        for _ in range(FAILURES_PER_MINUTE + 1):
            with pytest.raises(ShimError) as refused:
                await logins.owner("", "192.0.2.1")
            assert refused.value.status == 401
        return await LoginThrottle(Keys()).owner("", "192.0.2.1")

    assert asyncio.run(run_client()) == LOCAL_OWNER


def test_polls_and_other_calls_have_separate_limits() -> None:
    """A key that has used up its calls may still poll; the error names the limit."""
    limits = CallLimits(2, 5)
    for _ in range(2):
        limits.check("a")
    for _ in range(5):
        limits.check("a", is_poll=True)
    with pytest.raises(ShimError, match="2 requests") as calls:
        limits.check("a")
    with pytest.raises(ShimError, match="5 polls"):
        limits.check("a", is_poll=True)
    limits.check("b")

    assert calls.value.body("x")["remainingSeconds"] >= 1
    assert calls.value.headers["Retry-After"]
