"""The contract between callers and the worker, as pure data: request schema, limits, workflow aliases and error report.

No validation, rendering or I/O. `workflows.py` builds the schema of a whole request from `ENVELOPE` and a workflow's
own inputs. docs/api.md is generated from this module.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from comfy_core.error_codes import ErrorCode, Retry

JsonObject: TypeAlias = dict[str, Any]

ALIASES = {name: f"flux-dev-{name}" for name in ("txt2img", "img2img", "inpaint", "upscale")}
"""Short names of workflows: their `x-task`, and the name of their command.

A request without `workflow` uses img2img if it has `image`, else txt2img.
"""

OUTPUT_FORMATS = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
"""MIME type of the images, by `output_format`."""

MAX_SEED = 2**63 - 1
"""Largest seed in a request. ComfyUI accepts up to 2**64 - 1, but JSON clients in Java and Go do not."""

MAX_RANDOM_SEED = 2**32 - 1
"""Largest random seed for a request without a seed. JavaScript clients round integers above 2**53."""

MAX_FAULTS = 50
"""Maximum number of faults in one error report; a graph can have thousands."""

EXPORT_MENU = "File > Export (API) (older frontends: Workflow > Export (API))"
"""Menu entry in ComfyUI's editor that exports a graph in API format."""

ENVELOPE: JsonObject = {
    "workflow": {
        "description": "A template's name, or a whole graph in ComfyUI's API format. `txt2img`, `img2img`, `inpaint` "
        "and `upscale` are short for `flux-dev-txt2img` and so on. Default: img2img if `image` is given, else txt2img.",
        "type": ["string", "object"],
    },
    "images": {
        "description": "For graphs: the files that LoadImage and other loader nodes name, each as base64, a data URI "
        "or an https URL. At most 100 MB in total and 16 URLs. Other keys of an entry are ignored.",
        "type": "array",
        "maxItems": 256,
        "items": {
            "type": "object",
            "required": ["name", "image"],
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 255},
                "image": {"type": "string", "minLength": 1, "contentMediaType": "image/*"},
            },
        },
    },
    "overrides": {
        "description": "Node inputs to set after the request's other values: "
        '`{"Node title.input": value}` or `{"12.input": value}`. Allowed inputs are listed below.',
        "type": "object",
    },
    "output_format": {
        "description": "Image format.",
        "enum": list(OUTPUT_FORMATS),
        "default": "png",
    },
    "output_quality": {
        "description": "Quality for webp and jpeg. Ignored for png.",
        "type": "integer",
        "minimum": 1,
        "maximum": 100,
        "default": 90,
    },
    "metadata": {
        "description": "Embed the prompt, seed and graph in the image file.",
        "type": "boolean",
        "default": True,
    },
    "delivery": {
        "description": "How images are returned: `base64` inline, `s3` in the worker's bucket (or the one in the "
        "job's `s3Config`), or `auto`: inline if they fit, else in the bucket.",
        "enum": ["auto", "base64", "s3"],
        "default": "auto",
    },
    "timeout_s": {
        "description": "Stop the job after this many seconds of execution (at most WORKER_JOB_TIMEOUT_S).",
        "type": "number",
        "minimum": 1,
        "maximum": 3600,
    },
    "model_tokens": {
        "description": "Bearer tokens for the download of model files by address, by host: "
        '`{"huggingface.co": "hf_…"}`. Never stored, logged or returned, and sent only to that host.',
        "type": "object",
    },
    "webhook": {
        "description": "URL that the worker calls when the job ends. Calls are signed with one of the worker's secrets "
        "(docs/webhooks.md). RunPod's own webhook is a URL next to `input`.",
        "type": "object",
        "required": ["url"],
        "additionalProperties": False,
        "properties": {
            "url": {"type": "string", "maxLength": 8192},
            "secret_id": {"type": "string", "minLength": 1, "maxLength": 64, "default": "default"},
            "events": {
                "type": "array",
                "minItems": 1,
                "uniqueItems": True,
                "items": {"enum": ["completed", "failed", "progress"]},
                "default": ["completed", "failed"],
            },
        },
    },
}
"""JSON Schema (2020-12) of the request keys that are common to all workflows."""

