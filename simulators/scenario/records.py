"""The simulator's jobs and assets, their JSON in Scenario's format, and generated images."""

from __future__ import annotations

import io
import random
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

from PIL import Image

Record: TypeAlias = dict[str, Any]
FINAL = ("success", "failure", "canceled")
OWNER = {"ownerId": "proj_standin", "authorId": "user_standin"}


def now() -> str:
    """Return the time in Scenario's format."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_id(kind: str) -> str:
    """Return an id such as `job_0123456789abcdef01234567`."""
    return f"{kind}_{secrets.token_hex(12)}"


def noise_png(width: int, height: int, seed: int) -> bytes:
    """Return a PNG of coarse noise that depends only on the arguments."""
    pixels = random.Random(seed).randbytes(8 * 8 * 3)  # noqa: S311 - no secret
    encoded = io.BytesIO()
    Image.frombytes("RGB", (8, 8), pixels).resize((width, height), Image.Resampling.BICUBIC).save(encoded, "PNG")
    return encoded.getvalue()


@dataclass
class ScenarioJob:
    """One job. Only the simulator's event loop changes it."""

    body: Record
    model_id: str
    job_type: str = "custom"
    job_id: str = field(default_factory=lambda: new_id("job"))
    status: str = "queued"
    progress: float = 0.0
    asset_ids: list[str] = field(default_factory=list)
    failure: dict[str, str] = field(default_factory=dict)
    created_at: str = field(default_factory=now)
    history: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.set_status("queued", 0.0)

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self.status in FINAL

    def set_status(self, status: str, progress: float) -> None:
        """Set the status and progress, unless the job has ended."""
        if self.is_final:
            return
        self.status, self.progress = status, progress
        if not self.history or self.history[-1]["status"] != status:
            self.history.append({"date": now(), "status": status})

    def record(self) -> Record:
        """Return `job` in the response of GET jobs/{id}."""
        return {
            "jobId": self.job_id,
            "jobType": self.job_type,
            "status": self.status,
            "progress": self.progress,
            "metadata": {
                "input": {**self.body, "modelId": self.model_id},
                "assetIds": list(self.asset_ids),
                **self.failure,
            },
            "statusHistory": [dict(entry) for entry in self.history],
            "createdAt": self.created_at,
            "updatedAt": self.history[-1]["date"],
            "billing": {"cuCost": 5, "cuDiscount": 0},
            **OWNER,
        }


@dataclass
class Asset:
    """One image."""

    data: bytes
    mime_type: str
    source: str
    metadata: Record = field(default_factory=dict)
    asset_id: str = field(default_factory=lambda: new_id("asset"))
    signature: str = field(default_factory=lambda: secrets.token_hex(8))
    created_at: str = field(default_factory=now)
    tags: list[str] = field(default_factory=list)
    kind: str = "image"

    def record(self, base_url: str) -> Record:
        """Return `asset` in the response of GET assets/{id}."""
        return {
            "id": self.asset_id,
            "url": f"{base_url}/assets/{self.asset_id}?p=100&Signature={self.signature}",
            "mimeType": self.mime_type,
            "kind": self.kind,
            "source": self.source,
            "status": "success",
            "metadata": {"kind": "image", "type": self.source, "size": len(self.data), **self.metadata},
            "properties": {"size": len(self.data)},
            "privacy": "private",
            "tags": list(self.tags),
            "collectionIds": [],
            "editCapabilities": [],
            "createdAt": self.created_at,
            "updatedAt": self.created_at,
            **OWNER,
        }
