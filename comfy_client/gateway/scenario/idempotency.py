"""A call that is made again because its answer was lost, told from a call that wants another picture. Pure.

The official SDK repeats a POST up to two times, without an idempotency key; all that tells is `x-stainless-retry-count`
(docs/reference/scenario.md#sdk-transport). The first try may never have arrived, so a repeat may also be the first
that is seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from comfy_client.gateway.scenario.models import JobRow

WINDOW_S = 150.0
"""How long after an equal call a repeat may come: two timeouts of the SDK of 60 s each, its pauses, and some more."""


@dataclass(frozen=True)
class Repeat:
    """What a call says of its being a repeat: the SDK's count, and an Idempotency-Key where its caller sends one."""

    count: int = 0
    key: str = ""


FIRST = Repeat()


def fingerprint(owner: str, route: str, model_id: str | None, body: object) -> str:
    """Return what equal calls of one owner have in common."""
    text = json.dumps([owner, route, model_id, body], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def repeated(repeat: Repeat, equal: Sequence[JobRow]) -> JobRow | None:
    """Return the job of `equal` calls, the oldest first, that a repeat means; None where the call is a first one.

    One whose answer did not reach its caller comes before others, then the oldest. Each job is meant once for a count.
    """
    if repeat.count <= 0:
        return None
    fitting = [job for job in equal if job.repeats < repeat.count]
    return min(fitting, key=lambda job: (job.is_answered, job.created_at), default=None)
