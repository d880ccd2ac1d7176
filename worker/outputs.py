"""From the files that a job made to what its caller gets: inline as base64, or through a bucket."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from comfy_client.comfyui.outputs import Output
from comfy_client.contract import ErrorCode, JsonObject
from comfy_client.errors import JobError

_ADDED_BYTES = 400
"""What is added to a result once it is measured, at most: its timings, and what the SDK wraps it in."""


Store = Callable[[Output], str]
"""Puts an output into a bucket and returns its address. Raises JobError (output_not_stored)."""


@dataclass(frozen=True)
class Delivery:
    """How one job's outputs are delivered: inline, or through `store`, where there is a bucket."""

    wanted: str
    limit_bytes: int
    store: Store | None

    def entries(self, groups: Sequence[Sequence[Output]], beside: JsonObject) -> list[list[JsonObject]]:
        """Return the entries of each group. All go the same way. `beside` is the rest of the result.

        Raises JobError: output_too_large where they do not fit inline and there is no bucket, output_not_stored.
        """
        outputs = [output for group in groups for output in group]
        size = inline_size(outputs, beside)
        store = self.store
        if self.wanted == "base64" or (self.wanted == "auto" and size <= self.limit_bytes):
            store = None
        if store is not None:
            size = inline_size([], beside)
        if size > self.limit_bytes:
            raise _too_large(size, self.limit_bytes)
        if store is not None:
            return [[output.entry("s3_url", store(output)) for output in group] for group in groups]
        return [[output.entry("base64", _base64(output.data)) for output in group] for group in groups]


def inline_size(outputs: Sequence[Output], beside: JsonObject) -> int:
    """Return how many bytes of JSON a result has at most, with `outputs` inline and `beside` them the rest."""
    base64_bytes = sum((len(output.data) + 2) // 3 * 4 for output in outputs)
    return base64_bytes + len(json.dumps([beside, *(output.entry("base64", "") for output in outputs)])) + _ADDED_BYTES


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _too_large(size: int, limit: int) -> JobError:
    return JobError.because(
        ErrorCode.OUTPUT_TOO_LARGE,
        f"The result has {size:,} bytes; at most {limit:,} can be returned inline. Ask for output_format webp or jpeg, "
        "for fewer pictures or a smaller size, set `metadata: false`, or give the worker a bucket "
        "(BUCKET_ENDPOINT_URL) and use delivery s3.",
        bytes=size,
        limit=limit,
    )
