"""Detects retried POST requests, so that a retry returns the existing job instead of a second one. Pure.

The official SDK retries a POST up to twice without an idempotency key. The only sign of a retry is the header
`x-stainless-retry-count` (docs/reference/scenario.md#sdk-transport). The first attempt may never have arrived, so a
retry can also be the first request that the shim sees.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from comfy_client.gateway.scenario.models import ShimJob

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


def find_retried_job(retry: RetryHint, equal_jobs: Sequence[ShimJob]) -> ShimJob | None:
    """Return the existing job that a retry refers to, or None for a new request.

    `equal_jobs` are the jobs of equal requests. Jobs whose response did not reach the caller are preferred, then the
    oldest. Each job is matched at most once per retry count.
    """
    if retry.count <= 0:
        return None
    fitting = [job for job in equal_jobs if job.repeats < retry.count]
    return min(fitting, key=lambda job: (job.is_answered, job.created_at), default=None)
