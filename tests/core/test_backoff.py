"""Delays before retries."""

from __future__ import annotations

import pytest

from comfy_core.backoff import backoff_s, parse_retry_after


def test_delays_double_up_to_the_maximum() -> None:
    """Delays double up to the maximum; Retry-After replaces the delay."""
    assert [backoff_s(attempt, first_s=1, longest_s=5) for attempt in (0, 1, 2, 3, 2000)] == [1, 2, 4, 5, 5]
    assert [backoff_s(attempt) for attempt in (0, 1, 4, 5)] == [0.5, 1, 8, 8]
    assert backoff_s(0, 9.0) == 9


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        (" 0 ", 0),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0),
        (None, None),
        ("soon", None),
        ("Mon, 99 Foo", None),
        ("9" * 5000, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    """The header has seconds or a date. An invalid header is ignored, and a date in the past means no delay."""
    assert parse_retry_after(header) == seconds
