"""The parameters of OpenAI's image calls, with the handling of each one. docs/openai.md has tables of this module."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from comfy_client.gateway.scenario.fields import RequestField
from comfy_core.contract import OUTPUT_FORMATS


@dataclass(frozen=True)
class Operation:
    """An image call. `event` is the prefix of the types of its events."""

    name: str
    path: str
    event: str


GENERATIONS = Operation("generations", "/images/generations", "image_generation")
EDITS = Operation("edits", "/images/edits", "image_edit")

FOREIGN_MODELS = re.compile(r"(dall-e|gpt-image|chatgpt-image)(-.*)?")
"""OpenAI's model names. Each means the workflow for the images of the request."""
URL_MODELS = re.compile(r"dall-e(-.*)?")
"""The models for which OpenAI returns a URL if the request has no `response_format`."""

QUALITY_STEPS: Mapping[str, int] = {"low": 12, "medium": 20, "high": 32, "hd": 32, "xhigh": 40, "max": 50}
"""The steps of each `quality`. `auto` and `standard` mean the workflow's own number of steps."""
SHOWN_QUALITIES: Mapping[str, str] = {"auto": "medium", "standard": "medium", "hd": "high"}
"""The `quality` in a response, which has fewer values than in a request."""

PARAMETERS: Mapping[str, RequestField] = {
    "prompt": RequestField({}, "`prompt`"),
    "model": RequestField({"type": "string", "maxLength": 255}, "the workflow"),
    "n": RequestField({}, "`num_images`"),
    "size": RequestField({"type": "string", "maxLength": 64}, "`width` and `height`"),
    "quality": RequestField({"enum": ["auto", "standard", *QUALITY_STEPS]}, "`steps`, unless the request has `steps`"),
    "image": RequestField({}, "`image`: one file, or in JSON base64, a data URL, an https URL or an asset id"),
    "mask": RequestField({"type": "string"}, "the transparent areas of `image`"),
    "output_format": RequestField({"enum": list(OUTPUT_FORMATS)}, "`output_format`"),
    "output_compression": RequestField({"type": "integer", "minimum": 0, "maximum": 100}, "`output_quality`"),
    "response_format": RequestField({"enum": ["b64_json", "url"]}, "the form of the images in the response"),
    "background": RequestField({"enum": ["auto", "opaque"]}, "nothing: images are opaque; `transparent` is rejected"),
    "stream": RequestField({"type": "boolean"}, "a response of server-sent events"),
    "partial_images": RequestField({"type": "integer", "minimum": 0, "maximum": 3}, "previews, with `stream`"),
    "user": RequestField({"type": "string", "maxLength": 512}, "a field of the job, on the web page"),
    "safety_identifier": RequestField({}, why_not="there is no moderation"),
    "moderation": RequestField({}, why_not="there is no moderation"),
    "style": RequestField({}, why_not="describe the style in the prompt"),
    "input_fidelity": RequestField({}, why_not="use `strength`"),
    "complexity": RequestField({}, why_not="use `steps`"),
    "markup": RequestField({}, why_not="draw a mask instead", is_rejected=True),
    "svg": RequestField({}, why_not="Flux.1-dev generates pixels", is_rejected=True),
    "frame_count": RequestField({}, why_not="Flux.1-dev generates single images", is_rejected=True),
    "frame_duration_ms": RequestField({}, why_not="Flux.1-dev generates single images", is_rejected=True),
}
"""OpenAI's parameters. Every other field is an input of the workflow, or a common field of docs/api.md."""

REFUSED_FIELDS: Mapping[str, str] = {
    "workflow": "is not known here: use model",
    "images": "is not supported: send one image",
    "model_tokens": "is not supported, because jobs are stored with their request. Set the token on the worker",
}
"""Fields of docs/api.md that these calls do not have, and why."""
