"""What travels between a caller and the worker, as pure data: the request's envelope, the result, the errors.

Nothing here validates, renders or talks; `workflows.py` derives the validation of a whole request from `ENVELOPE` and a
workflow's own inputs. The shapes are those of docs/api.md, which is generated from this module.
"""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass, field
from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]

ALIASES = {"txt2img": "flux-dev-txt2img", "img2img": "flux-dev-img2img"}
"""Short names of workflows. Where a request names none, `image` decides between these two."""

OUTPUT_FORMATS = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
"""`output_format` and the MIME type of the pictures that it gives."""

MAX_SEED = 2**63 - 1
"""The largest seed a request may carry. ComfyUI itself takes up to 2**64 - 1; JSON clients in Java and Go do not."""

MAX_RANDOM_SEED = 2**32 - 1
"""The largest seed drawn for a request that names none: a JavaScript client rounds seeds above 2**53."""

MAX_FAULTS = 50
"""Faults that one report lists; a graph can have thousands."""

EXPORT_MENU = "File > Export (API) (older frontends: Workflow > Export (API))"
"""The menu of ComfyUI's editor that writes a graph which can be run."""

ENVELOPE: JsonObject = {
    "workflow": {
        "description": "A template's name (`flux-dev-txt2img`; `txt2img` and `img2img` are aliases), or a whole graph "
        "in ComfyUI's API format. Default: img2img if `image` is given, else txt2img.",
        "type": ["string", "object"],
    },
    "images": {
        "description": "For graphs: the files that its LoadImage nodes (and other loaders) name, each base64, a data "
        "URI or an https address; at most 100 MB in all, and 16 addresses. Other keys of an entry are ignored.",
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
        "description": 'Values set after rendering: `{"Node title.input": value}` or `{"12.input": value}`. What '
        "they may set is listed below.",
        "type": "object",
    },
    "output_format": {
        "description": "The pictures' format.",
        "enum": list(OUTPUT_FORMATS),
        "default": "png",
    },
    "output_quality": {
        "description": "Quality of webp and jpeg; png ignores it.",
        "type": "integer",
        "minimum": 1,
        "maximum": 100,
        "default": 90,
    },
    "metadata": {
        "description": "Write the prompt, the seed and the graph into the picture's file.",
        "type": "boolean",
        "default": True,
    },
    "delivery": {
        "description": "How the pictures come back: inline as base64, in the worker's bucket (or that of the job's "
        "`s3Config`), or `auto`: inline if they fit, else in the bucket.",
        "enum": ["auto", "base64", "s3"],
        "default": "auto",
    },
    "timeout_s": {
        "description": "Stop the job after this many seconds of rendering (at most WORKER_JOB_TIMEOUT_S).",
        "type": "number",
        "minimum": 1,
        "maximum": 3600,
    },
}
"""JSON Schema (2020-12) of the keys that every request may carry, whatever its workflow."""

GRAPH_KEYS: JsonObject = {
    "extra_data": {
        "description": 'Passed to ComfyUI beside the graph, such as `{"extra_pnginfo": {"workflow": …}}`. Keys that '
        "name the job or its caller are left out.",
        "type": "object",
    },
    "comfy_org_api_key": {
        "description": "The key for nodes that call paid APIs of comfy.org, passed to ComfyUI as "
        "`extra_data.api_key_comfy_org`. It is in no result and no log.",
        "type": "string",
    },
}
"""JSON Schema of the keys that only a graph of the caller's own may have beside it. Any other key is a warning."""


class ErrorCode(enum.StrEnum):
    """One stable code a cause. Codes are added, never renamed."""

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
    """What is true of every error with one code."""

    retryable: bool
    cause: str
    remedy: str
    details: str = ""
    is_of_client: bool = False
    """Whether the client makes it, of what the platform or the network did."""


