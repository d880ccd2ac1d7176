"""What the shim remembers, as values: a job, an asset, an upload. `store.py` keeps them, `records.py` shows them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from comfy_core.contract import JsonObject


class Phase(enum.StrEnum):
    """How far a job is on its way to the endpoint: what a restart does with it depends on this."""

    STORED = "stored"
    """Acknowledged; surely not sent. A restart sends it."""
    SENDING = "sending"
    """Its submit is under way. A restart cannot know whether it arrived, and never sends it again."""
    SENT = "sent"
    """The endpoint has it, under `endpoint_id`. A restart follows it."""
    ENDED = "ended"


class Status(enum.StrEnum):
    """Scenario's eight (docs/reference/scenario.md#jobs)."""

    PENDING = "pending"
    QUEUED = "queued"
    WARMING_UP = "warming-up"
    IN_PROGRESS = "in-progress"
    FINALIZING = "finalizing"
    SUCCESS = "success"
    FAILURE = "failure"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more is to come."""
        return self in {Status.SUCCESS, Status.FAILURE, Status.CANCELED}


@dataclass(frozen=True)
class JobRow:
    """One generate call. Times are seconds since 1970.

    Attributes:
        asked: the call, as `metadata.input` shows it.
        input: the request of docs/api.md, without its picture.
        picture: the hash of the picture to start from, or its https address, or nothing.
        notes: what was not done as it was asked for.
        history: each status that it had: `[seconds, status]`.
        estimate_usd, execution_s: what it was taken to cost, and how long it ran.
        fingerprint, repeats, idempotency_key, is_answered: how a repeat of the call is recognised: see repeats.py.
    """

    id: str
    owner: str
    route: str
    job_type: str
    task: str
    model_id: str
    created_at: float
    updated_at: float
    asked: JsonObject = field(repr=False)
    input: JsonObject = field(repr=False)
    picture: str = ""
    notes: tuple[str, ...] = ()
    phase: Phase = Phase.STORED
    status: Status = Status.QUEUED
    progress: float = 0.0
    history: tuple[tuple[float, str], ...] = ()
    is_hidden: bool = False
    is_cancel_wanted: bool = False
    endpoint_id: str = ""
    error_code: str = ""
    error: str = ""
    estimate_usd: float = 0.0
    execution_s: float | None = None
    asset_ids: tuple[str, ...] = ()
    fingerprint: str = ""
    repeats: int = 0
    idempotency_key: str = ""
    is_answered: bool = False


@dataclass(frozen=True)
class AssetRow:
    """One picture: made (`job_id`), or uploaded. `about` is what its `metadata` says beside the type."""

    id: str
    owner: str
    created_at: float
    updated_at: float
    sha256: str
    mime_type: str
    width: int
    height: int
    bytes: int
    name: str
    type: str
    source: str
    job_id: str = ""
    model_id: str = ""
    output_index: int = 0
    is_hidden: bool = False
    tags: tuple[str, ...] = ()
    about: JsonObject = field(default_factory=dict)


@dataclass(frozen=True)
class UploadRow:
    """A large picture that comes in parts."""

    id: str
    owner: str
    created_at: float
    updated_at: float
    file_name: str
    content_type: str
    parts: int
    bytes: int
    state: str = "pending"
    asset_id: str = ""
    error: str = ""
    options: JsonObject = field(default_factory=dict)
