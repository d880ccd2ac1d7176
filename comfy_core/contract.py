"""The contract between callers and the worker, as pure data: request schema, error codes, error report.

No validation, rendering or I/O. `workflows.py` builds the schema of a whole request from `ENVELOPE` and a workflow's
own inputs. docs/api.md is generated from this module.
"""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass, field
from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]

ALIASES = {"txt2img": "flux-dev-txt2img", "img2img": "flux-dev-img2img"}
"""Short names of workflows. A request without `workflow` uses img2img if it has `image`, else txt2img."""

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
        "description": "A template's name (`flux-dev-txt2img`; `txt2img` and `img2img` are aliases), or a whole graph "
        "in ComfyUI's API format. Default: img2img if `image` is given, else txt2img.",
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
}
"""JSON Schema (2020-12) of the request keys that are common to all workflows."""

GRAPH_KEYS: JsonObject = {
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
"""JSON Schema of the keys that are only allowed when `workflow` is a graph. Any other key causes a warning."""


class ErrorCode(enum.StrEnum):
    """A stable code for each cause of failure. Codes are added, never renamed."""

    INVALID_INPUT = "invalid_input"
    INVALID_IMAGE = "invalid_image"
    UNKNOWN_WORKFLOW = "unknown_workflow"
    WORKFLOW_REJECTED = "workflow_rejected"
    MODEL_MISSING = "model_missing"
    EXECUTION_FAILED = "execution_failed"
    OUT_OF_MEMORY = "out_of_memory"
    INTERRUPTED = "interrupted"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    COMFYUI_UNAVAILABLE = "comfyui_unavailable"
    DISK_FULL = "disk_full"
    NO_OUTPUT = "no_output"
    OUTPUT_TOO_LARGE = "output_too_large"
    OUTPUT_NOT_STORED = "output_not_stored"
    CANCELLED = "cancelled"
    INTERNAL = "internal"
    AUTH_FAILED = "auth_failed"
    ENDPOINT_NOT_FOUND = "endpoint_not_found"
    RATE_LIMITED = "rate_limited"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    NETWORK = "network"
    WORKER_LOST = "worker_lost"
    JOB_EXPIRED = "job_expired"
    RESULT_LOST = "result_lost"
    QUEUE_TIMEOUT = "queue_timeout"
    MISCONFIGURED = "misconfigured"
    UNRECOGNIZED = "unrecognized"


@dataclass(frozen=True)
class ErrorFacts:
    """Documentation and retryability of one error code."""

    retryable: bool
    cause: str
    remedy: str
    details: str = ""
    is_of_client: bool = False
    """Whether the client creates the error, rather than the worker."""


ERRORS: dict[ErrorCode, ErrorFacts] = {
    ErrorCode.INVALID_INPUT: ErrorFacts(
        retryable=False,
        cause="The request does not match its schema, or its graph refers to files that do not belong to the job. "
        "All faults are listed at once. Nothing was sent to ComfyUI.",
        remedy="Correct the value at each path in `details.faults`.",
        details="`faults`: list of `{path, message}`",
    ),
    ErrorCode.INVALID_IMAGE: ErrorFacts(
        retryable=False,
        cause="An image in the request is not an image file, is truncated, or is too large.",
        remedy="Send a complete PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF of at most 25 MB and 64 megapixels.",
        details="`path`",
    ),
    ErrorCode.UNKNOWN_WORKFLOW: ErrorFacts(
        retryable=False,
        cause="No workflow with this name exists.",
        remedy="Use a name from `details.known`, or send a complete graph.",
        details="`known`",
    ),
    ErrorCode.WORKFLOW_REJECTED: ErrorFacts(
        retryable=False,
        cause="ComfyUI rejected the graph, or would have skipped some of its outputs.",
        remedy="Correct the nodes in `details.nodes`. If a node type does not exist, install its custom node in the "
        "worker image.",
        details="`nodes`: list of `{node_id, node_type, input, problem}`, `type`; `missing` and `available` as in "
        "`model_missing`, if a model is also missing",
    ),
    ErrorCode.MODEL_MISSING: ErrorFacts(
        retryable=False,
        cause="The graph names a model, LoRA, sampler or scheduler that this ComfyUI does not have. "
        "No GPU time was spent.",
        remedy="Use a name from `details.available`, or add the file to the worker's model folder.",
        details="`missing`: list of `{node_id, node_type, input, value}`, `available`: `{input: [names]}`",
    ),
    ErrorCode.EXECUTION_FAILED: ErrorFacts(
        retryable=False,
        cause="A node raised an exception during execution, or made ComfyUI hang.",
        remedy="Fix the cause given in `details.exception_type` and the message. The same graph will fail again.",
        details="`node_id`, `node_type`, `exception_type`; `reason` is `comfyui_hung` if ComfyUI hung",
    ),
    ErrorCode.OUT_OF_MEMORY: ErrorFacts(
        retryable=True,
        cause="The GPU ran out of memory.",
        remedy="Request a smaller size or fewer LoRAs, or configure the endpoint with a GPU that has more memory.",
        details="`node_id`, `node_type`, `exception_type`",
    ),
    ErrorCode.INTERRUPTED: ErrorFacts(
        retryable=True,
        cause="Another client interrupted ComfyUI while it was executing this job.",
        remedy="Send the job again.",
        details="`node_id`, `node_type`",
    ),
    ErrorCode.DEADLINE_EXCEEDED: ErrorFacts(
        retryable=True,
        cause="The job exceeded its timeout. Its prompts were interrupted, or not all of its results were stored.",
        remedy="Request fewer steps, images or pixels, or raise `timeout_s` and the worker's WORKER_JOB_TIMEOUT_S.",
        details="`after_s`",
    ),
    ErrorCode.COMFYUI_UNAVAILABLE: ErrorFacts(
        retryable=True,
        cause="ComfyUI does not respond, has exited, or lost the job because it was restarted.",
        remedy="Send the job again. If it fails again, check the worker's log.",
        details="`log_tail`: ComfyUI's last log lines since the job started, if it exited and no other job used it",
    ),
    ErrorCode.DISK_FULL: ErrorFacts(
        retryable=True,
        cause="The disk that ComfyUI writes to is full, or ComfyUI could not store an input file of the request.",
        remedy="Send the job again: the worker frees disk space, and shuts down if that does not help. If it fails "
        "again, give the endpoint a larger container disk, or set COMFYUI_DATA_DIR to a folder on another disk.",
    ),
    ErrorCode.NO_OUTPUT: ErrorFacts(
        retryable=False,
        cause="The graph succeeded but saved no output, or a node reported a file that is empty or does not exist.",
        remedy="Add a SaveImage node, or another node that saves files. PreviewImage does not save.",
    ),
    ErrorCode.OUTPUT_TOO_LARGE: ErrorFacts(
        retryable=False,
        cause="The result exceeds RunPod's size limit, and no bucket is configured.",
        remedy="Request `output_format` webp or jpeg, fewer images or a smaller size, or configure a bucket.",
        details="`bytes`, `limit`",
    ),
    ErrorCode.OUTPUT_NOT_STORED: ErrorFacts(
        retryable=True,
        cause="An image could not be uploaded to the bucket.",
        remedy="Check the bucket's name, keys and permissions, or request `delivery` base64.",
    ),
    ErrorCode.CANCELLED: ErrorFacts(
        retryable=False,
        cause="The job was cancelled, and its prompts were interrupted.",
        remedy="None needed: the caller requested the cancellation.",
    ),
    ErrorCode.INTERNAL: ErrorFacts(
        retryable=False,
        cause="A bug in the worker.",
        remedy="Report it with the job id. The traceback is in the worker's log.",
    ),
    ErrorCode.AUTH_FAILED: ErrorFacts(
        retryable=False,
        cause="The API key is missing, invalid, or has no access to the endpoint.",
        remedy="Create a key in RunPod's console (Settings > API Keys) and set RUNPOD_API_KEY.",
        details="`status`",
        is_of_client=True,
    ),
    ErrorCode.ENDPOINT_NOT_FOUND: ErrorFacts(
        retryable=False,
        cause="The platform has no endpoint with this id.",
        remedy="Copy the id from RunPod's console (Serverless > the endpoint), and check RUNPOD_ENDPOINT_BASE_URL.",
        details="`status`",
        is_of_client=True,
    ),
    ErrorCode.RATE_LIMITED: ErrorFacts(
        retryable=True,
        cause="The platform's rate limit was reached, and several retries failed.",
        remedy="Lower `concurrency`, or wait and try again.",
        details="`status`",
        is_of_client=True,
    ),
    ErrorCode.PAYLOAD_TOO_LARGE: ErrorFacts(
        retryable=False,
        cause="The request exceeds RunPod's size limit: 10 MiB, or 20 MB if the call waits for the result.",
        remedy="Send images as https URLs, or smaller images (JPEG or WebP). Base64 adds a third to their size.",
        details="`bytes`, `limit`",
        is_of_client=True,
    ),
    ErrorCode.NETWORK: ErrorFacts(
        retryable=True,
        cause="A server could not be reached, or its response was unexpected.",
        remedy="Try again. If `details.may_run` is true, first check whether the job is running: a submit is never "
        "retried automatically.",
        details="`status`, `may_run`: whether a job may have been accepted",
        is_of_client=True,
    ),
    ErrorCode.WORKER_LOST: ErrorFacts(
        retryable=True,
        cause="RunPod lost contact with the worker that was running the job, and failed the job.",
        remedy="Send the job again. If it fails again, check the worker's log: the worker may run out of memory.",
        details="`error`: RunPod's error text",
        is_of_client=True,
    ),
    ErrorCode.JOB_EXPIRED: ErrorFacts(
        retryable=True,
        cause="The platform does not have the job: the id is wrong, its `ttl` expired, or its result was not fetched "
        "in time (RunPod keeps results for 30 minutes).",
        remedy="Check the job id. Send the job again with a longer `ttl_s`, and fetch its result sooner.",
        is_of_client=True,
    ),
    ErrorCode.RESULT_LOST: ErrorFacts(
        retryable=False,
        cause="The job succeeded, but its result is missing or incomplete: RunPod drops results that are too large, "
        "and bucket URLs expire.",
        remedy="Request `output_format` webp or jpeg, fewer images or `delivery` s3, and fetch the result immediately.",
        details="`filename`, if the error is about one image",
        is_of_client=True,
    ),
    ErrorCode.QUEUE_TIMEOUT: ErrorFacts(
        retryable=True,
        cause="The caller's wait timed out before the job ended. The job is still queued or running.",
        remedy="Wait for the same job again, using its id. The message describes the state of the endpoint.",
        details="`job_id`, `state`, `workers`: counts by state, `why`",
        is_of_client=True,
    ),
    ErrorCode.MISCONFIGURED: ErrorFacts(
        retryable=False,
        cause="A setting is missing or invalid. Nothing was sent.",
        remedy="Set the variable named in the message.",
        is_of_client=True,
    ),
    ErrorCode.UNRECOGNIZED: ErrorFacts(
        retryable=False,
        cause="The error report has a code that this version of the client does not know, or it is not a valid report.",
        remedy="Read the message. If the report has a code, a newer client knows it.",
        details="`error`: the report as received",
    ),
}
"""Facts about every error code. docs/errors.md is generated from this table."""


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

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed if it is sent again."""
        return ERRORS[self.code].retryable

    def to_json(self) -> str:
        """Return the report as JSON text of at most MAX_REPORT_BYTES.

        Long texts and lists are truncated if needed; the last item of a truncated list says how many were removed.
        Raises ValueError if a detail is not a JSON value.
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
                known = {known.value: known for known in ErrorCode}
                if code in known:
                    return ErrorReport(known[code], message, details if isinstance(details, dict) else {})
                return ErrorReport(ErrorCode.UNRECOGNIZED, message, {"error": parsed})
        return ErrorReport(ErrorCode.UNRECOGNIZED, text, {"error": text})


def _cut(value: Any, items: int) -> Any:  # noqa: ANN401 - any JSON value
    """Return a JSON value with texts truncated to MAX_TEXT characters, and lists and objects to `items` entries."""
    match value:
        case str():
            return shortened(value)
        case list():
            more = [f"and {len(value) - items} more"] if len(value) > items else []
            return [*(_cut(item, items) for item in value[:items]), *more]
        case dict():
            kept = list(value.items())[: max(items, 10)]
            return {shortened(str(key)): _cut(item, items) for key, item in kept}
    return value


def is_asset_id(text: object) -> bool:
    """Return whether `text` has the form of an asset id, as Scenario and the shim assign to images."""
    return isinstance(text, str) and re.fullmatch(r"asset_[\w-]{1,64}", text, re.ASCII) is not None
