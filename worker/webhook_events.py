"""The events of a job as signed messages (Standard Webhooks, https://www.standardwebhooks.com). No I/O."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from standardwebhooks.webhooks import Webhook as Signer

from comfy_core.contract import JsonObject
from worker.job_messages import as_json, done_body

MAX_BODY_BYTES = 100_000
"""Maximum size of a message's body. An error report has at most 64,000 bytes."""
_OMITTED_FIRST = ("models", "texts", "inputs", "warnings", "prompt_ids", "files", "images")
"""The keys of a result that are left out of a message that is too large, in this order."""
_IMAGE_KEYS = frozenset({"data", "image"})
"""Keys of an image or another file that contain its base64 or its URL (WORKER_IMAGE_FIELD)."""


@dataclass(frozen=True)
class WebhookEvent:
    """One event of a job. Its id and body stay the same if it is sent again."""

    kind: str
    body: str = field(repr=False)
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")

    def headers(self, secrets: Sequence[str], sent_at: datetime) -> dict[str, str]:
        """Return the headers for a request sent at `sent_at`, with one signature for each secret."""
        return {
            "Content-Type": "application/json",
            "webhook-id": self.id,
            "webhook-timestamp": str(int(sent_at.timestamp())),
            "webhook-signature": " ".join(Signer(secret).sign(self.id, sent_at, self.body) for secret in secrets),
        }


def progress_event(job_id: str, progress: JsonObject) -> WebhookEvent:
    """Return the event for progress as it is posted to RunPod, without the preview."""
    without_images = {key: value for key, value in progress.items() if key not in {"images", "preview"}}
    return _event("progress", {"job_id": job_id, "status": "IN_PROGRESS", "progress": without_images})


def outcome_event(job_id: str, outcome: JsonObject) -> WebhookEvent:
    """Return the event `completed` or `failed` for what the handler returns, without the bytes of images.

    If the outcome is not JSON, it is the same error that RunPod gets.
    """
    entries = {key: [_without_bytes(entry) for entry in outcome[key]] for key in ("images", "files") if key in outcome}
    ended = json.loads(done_body(outcome | entries))
    if "error" in ended:
        return _event("failed", {"job_id": job_id, "status": "FAILED", "error": json.loads(ended["error"])})
    data = {"job_id": job_id, "status": "COMPLETED", "result": ended["output"], "omitted": []}
    event = _event("completed", data)
    for name in _OMITTED_FIRST:
        if len(event.body.encode()) <= MAX_BODY_BYTES:
            break
        if data["result"].pop(name, None) is not None:
            data["omitted"].append(name)
            event = _event("completed", data)
    return event


def _without_bytes(entry: JsonObject) -> JsonObject:
    has_url = entry.get("type") == "s3_url"
    return {key: value for key, value in entry.items() if has_url or key not in _IMAGE_KEYS}


def _event(kind: str, data: JsonObject) -> WebhookEvent:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return WebhookEvent(kind, as_json({"type": kind, "timestamp": now, "data": data}).decode())
