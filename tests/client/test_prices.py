"""The price table and the cost of a job."""

from __future__ import annotations

import pytest

from comfy_client.prices import DEFAULT_POOL, POOLS, job_usd


def test_the_cheapest_pool_is_first() -> None:
    """Pools are sorted by price, and the default pool is one of them."""
    rates = [price.flex_usd_per_s for price in POOLS.values()]

    assert rates == sorted(rates)
    assert DEFAULT_POOL in POOLS


@pytest.mark.parametrize(("execution_s", "seconds"), [(0.0, 0), (0.2, 1), (1.0, 1), (9.0001, 9), (9.1, 10)])
def test_whole_seconds_are_billed(execution_s: float, seconds: int) -> None:
    """Each started second is billed as a whole second."""
    assert job_usd(execution_s, 0.5) == seconds * 0.5