ERRORS: dict[ErrorCode, ErrorFacts] = {
    ErrorCode.INVALID_INPUT: ErrorFacts(
        retryable=False,
        cause="The request breaks its schema, or its graph names files outside the job's own. All faults are listed at "
        "once; ComfyUI was given nothing to run.",
        remedy="Correct each path that `details.faults` names.",
        details="`faults`: list of `{path, message}`",
    ),
    ErrorCode.INVALID_IMAGE: ErrorFacts(
        retryable=False,
        cause="A picture of the request is not an image, is cut off, or is too large.",
        remedy="Send a whole PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF of at most 25 MB and 64 megapixels.",
        details="`path`",
    ),
    ErrorCode.UNKNOWN_WORKFLOW: ErrorFacts(
        retryable=False,
        cause="There is no workflow of that name.",
        remedy="Use a name of `details.known`, or send a whole graph.",
        details="`known`",
    ),
    ErrorCode.WORKFLOW_REJECTED: ErrorFacts(
        retryable=False,
        cause="ComfyUI refused the graph, or would have dropped some of its outputs.",
        remedy="Correct the nodes that `details.nodes` names. A node that does not exist needs its custom node in the "
        "image.",
        details="`nodes`: list of `{node_id, node_type, input, problem}`, `type`; `missing` and `available` as in "
        "`model_missing`, if a model is among what is wrong",
    ),
    ErrorCode.MODEL_MISSING: ErrorFacts(
        retryable=False,
        cause="The graph names a model, LoRA, sampler or scheduler that this ComfyUI does not have. "
        "No GPU time was spent.",
        remedy="Use a name of `details.available`, or put the file into the worker's model folder.",
        details="`missing`: list of `{node_id, node_type, input, value}`, `available`: `{input: [names]}`",
    ),
    ErrorCode.EXECUTION_FAILED: ErrorFacts(
        retryable=False,
        cause="A node raised an exception while the graph ran, or made ComfyUI hang.",
        remedy="Read `details.exception_type` and the message; the same graph will fail again.",
        details="`node_id`, `node_type`, `exception_type`; `reason` is `comfyui_hung` where it hung",
    ),
    ErrorCode.OUT_OF_MEMORY: ErrorFacts(
        retryable=True,
        cause="The GPU's memory did not suffice.",
        remedy="Ask for a smaller size or fewer LoRAs, or give the endpoint a GPU with more memory.",
        details="`node_id`, `node_type`, `exception_type`",
    ),
    ErrorCode.INTERRUPTED: ErrorFacts(
        retryable=True,
        cause="Someone else interrupted ComfyUI while it ran this job.",
        remedy="Send the job again.",
        details="`node_id`, `node_type`",
    ),
    ErrorCode.DEADLINE_EXCEEDED: ErrorFacts(
        retryable=True,
        cause="The job did not end in its time; its prompts were interrupted, or its results not all stored.",
        remedy="Ask for fewer steps, pictures or pixels, or raise `timeout_s` and the worker's WORKER_JOB_TIMEOUT_S.",
        details="`after_s`",
    ),
    ErrorCode.COMFYUI_UNAVAILABLE: ErrorFacts(
        retryable=True,
        cause="ComfyUI does not answer, died, or has lost the job because it was started anew.",
        remedy="Send the job again; if it stays so, read the worker's log.",
        details="`log_tail`: ComfyUI's last lines since the job began, if it died and no other job used it meanwhile",
    ),
    ErrorCode.DISK_FULL: ErrorFacts(
        retryable=True,
        cause="The disk that ComfyUI writes to is full, or ComfyUI could not store a picture of the request.",
        remedy="Send the job again: the worker deletes what it can, and retires if that does not help. If it stays so, "
        "give the endpoint a larger container disk, or COMFYUI_DATA_DIR another folder.",
    ),
    ErrorCode.NO_OUTPUT: ErrorFacts(
        retryable=False,
        cause="The graph succeeded and saved nothing, or a node reported a file that is empty or does not exist.",
        remedy="End the graph in SaveImage, or another node that saves; PreviewImage does not count.",
    ),
    ErrorCode.OUTPUT_TOO_LARGE: ErrorFacts(
        retryable=False,
        cause="The result is larger than what RunPod returns, and the worker has no bucket for it.",
        remedy="Ask for `output_format` webp or jpeg, fewer pictures or a smaller size; or use a bucket.",
        details="`bytes`, `limit`",
    ),
    ErrorCode.OUTPUT_NOT_STORED: ErrorFacts(
        retryable=True,
        cause="The bucket did not take a picture.",
        remedy="Check the bucket's name, keys and rights, or ask for `delivery` base64.",
    ),
    ErrorCode.CANCELLED: ErrorFacts(
        retryable=False,
        cause="The job was cancelled; its prompts were interrupted.",
        remedy="Nothing: this is what was asked for.",
    ),
    ErrorCode.INTERNAL: ErrorFacts(
        retryable=False,
        cause="A bug in the worker.",
        remedy="Report it with the job's id; the traceback is in the worker's log.",
    ),
    ErrorCode.AUTH_FAILED: ErrorFacts(
        retryable=False,
        cause="The API key is missing, wrong, or has no access to the endpoint.",
        remedy="Make a key in RunPod's console (Settings > API Keys) and set RUNPOD_API_KEY.",
        details="`status`",
        is_of_client=True,
    ),
    ErrorCode.ENDPOINT_NOT_FOUND: ErrorFacts(
        retryable=False,
        cause="The platform has no endpoint of that id.",
        remedy="Copy the id from RunPod's console (Serverless > the endpoint), and look at RUNPOD_ENDPOINT_BASE_URL.",
        details="`status`",
        is_of_client=True,
    ),
    ErrorCode.RATE_LIMITED: ErrorFacts(
        retryable=True,
        cause="The platform takes no more requests for now, and went on so after several attempts.",
        remedy="Send less at once: a smaller `concurrency`, or wait.",
        details="`status`",
        is_of_client=True,
    ),
    ErrorCode.PAYLOAD_TOO_LARGE: ErrorFacts(
        retryable=False,
        cause="The request is larger than what RunPod takes: 10 MiB, or 20 MB where the call waits for the result.",
        remedy="Send an https address in place of the picture, or a smaller one (JPEG or WebP); base64 adds a third.",
        details="`bytes`, `limit`",
        is_of_client=True,
    ),
    ErrorCode.NETWORK: ErrorFacts(
        retryable=True,
        cause="A server was not reached, or answered with something else than it should.",
        remedy="Try again. Where a submit was under way, look first whether the job runs: it is never sent twice.",
        details="`status`, `may_run`: whether a job may have been accepted",
        is_of_client=True,
    ),
    ErrorCode.WORKER_LOST: ErrorFacts(
        retryable=True,
        cause="RunPod heard nothing more of the worker that had the job, and gave it up.",
        remedy="Send the job again; if it stays so, read the worker's log: it may die of too little memory.",
        details="`error`: RunPod's words",
        is_of_client=True,
    ),
    ErrorCode.JOB_EXPIRED: ErrorFacts(
        retryable=True,
        cause="The platform does not know the job, or no more: its `ttl` was over, or its result was not fetched in "
        "time (RunPod keeps it for 30 minutes).",
        remedy="Look at the id. Send the job again, with a longer `ttl_s`, and fetch its result sooner.",
        is_of_client=True,
    ),
    ErrorCode.RESULT_LOST: ErrorFacts(
        retryable=False,
        cause="The job ended well and its result is not there, or not whole: RunPod drops results that are too large, "
        "a bucket's address expires.",
        remedy="Ask for `output_format` webp or jpeg, fewer pictures or `delivery` s3, and fetch the result at once.",
        details="`filename`, where one picture is meant",
        is_of_client=True,
    ),
    ErrorCode.QUEUE_TIMEOUT: ErrorFacts(
        retryable=True,
        cause="The caller's time was over before the job ended. The job goes on.",
        remedy="Wait for the same job again with its id; the message says what the endpoint is doing.",
        details="`job_id`, `state`, `workers`: counts by state, `why`",
        is_of_client=True,
    ),
    ErrorCode.MISCONFIGURED: ErrorFacts(
        retryable=False,
        cause="A setting is missing or wrong. Nothing was sent.",
        remedy="Set the variable that the message names.",
        is_of_client=True,
    ),
    ErrorCode.UNRECOGNIZED: ErrorFacts(
        retryable=False,
        cause="The report carries a code that this version of the client does not know, or is no report at all.",
        remedy="Read the message; a newer client knows the code.",
        details="`error`: what came",
    ),
}
"""The one registry of errors. docs/errors.md is generated from it."""


