"""Packs a job's output files into its result: inline as base64, or as URLs of objects in a bucket."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from comfy_core.comfyui.outputs import JobOutput
from comfy_core.contract import JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError

_ADDED_BYTES = 400
"""Upper bound of the bytes that are added to a result after its size is computed: timings, and the SDK's wrapper."""


Store = Callable[[JobOutput], str]
"""Uploads an output to a bucket and returns its URL. Raises JobError (output_not_stored)."""


@dataclass(frozen=True)
class ResultPacker:
    """Packs one job's outputs.

    Attributes:
        delivery: `base64` (inline), `s3` (upload), or `auto` (upload only a result that is too large inline).
        limit_bytes: maximum JSON size of the result.
        store: uploads an output; None if there is no bucket.
        image_fields: the keys for an image's base64 or URL. With two keys the data is in the result twice.
    """

    delivery: str
    limit_bytes: int
    store: Store | None
    image_fields: tuple[str, ...] = ("data",)

    def entries(
        self, images: Sequence[JobOutput], files: Sequence[JobOutput], other_fields: JsonObject
    ) -> tuple[list[JsonObject], list[JsonObject]]:
        """Return the entries of images and other files, all inline or all stored.

        `other_fields` are the other fields of the result, which count towards its size.

        Raises JobError: output_too_large if the result is larger than `limit_bytes`, or output_not_stored if an upload
        fails.
        """
        size = inline_size([*(image for _ in self.image_fields for image in images), *files], other_fields)
        store = self.store
        if self.delivery == "base64" or (self.delivery == "auto" and size <= self.limit_bytes):
            store = None
        if store is not None:
            size = inline_size([], other_fields)
        if size > self.limit_bytes:
            raise _too_large(size, self.limit_bytes)
        return [self._with_image_fields(_entry(image, store)) for image in images], [
            _entry(file, store) for file in files
        ]

    def _with_image_fields(self, entry: JsonObject) -> JsonObject:
        """Return an image's entry with its base64 or URL under each of `image_fields`."""
        data = entry.pop("data")
        return {**entry, **dict.fromkeys(self.image_fields, data)}


def _entry(output: JobOutput, store: Store | None) -> JsonObject:
    return output.entry("s3_url", store(output)) if store else output.entry("base64", _base64(output.data))


def inline_size(outputs: Sequence[JobOutput], other_fields: JsonObject) -> int:
    """Return an upper bound of the JSON bytes of a result that has `outputs` inline and `other_fields`."""
    base64_bytes = sum((len(output.data) + 2) // 3 * 4 for output in outputs)
    return (
        base64_bytes
        + len(json.dumps([other_fields, *(output.entry("base64", "") for output in outputs)]))
        + _ADDED_BYTES
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _too_large(size: int, limit: int) -> JobError:
    return JobError.because(
        ErrorCode.OUTPUT_TOO_LARGE,
        f"The result has {size:,} bytes; at most {limit:,} can be returned inline",
        bytes=size,
        limit=limit,
    )
