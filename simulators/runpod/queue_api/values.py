"""What the stand-in remembers, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
PostKind: TypeAlias = Literal["progress", "final", "chunk"]


class QueueJobState(StrEnum):
    """Where a job is."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def is_final(self) -> bool:
        """Return whether nothing more is to come."""
        return self not in {QueueJobState.IN_QUEUE, QueueJobState.IN_PROGRESS}


@dataclass(frozen=True)
class StateChange:
    """A job came into a state, at a time of the monotonic clock."""

    state: QueueJobState
    at: float


@dataclass(frozen=True)
class QueueJob:
    """A job as it stands now; `body` is what was submitted. A `None` output or error means that there is none."""

    id: str
    body: Mapping[str, Any] = field(repr=False)
    is_sync: bool
    history: tuple[StateChange, ...]
    heard_at: float = 0.0
    worker_id: str | None = None
    output: Any = field(default=None, repr=False)
    error: str | None = None
    progress: tuple[Any, ...] = field(default=(), repr=False)
    chunks: tuple[Any, ...] = field(default=(), repr=False)
    fetched_chunks: int = 0
    hand_outs: int = 0
    final_posts: int = 0
    retries: int = 0

    @property
    def state(self) -> QueueJobState:
        """Return where it is now."""
        return self.history[-1].state

    @property
    def states(self) -> list[QueueJobState]:
        """Return where it has been, in order."""
        return [step.state for step in self.history]

    @property
    def submitted_at(self) -> float:
        """Return when it first came into the queue."""
        return self.history[0].at

    @property
    def queued_at(self) -> float:
        """Return when it last came into the queue, at first or to be tried again."""
        return self._attempt[0].at

    @property
    def started_at(self) -> float | None:
        """Return when the last attempt was handed out, None while it waits and where it never was."""
        return next((step.at for step in self._attempt if step.state is QueueJobState.IN_PROGRESS), None)

    @property
    def ended_at(self) -> float | None:
        """Return when it ended, None before."""
        return self.history[-1].at if self.state.is_final else None

    @property
    def _attempt(self) -> tuple[StateChange, ...]:
        begin = max(place for place, step in enumerate(self.history) if step.state is QueueJobState.IN_QUEUE)
        return self.history[begin:]

    @property
    def input(self) -> Any:  # noqa: ANN401 - any JSON value
        """Return its input, None where it was stripped."""
        return self.body.get("input")

    @property
    def webhook(self) -> str | None:
        """Return the URL to tell of its end."""
        return self.body.get("webhook")

    @property
    def is_low_priority(self) -> bool:
        """Return whether it runs only when nothing else waits."""
        return self._policy("lowPriority") is True

    def policy_s(self, key: Literal["executionTimeout", "ttl"], default_s: float) -> float:
        """Return a time of its policy."""
        asked_ms = self._policy(key)
        return asked_ms / 1000 if isinstance(asked_ms, int | float) else default_s

    def _policy(self, key: str) -> object:
        policy = self.body.get("policy")
        return policy.get(key) if isinstance(policy, dict) else None


@dataclass(frozen=True)
class Take:
    """A worker asked for jobs."""

    worker_id: str
    at: float
    batch_size: int


@dataclass(frozen=True)
class Post:
    """A worker posted something about a job. The post is kept even where a fault then kept it from counting."""

    job_id: str
    worker_id: str
    kind: PostKind
    at: float
    size: int
    stops_pod: bool = False


@dataclass(frozen=True)
class Ping:
    """A worker said that it lives, and with which jobs, or that it cannot work."""

    worker_id: str
    at: float
    job_ids: tuple[str, ...]
    is_unhealthy: bool = False
    check: str = ""
    reason: str = ""


@dataclass(frozen=True)
class WebhookCall:
    """A webhook was called; status 0 means that nobody answered."""

    job_id: str
    at: float
    status: int
