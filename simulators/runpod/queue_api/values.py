"""The simulator's state, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
PostKind: TypeAlias = Literal["progress", "final"]


class QueueJobState(StrEnum):
    """The state of a job."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self not in {QueueJobState.IN_QUEUE, QueueJobState.IN_PROGRESS}


@dataclass(frozen=True)
class StateChange:
    """A state, and when the job changed to it on the monotonic clock."""

    state: QueueJobState
    at: float


@dataclass(frozen=True)
class QueueJob:
    """A job. `body` is the submitted request. `output` and `error` are None if they do not exist."""

    id: str
    body: Mapping[str, Any] = field(repr=False)
    is_sync: bool
    history: tuple[StateChange, ...]
    seen_at: float = 0.0
    worker_id: str | None = None
    output: Any = field(default=None, repr=False)
    error: str | None = None
    progress: tuple[Any, ...] = field(default=(), repr=False)
    hand_outs: int = 0
    final_posts: int = 0
    retries: int = 0

    @property
    def state(self) -> QueueJobState:
        """The current state."""
        return self.history[-1].state

    @property
    def states(self) -> list[QueueJobState]:
        """All states so far, in order."""
        return [step.state for step in self.history]

    @property
    def submitted_at(self) -> float:
        """The time of the job's submission."""
        return self.history[0].at

    @property
    def queued_at(self) -> float:
        """The time when the job was last queued: at its submission, or again later."""
        return self._attempt[0].at

    @property
    def started_at(self) -> float | None:
        """The start of the current attempt, or None before a worker takes it."""
        return next((step.at for step in self._attempt if step.state is QueueJobState.IN_PROGRESS), None)

    @property
    def ended_at(self) -> float | None:
        """The time when the job ended, or None if it has not ended."""
        return self.history[-1].at if self.state.is_final else None

    @property
    def _attempt(self) -> tuple[StateChange, ...]:
        begin = max(place for place, step in enumerate(self.history) if step.state is QueueJobState.IN_QUEUE)
        return self.history[begin:]

    @property
    def input(self) -> Any:  # noqa: ANN401 - any JSON value
        """The input, or None if it was removed."""
        return self.body.get("input")

    @property
    def is_low_priority(self) -> bool:
        """Whether the job is handed out only if no other job waits."""
        return self._policy("lowPriority") is True

    def policy_s(self, key: Literal["executionTimeout", "ttl"], default_s: float) -> float:
        """Return a duration of the job's policy in seconds, or `default_s`."""
        policy_ms = self._policy(key)
        return policy_ms / 1000 if isinstance(policy_ms, int | float) else default_s

    def _policy(self, key: str) -> object:
        policy = self.body.get("policy")
        return policy.get(key) if isinstance(policy, dict) else None


@dataclass(frozen=True)
class Take:
    """A worker's request for jobs."""

    worker_id: str
    at: float
    batch_size: int


@dataclass(frozen=True)
class Post:
    """A worker's POST about a job, recorded even if a fault then prevents its effect."""

    job_id: str
    worker_id: str
    kind: PostKind
    at: float
    size: int


@dataclass(frozen=True)
class Ping:
    """A worker's ping: alive with these running jobs, or unhealthy."""

    worker_id: str
    at: float
    job_ids: tuple[str, ...]
    is_unhealthy: bool = False
    check: str = ""
    reason: str = ""
