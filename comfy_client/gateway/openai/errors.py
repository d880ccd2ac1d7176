"""Errors in OpenAI's format, and the HTTP status of each error code of a job. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_client.gateway.scenario.errors import (
    BAD_REQUEST,
    FORBIDDEN,
    INTERNAL,
    NOT_FOUND,
    TOO_LARGE,
    TOO_MANY,
    UNAUTHORIZED,
    UNAVAILABLE,
    ShimError,
)
from comfy_client.gateway.scenario.models import ShimJob
from comfy_client.providers.scenario_responses import Status
from comfy_core.contract import JsonObject
from comfy_core.error_codes import ErrorCode

CONFLICT = 409
TIMEOUT = 504
JOB_STATUS: Mapping[ErrorCode, int] = {
    **dict.fromkeys(
        (
            ErrorCode.INVALID_INPUT,
            ErrorCode.INVALID_IMAGE,
            ErrorCode.INVALID_WORKFLOW,
            ErrorCode.WORKFLOW_REJECTED,
            ErrorCode.MODEL_MISSING,
            ErrorCode.INVALID_MODEL,
        ),
        BAD_REQUEST,
    ),
    ErrorCode.UNKNOWN_WORKFLOW: NOT_FOUND,
    ErrorCode.CANCELLED: CONFLICT,
    ErrorCode.PAYLOAD_TOO_LARGE: TOO_LARGE,
    **dict.fromkeys(
        (
            ErrorCode.COMFYUI_UNAVAILABLE,
            ErrorCode.INTERRUPTED,
            ErrorCode.MODEL_DOWNLOAD_FAILED,
            ErrorCode.NETWORK,
            ErrorCode.RATE_LIMITED,
            ErrorCode.WORKER_LOST,
        ),
        UNAVAILABLE,
    ),
    **dict.fromkeys((ErrorCode.DEADLINE_EXCEEDED, ErrorCode.QUEUE_TIMEOUT, ErrorCode.JOB_EXPIRED), TIMEOUT),
}
"""The HTTP status for a job that failed. Any other code has 500."""
_TYPES: Mapping[int, str] = {
    UNAUTHORIZED: "authentication_error",
    FORBIDDEN: "permission_error",
    TOO_MANY: "rate_limit_error",
}
"""The `type` of an error by status. Any other status below 500 is an invalid_request_error."""


def error_body(error: ShimError) -> JsonObject:
    """Return the body of an error response."""
    kind = "server_error" if error.status >= INTERNAL else _TYPES.get(error.status, "invalid_request_error")
    facts = {name: error.facts[name] for name in ("job_id",) if name in error.facts}
    return {
        "error": {
            "message": error.reason,
            "type": kind,
            "param": error.facts.get("param"),
            "code": error.code.value,
            **facts,
        }
    }


def unknown_route(method: str, path: str) -> ShimError:
    """Return the error for a route of OpenAI's API that the server does not have."""
    reason = f"The server has no {method} {path[:120]}. It has images/generations, images/edits and models"
    return ShimError(NOT_FOUND, reason)


def job_error(job: ShimJob) -> ShimError:
    """Return the error of a job that did not succeed. The SDK does not repeat the call, which would pay again."""
    is_cancelled = job.status is Status.CANCELED
    code = ErrorCode.CANCELLED if is_cancelled else _code(job.error_code)
    reason = f"Job {job.id} was cancelled on the web page" if is_cancelled else job.error
    headers = {"x-should-retry": "false"}
    return ShimError(JOB_STATUS.get(code, INTERNAL), reason, code=code, headers=headers, job_id=job.id)


def _code(text: str) -> ErrorCode:
    return ErrorCode(text) if text in set(ErrorCode) else ErrorCode.UNRECOGNIZED
