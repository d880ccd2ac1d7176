"""Renders images, events and models as OpenAI's JSON. Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from comfy_client.gateway.openai.errors import error_body
from comfy_client.gateway.openai.mapping import ResponseOptions
from comfy_client.gateway.scenario.errors import ShimError
from comfy_client.gateway.scenario.models import ShimAsset, ShimJob
from comfy_core.contract import JsonObject

KEEP_ALIVE = b": the job continues\n\n"
"""A comment in a stream, which callers ignore."""
_NO_TOKENS: JsonObject = {"image_tokens": 0, "text_tokens": 0}
USAGE: JsonObject = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": _NO_TOKENS,
    "output_tokens_details": _NO_TOKENS,
}
"""Images are paid by the second, so there are no tokens. `cost_usd` has the cost."""
_BACKGROUND = "opaque"
_OWNER = "comfy-client"
_CREATED = 1_700_000_000
"""A placeholder: a model has a creation time, and a workflow has none."""


@dataclass(frozen=True)
class ResponseImage:
    """An image of a response: its asset, and its URL or its content."""

    asset: ShimAsset
    url: str = ""
    data: bytes = field(default=b"", repr=False)

    def record(self) -> JsonObject:
        """Return the image as in `data` of a response."""
        seed = str(self.asset.metadata.get("seed", ""))
        return {
            **({"url": self.url} if self.url else {"b64_json": _base64(self.data)}),
            **({"seed": int(seed)} if seed.isdecimal() else {}),
        }

    @property
    def format(self) -> str:
        """The `output_format` of the image."""
        return self.asset.mime_type.rpartition("/")[2]

    @property
    def size(self) -> str:
        """The size of the image."""
        return f"{self.asset.width}x{self.asset.height}"


def images_body(job: ShimJob, images: Sequence[ResponseImage], options: ResponseOptions) -> bytes:
    """Return the body of the response to a call. `job_id`, `cost_usd`, `warnings` and `seed` are not OpenAI's."""
    body = {
        "created": int(job.updated_at),
        "background": _BACKGROUND,
        "output_format": images[0].format,
        "quality": options.quality,
        "size": images[0].size,
        "data": [image.record() for image in images],
        "usage": USAGE,
        **_job_fields(job),
    }
    return json.dumps(body).encode()


def _job_fields(job: ShimJob) -> JsonObject:
    return {"job_id": job.id, "cost_usd": job.cost_usd, "warnings": list(job.notes)}


def partial_event(job: ShimJob, jpeg: bytes, index: int, options: ResponseOptions) -> bytes:
    """Return the event of a preview. Previews are small JPEGs, whatever the format of the image is."""
    sides = (job.worker_request.get("width"), job.worker_request.get("height"))
    return _event(
        f"{options.event}.partial_image",
        {
            "b64_json": _base64(jpeg),
            "background": _BACKGROUND,
            "created_at": int(job.created_at),
            "output_format": "jpeg",
            "partial_image_index": index,
            "quality": options.quality,
            "size": f"{sides[0]}x{sides[1]}" if all(sides) else "auto",
        },
    )


def completed_events(job: ShimJob, images: Iterable[ResponseImage], options: ResponseOptions) -> bytes:
    """Return the events of the images of a job, one for each."""
    return b"".join(
        _event(
            f"{options.event}.completed",
            {
                **image.record(),
                "background": _BACKGROUND,
                "created_at": int(job.updated_at),
                "output_format": image.format,
                "quality": options.quality,
                "size": image.size,
                "usage": USAGE,
                **_job_fields(job),
            },
        )
        for image in images
    )


def error_event(error: ShimError) -> bytes:
    """Return the event for a job that did not succeed, after which the stream ends."""
    return _event("error", error_body(error))


def _event(kind: str, content: JsonObject) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **content})}\n\n".encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def model_record(name: str) -> JsonObject:
    """Return a model as in `GET /models/{model}`."""
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": _OWNER}


def model_list(names: Iterable[str]) -> JsonObject:
    """Return the response of `GET /models`."""
    return {"object": "list", "data": [model_record(name) for name in names]}
