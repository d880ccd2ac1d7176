"""The registry of error codes: for each code its cause, its remedy, and whether the request can be sent again.

A code is one row of `ErrorCode`. docs/errors.md, `comfy-client errors` and the messages of `JobError.because` and
`RequestError.because` are generated from the rows.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple, Self


class Retry(enum.StrEnum):
    """What a caller can do after a failure."""

    RESEND = "resend"
    WAIT = "wait"
    NO = "no"

    @property
    def meaning(self) -> str:
        """The sentence that explains the word to a caller."""
        return {
            Retry.RESEND: "The same request may succeed if it is sent again.",
            Retry.WAIT: "The job still runs: wait for it again by its id. Sending the request again pays twice.",
            Retry.NO: "A program should not send the same request again by itself: follow the remedy.",
        }[self]


class _Row(NamedTuple):
    code: str
    retry: Retry
    cause: str
    remedy: str
    details: str = ""
    is_raised_by_client: bool = False


class ErrorCode(enum.StrEnum):
    """A stable code for each cause of failure. Codes are added, never renamed.

    Attributes:
        retry: what the caller can do next.
        cause: what happened, in full sentences.
        remedy: what to change, in full sentences.
        details: the keys of the report's `details`.
        is_raised_by_client: whether the client creates the error, rather than the worker.
    """

    retry: Retry
    cause: str
    remedy: str
    details: str
    is_raised_by_client: bool

    def __new__(cls, code: str, *facts: Any) -> Self:  # noqa: ANN401, D102 - the fields of a _Row
        member = str.__new__(cls, code)
        member._value_ = code
        member.retry, member.cause, member.remedy, member.details, member.is_raised_by_client = facts
        return member

    INVALID_INPUT = _Row(
        "invalid_input",
        Retry.NO,
        cause="The request does not match its schema, or its graph refers to files that do not belong to the job. "
        "All faults are listed at once. Nothing was sent to ComfyUI.",
        remedy="Correct the value at each path in `details.faults`.",
        details="`faults`: list of `{path, message}`",
    )
    INVALID_IMAGE = _Row(
        "invalid_image",
        Retry.NO,
        cause="An image in the request is not an image file, is truncated, or is too large.",
        remedy="Send a complete PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF of at most 25 MB and 64 megapixels, as base64 "
        "or as a public https URL.",
        details="`path`",
    )
    UNKNOWN_WORKFLOW = _Row(
        "unknown_workflow",
        Retry.NO,
        cause="No workflow with this name exists.",
        remedy="Use a name from `details.known`, or send a complete graph.",
        details="`known`",
    )
    INVALID_WORKFLOW = _Row(
        "invalid_workflow",
        Retry.NO,
        cause="The files of the workflow are invalid.",
        remedy="Correct the file that the message names; `comfy-client workflows check` finds such faults.",
        details="`workflow`",
    )
    WORKFLOW_REJECTED = _Row(
        "workflow_rejected",
        Retry.NO,
        cause="ComfyUI rejected the graph, or would have skipped some of its outputs.",
        remedy="Correct the nodes in `details.nodes`, or install a missing custom node in the worker image.",
        details="`nodes`: list of `{node_id, node_type, input, problem}`, `type`; `missing` and `available` as in "
        "`model_missing`, if a model is also missing",
    )
    MODEL_MISSING = _Row(
        "model_missing",
        Retry.NO,
        cause="The graph names a model, LoRA, sampler or scheduler that this ComfyUI does not have. No GPU time was "
        "spent.",
        remedy="Use a name from `details.available`, or add the file to the worker's model folder (docs/models.md).",
        details="`missing`: list of `{node_id, node_type, input, value}`, `available`: `{input: [names]}`",
    )
    INVALID_MODEL = _Row(
        "invalid_model",
        Retry.NO,
        cause="A model file that the request names by its address cannot be used: its server refused it, it is not the "
        "expected file, it is not a safetensors file, or it is too large for the worker. No GPU time was spent.",
        remedy="Correct the address or its hash, or send a token for its host in `model_tokens` (docs/models.md).",
        details="`models`: list of `{address, problem}`",
    )
    MODEL_DOWNLOAD_FAILED = _Row(
        "model_download_failed",
        Retry.RESEND,
        cause="A model file that the request names by its address was not downloaded: its server or the network failed "
        "several times, or it cannot be written to the disk. No GPU time was spent.",
        remedy="Send the job again: the download resumes where it ended. If the message names a folder, first free "
        "space there or make it writable.",
        details="`models`: list of `{address, problem}`",
    )
    MODEL_IN_USE = _Row(
        "model_in_use",
        Retry.RESEND,
        cause="A running job uses the model file, so it was neither deleted nor replaced.",
        remedy="Send the request again when no job uses the file.",
        details="`model`",
    )
    EXECUTION_FAILED = _Row(
        "execution_failed",
        Retry.NO,
        cause="A node raised an exception during execution, or made ComfyUI hang.",
        remedy="Fix the cause that the message names. The same request will fail again.",
        details="`node_id`, `node_type`, `exception_type`; `log_tail`: the last lines of the exception's traceback; "
        "`reason` is `comfyui_hung` if ComfyUI hung",
    )
    OUT_OF_MEMORY = _Row(
        "out_of_memory",
        Retry.RESEND,
        cause="The GPU ran out of memory, or ComfyUI ran out of main memory.",
        remedy="Request a smaller size or fewer LoRAs, or configure a GPU type with more memory.",
        details="`node_id`, `node_type`, `exception_type`, and `log_tail` as in `execution_failed`",
    )
    INTERRUPTED = _Row(
        "interrupted",
        Retry.RESEND,
        cause="Another client interrupted ComfyUI while it was executing this job, or the worker shut down.",
        remedy="Send the job again.",
        details="`node_id`, `node_type`",
    )
    DEADLINE_EXCEEDED = _Row(
        "deadline_exceeded",
        Retry.RESEND,
        cause="The job exceeded its timeout. Its prompts were interrupted, or not all of its results were stored.",
        remedy="Request fewer steps, images or pixels, or allow more time: `timeout_s` and the worker's "
        "WORKER_JOB_TIMEOUT_S, or RunPod's `execution_timeout_s`.",
        details="`after_s`",
    )
    COMFYUI_UNAVAILABLE = _Row(
        "comfyui_unavailable",
        Retry.RESEND,
        cause="ComfyUI does not respond, has exited, or lost the job because it was restarted.",
        remedy="Send the job again. If it fails again, read the worker's log.",
        details="`log_tail`: ComfyUI's last log lines since the job started, if it exited and no other job used it",
    )
    DISK_FULL = _Row(
        "disk_full",
        Retry.RESEND,
        cause="The disk that ComfyUI writes to is full, or ComfyUI could not store an input file of the request.",
        remedy="Send the job again: the worker frees disk space, and shuts down if that does not help. If it fails "
        "again, give the endpoint a larger container disk, or set COMFYUI_DATA_DIR to a folder on another disk.",
    )
    NO_OUTPUT = _Row(
        "no_output",
        Retry.NO,
        cause="The graph succeeded but saved no output, or a node reported a file that is empty or does not exist.",
        remedy="Add a SaveImage node, or another node that saves files. PreviewImage does not save.",
    )
    OUTPUT_TOO_LARGE = _Row(
        "output_too_large",
        Retry.NO,
        cause="The result exceeds RunPod's size limit, and no bucket is configured.",
        remedy="Request `output_format` webp or jpeg, fewer images, a smaller size or `metadata: false`, or "
        "configure a bucket (BUCKET_ENDPOINT_URL).",
        details="`bytes`, `limit`",
    )
    OUTPUT_NOT_STORED = _Row(
        "output_not_stored",
        Retry.RESEND,
        cause="An image could not be uploaded to the bucket.",
        remedy="Check the bucket's name, keys and permissions, or request `delivery` base64.",
    )
    CANCELLED = _Row(
        "cancelled",
        Retry.NO,
        cause="The job was cancelled.",
        remedy="Send the job again if its images are still needed.",
    )
    INTERNAL = _Row(
        "internal",
        Retry.NO,
        cause="A bug in the worker, the client or the shim.",
        remedy="Report it with the job id and the log.",
    )
    AUTH_FAILED = _Row(
        "auth_failed",
        Retry.NO,
        cause="The API key is missing, invalid, or has no access to the endpoint.",
        remedy="Check RUNPOD_API_KEY, and whether the key may use the endpoint (RunPod's console: Settings > API "
        "Keys).",
        details="`status`",
        is_raised_by_client=True,
    )
    ENDPOINT_NOT_FOUND = _Row(
        "endpoint_not_found",
        Retry.NO,
        cause="The platform has no endpoint with this id.",
        remedy="Copy the id from RunPod's console (Serverless > the endpoint), and check RUNPOD_ENDPOINT_BASE_URL if "
        "it is set.",
        details="`status`",
        is_raised_by_client=True,
    )
    RATE_LIMITED = _Row(
        "rate_limited",
        Retry.RESEND,
        cause="The platform's rate limit was reached, and several retries failed.",
        remedy="Send fewer requests at once, or wait.",
        details="`status`",
        is_raised_by_client=True,
    )
    PAYLOAD_TOO_LARGE = _Row(
        "payload_too_large",
        Retry.NO,
        cause="The request exceeds the platform's size limit; RunPod's is 10 MiB, or 20 MB if the call waits for "
        "the result.",
        remedy="Send smaller images, as JPEG or WebP. At RunPod, send them as https URLs: base64 adds a third to their "
        "size.",
        details="`bytes`, `limit`",
        is_raised_by_client=True,
    )
    NETWORK = _Row(
        "network",
        Retry.RESEND,
        cause="A server could not be reached, or its response was unexpected.",
        remedy="Try again. If `details.may_run` is true, first check whether the job is running: a submit is never "
        "retried automatically.",
        details="`status`, `may_run`: whether a job may have been accepted",
        is_raised_by_client=True,
    )
    WORKER_LOST = _Row(
        "worker_lost",
        Retry.RESEND,
        cause="RunPod lost contact with the worker that was running the job, and failed the job.",
        remedy="Send the job again. If it fails again, read the worker's log: the worker may run out of memory.",
        details="`error`: RunPod's error text",
        is_raised_by_client=True,
    )
    JOB_EXPIRED = _Row(
        "job_expired",
        Retry.RESEND,
        cause="The platform does not have the job: the id is wrong, its `ttl` expired, or its result was not "
        "fetched in time (RunPod keeps results for 30 minutes).",
        remedy="Check the job id and the endpoint, or send the job again. At RunPod, allow a longer `ttl_s`, and fetch "
        "the result sooner.",
        is_raised_by_client=True,
    )
    RESULT_LOST = _Row(
        "result_lost",
        Retry.NO,
        cause="The job succeeded, but its result is missing or incomplete: RunPod drops results that are too large, "
        "and bucket URLs expire.",
        remedy="Fetch a result at once. If RunPod dropped it, request `output_format` webp or jpeg, fewer images or "
        "`delivery` s3. Then send the job again.",
        details="`filename`, if the error is about one image",
        is_raised_by_client=True,
    )
    QUEUE_TIMEOUT = _Row(
        "queue_timeout",
        Retry.WAIT,
        cause="The caller's wait timed out before the job ended. The job is still queued or running.",
        remedy="The job continues: wait for it again by its id, or cancel it.",
        details="`job_id`, `state`, `workers`: counts by state, `why`",
        is_raised_by_client=True,
    )
    MISCONFIGURED = _Row(
        "misconfigured",
        Retry.NO,
        cause="A setting is missing or invalid. Nothing was sent.",
        remedy="Set the variable named in the message.",
        is_raised_by_client=True,
    )
    UNRECOGNIZED = _Row(
        "unrecognized",
        Retry.NO,
        cause="The error report has a code that this version of the client does not know, or it is not a valid report.",
        remedy="Read the message. If the report has a code, a newer client knows it.",
        details="`error`: the report as received",
    )

    def message(self, problem: str = "") -> str:
        """Return an error message: `problem`, or else the code's cause, as a sentence, and the code's remedy."""
        problem = problem or self.cause
        end = "" if problem.endswith((".", "!", "?")) else "."
        return f"{problem}{end} {self.remedy}"
