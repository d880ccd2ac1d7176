"""Delays before retries. Pure."""

from __future__ import annotations

from urllib3.exceptions import InvalidHeader
from urllib3.util.retry import Retry


def backoff_s(
    attempt: int, retry_after_s: float | None = None, *, first_s: float = 0.5, longest_s: float = 8.0
) -> float:
    """Return the delay after attempt `attempt` (from 0): `retry_after_s`, or `first_s` doubled up to `longest_s`."""
    return retry_after_s if retry_after_s is not None else min(longest_s, first_s * 2.0 ** min(attempt, 30))


def parse_retry_after(header: str | None) -> float | None:
    """Return the delay in a Retry-After header, which contains seconds or a date. None if it is absent or invalid."""
    try:
        return Retry().parse_retry_after(header or "")
    except (InvalidHeader, ValueError, OverflowError):
        return None