GRAPH_KEYS: JsonObject = {
    "inputs_schema": {
        "description": "The content of the inputs file of the graph. The request then has the inputs "
        "that the file describes, as with a template of the worker.",
        "type": "object",
    },
    "extra_data": {
        "description": 'Passed to ComfyUI with the graph, for example `{"extra_pnginfo": {"workflow": …}}`. Keys that '
        "identify the job or its caller are removed.",
        "type": "object",
    },
    "comfy_org_api_key": {
        "description": "API key for nodes that call paid comfy.org APIs. Passed to ComfyUI as "
        "`extra_data.api_key_comfy_org`; never written to results or logs.",
        "type": "string",
    },
}
"""JSON Schema of the keys that are allowed only if `workflow` is a graph. Unknown keys then cause a warning."""


MAX_TEXT = 300
"""Maximum length of a caller's or ComfyUI's text that is quoted in an error, in characters."""
MAX_REPORT_BYTES = 64_000
"""Maximum size of an error report. RunPod drops results that are too large, including errors."""


def shortened(text: str, limit: int = MAX_TEXT) -> str:
    """Return `text` truncated to `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


@dataclass(frozen=True)
class Fault:
    """One fault in a request: its path (`loras[0].strength`), and a message that says how to correct it."""

    path: str
    message: str


@dataclass(frozen=True)
class ErrorReport:
    """A failure as it is sent to the caller: `{"error": "<JSON text of this report>"}`, always a string.

    Source: docs/reference/runpod.md#return-values.
    """

    code: ErrorCode
    message: str
    details: JsonObject = field(default_factory=dict)

    @staticmethod
    def because(code: ErrorCode, problem: str = "", **details: Any) -> ErrorReport:  # noqa: ANN401 - any JSON value
        """Return the report whose message is `problem`, by default the code's cause, and the code's remedy."""
        return ErrorReport(code, code.message(problem), details)

    @property
    def retry(self) -> Retry:
        """What the caller can do next. A request whose job may already run (`may_run`) must not be sent again."""
        return Retry.NO if self.details.get("may_run") else self.code.retry

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed if it is sent again."""
        return self.retry is Retry.RESEND

    def to_json(self) -> str:
        """Return the report as JSON text of at most MAX_REPORT_BYTES.

        Long texts, lists and objects are truncated if needed. The last item of a truncated list says how many items
        were removed. Raises ValueError if a detail is not a JSON value.
        """
        text = self._json(self.message, self.details)
        for items in (100, 20, 5, 0):
            if len(text.encode()) <= MAX_REPORT_BYTES:
                break
            text = self._json(shortened(self.message, 4000), _cut(self.details, items))
        return text

    def _json(self, message: str, details: object) -> str:
        return json.dumps(
            {"code": self.code.value, "message": message, "retryable": self.retryable, "details": details},
            ensure_ascii=False,
            allow_nan=False,
        )

    @staticmethod
    def from_json(text: str) -> ErrorReport:
        """Return the report in `text`. Any other text becomes an `unrecognized` report that contains it."""
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            parsed = None
        match parsed:
            case {"code": str(code), "message": str(message), **rest}:
                details = rest.get("details")
                codes = {each.value: each for each in ErrorCode}
                if code in codes:
                    return ErrorReport(codes[code], message, details if isinstance(details, dict) else {})
                return ErrorReport(ErrorCode.UNRECOGNIZED, message, {"error": parsed})
        return ErrorReport(ErrorCode.UNRECOGNIZED, text, {"error": text})


def _cut(value: Any, items: int) -> Any:  # noqa: ANN401 - any JSON value
    """Return a JSON value with shortened texts, lists of `items` entries, and objects of at least 10 entries."""
    match value:
        case str():
            return shortened(value)
        case list():
            more = [f"and {len(value) - items} more"] if len(value) > items else []
            return [*(_cut(item, items) for item in value[:items]), *more]
        case dict():
            first_items = list(value.items())[: max(items, 10)]
            return {shortened(str(key)): _cut(item, items) for key, item in first_items}
    return value


def is_asset_id(text: object) -> bool:
    """Return whether `text` has the form of the asset ids that Scenario and the shim assign to images."""
    return isinstance(text, str) and re.fullmatch(r"asset_[\w-]{1,64}", text, re.ASCII) is not None
