"""Limits of calls and polls per key, and of guesses of keys per network."""

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


async def guess_statuses(logins: LoginThrottle, count: int, address: str = "192.0.2.1") -> list[int]:
    """Send `count` wrong keys at once from `address`; return the status of each.

    A 429 without a valid Retry-After counts as status 0.
    """

    async def guess(number: int) -> int:
        try:
            await logins.owner(basic("key", f"guess {number}"), address)
        except ShimError as info:
            return info.status if info.status == 401 or int(info.headers["Retry-After"]) >= 1 else 0
        return 200

    return await asyncio.gather(*(guess(number) for number in range(count)))


def test_an_address_that_guesses_is_slowed_down() -> None:
    """An address's first wrong keys get 401 and further ones 429, which are delayed together by at least 0.4 s."""

    async def run_logins() -> tuple[list[int], float]:
        logins = LoginThrottle(KEYS)
        first = await guess_statuses(logins, FAILURES_PER_MINUTE)
        begun_at = asyncio.get_running_loop().time()
        assert await guess_statuses(logins, CONCURRENT_LOGINS + 50) == [429] * (CONCURRENT_LOGINS + 50)
        return first, asyncio.get_running_loop().time() - begun_at

    first, took_s = asyncio.run(run_logins())

    assert first == [401] * FAILURES_PER_MINUTE
    assert took_s >= 0.4


def test_valid_keys_are_not_delayed_by_guesses() -> None:
    """Valid keys are accepted while guesses are checked, even from the address that guesses."""

    async def run_logins() -> None:
        logins = LoginThrottle(KEYS)
        assert await logins.owner(basic("key", "secret"), "192.0.2.1") == owner_of("key")
        await guess_statuses(logins, FAILURES_PER_MINUTE + 5)
        assert await logins.owner("Bearer token", "192.0.2.1") == owner_of("token")
        busy = asyncio.create_task(guess_statuses(logins, CONCURRENT_LOGINS))
        await asyncio.sleep(0)
        assert await logins.owner(basic("key", "secret"), "192.0.2.1") == owner_of("key")
        assert await logins.owner(basic("other", "secret"), "192.0.2.2") == owner_of("other")
        await busy

    asyncio.run(run_logins())


def test_guesses_are_counted_by_network() -> None:
    """The guesses from one IPv6 /64 network are counted together; another network has its own count."""

    async def run_logins() -> tuple[list[int], list[int]]:
        logins = LoginThrottle(KEYS)
        for number in range(FAILURES_PER_MINUTE):
            assert await guess_statuses(logins, 1, f"2001:db8::{number:x}") == [401]
        return await guess_statuses(logins, 1, "2001:db8::ffff"), await guess_statuses(logins, 1, "2001:db8:0:1::1")

    assert asyncio.run(run_logins()) == ([429], [401])


def test_a_missing_key_is_not_a_guess() -> None:
    """Requests without a key always get 401, and never 429. A shim without keys accepts them as LOCAL_OWNER."""

    async def run_logins() -> str:
        logins = LoginThrottle(KEYS)
        for _ in range(FAILURES_PER_MINUTE + 1):
            with pytest.raises(ShimError) as info:
                await logins.owner("", "192.0.2.1")
            assert info.value.status == 401
        return await LoginThrottle(Keys()).owner("", "192.0.2.1")

    assert asyncio.run(run_logins()) == LOCAL_OWNER


def test_polls_and_other_calls_have_separate_limits() -> None:
    """Calls and polls of a key are counted separately, other keys are not affected, and errors name the limit."""
    limits = CallLimits(2, 5)
    for _ in range(2):
        limits.check("a")
    for _ in range(5):
        limits.check("a", is_poll=True)
    with pytest.raises(ShimError, match="2 requests") as calls_info:
        limits.check("a")
    with pytest.raises(ShimError, match="5 polls"):
        limits.check("a", is_poll=True)
    limits.check("b")

    assert calls_info.value.body("x")["remainingSeconds"] >= 1
    assert calls_info.value.headers["Retry-After"]
