"""Detects retried POST requests, so that a retry returns the existing job instead of a second one. Pure.

The official SDK retries a POST up to twice without an idempotency key. The only sign of a retry is the header
`x-stainless-retry-count` (docs/reference/scenario.md#sdk-transport). The first attempt may never have arrived, so a
retry can also be the first request that the shim sees.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TypeVar

from comfy_client.gateway.scenario.models import ForwardedCall, ShimJob

Repeatable = TypeVar("Repeatable", ShimJob, ForwardedCall)

WINDOW_S = 150.0
"""How long after a request a retry may arrive: two SDK timeouts of 60 s each, the SDK's backoff, and a margin."""


@dataclass(frozen=True)
class RetryHint:
    """The retry headers of a request: the SDK's retry count (0: first attempt), and the Idempotency-Key or ""."""

    count: int = 0
    key: str = ""


NOT_A_RETRY = RetryHint()


def fingerprint(owner: str, route: str, model_id: str | None, body: object) -> str:
    """Return a hash that is the same for equal requests of one owner."""
    text = json.dumps([owner, route, model_id, body], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def find_retried(
    retry: RetryHint, equal: Sequence[Repeatable], observed: Container[str] = frozenset()
) -> Repeatable | None:
    """Return the job or call that a retry refers to, or None for a new request.

    `equal` are the jobs or calls of equal requests. One with an idempotency key belongs to the requests with that key,
    and `retry` has none. Preferred are those that no other request observes (their ids are
    not in `observed`), then those whose response did not reach the caller, then the oldest. Each is matched at most
    once per retry count.
    """
    if retry.count <= 0:
        return None
    fitting = [each for each in equal if each.repeats < retry.count and not each.idempotency_key]
    return min(fitting, key=lambda each: (each.id in observed, each.is_answered, each.created_at), default=None)