MAX_TEXT = 300
"""The longest text of a caller's, or of ComfyUI's, that an error repeats."""
MAX_REPORT_BYTES = 64_000
"""The largest error; RunPod drops results that are too large, and an error with them."""


def shortened(text: str, limit: int = MAX_TEXT) -> str:
    """Return `text`, or its start where it is longer than `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


@dataclass(frozen=True)
class Fault:
    """One fault of a request: where it is (`loras[0].strength`) and what to do about it."""

    path: str
    message: str


@dataclass(frozen=True)
class ErrorReport:
    """A failure as it travels: `{"error": "<JSON text of this>"}`, always a string.

    Source: docs/reference/runpod.md#return-values.
    """

    code: ErrorCode
    message: str
    details: JsonObject = field(default_factory=dict)

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed when it is sent again."""
        return ERRORS[self.code].retryable

    def to_json(self) -> str:
        """Return the report as JSON text of at most MAX_REPORT_BYTES. Raises ValueError if a detail is no JSON value.

        In a report that is larger, long texts and lists are cut; the end of a list says how many more there were.
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
        """Return the report that `text` carries; anything else reads as `unrecognized` and keeps its text."""
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
    """Return a JSON value with texts of at most MAX_TEXT characters, and lists and objects of at most `items`."""
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
    """Return whether `text` has the form of an asset's id, as Scenario and the shim give them to images."""
    return isinstance(text, str) and re.fullmatch(r"asset_[\w-]{1,64}", text, re.ASCII) is not None
