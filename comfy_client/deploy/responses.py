"""Converts error responses of RunPod's management API to errors that name the field and the remedy. No I/O.

Facts: errors are RFC 9457 (`application/problem+json`) with `title`, `status`, `detail`, and `errors`, a list with one
string for each invalid field. 422 means an unknown field, and 403 a key without permission. A 429 response has
Retry-After in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from comfy_core.error_codes import ErrorCode
from comfy_core.errors import RequestError
from comfy_core.http import error_message

RUN_AGAIN = "Run the command again: it finds existing resources by name, and continues"


def api_error(error: RequestError, what: str, hidden: Iterable[str] = ()) -> RequestError:
    """Return the error of a failed call. `what` describes the call ("create the endpoint flux").

    The strings in `hidden` are removed from the message.
    """
    body = without(error.body, hidden)
    detail = error_message(body)
    note = f": {detail}" if detail else ""
    code = ErrorCode.NETWORK
    match error.status:
        case None:
            return error.explained(
                f"RunPod did not respond to the request to {what} ({error}). Check the network, and "
                f"RUNPOD_REST_BASE_URL if you set it. {RUN_AGAIN}"
            )
        case 401 | 403 as status:
            is_wrong = status == 401  # noqa: PLR2004 - an HTTP status
            problem = "RunPod rejected the API key" if is_wrong else "The API key lacks the permission"
            return error.explained(
                f"{problem}: {what}{note}. Check RUNPOD_API_KEY, and whether that key may read and write Serverless "
                "(RunPod's console: Settings > API Keys)",
                ErrorCode.AUTH_FAILED,
                body=body,
            )
        case 404:
            code = ErrorCode.ENDPOINT_NOT_FOUND
            remedy = f"It was deleted, or RUNPOD_REST_BASE_URL is wrong. {RUN_AGAIN}"
        case 429:
            code = ErrorCode.RATE_LIMITED
            waits = f" after {error.retry_after_s:g} s" if error.retry_after_s else " later"
            remedy = f"RunPod limits the number of calls. {RUN_AGAIN}{waits}"
        case 400 | 422:
            remedy = (
                "Correct the named fields in deploy.toml. If a field is unknown to RunPod, RunPod's API has changed"
            )
        case status if status >= 500:  # noqa: PLR2004 - an HTTP status
            remedy = f"RunPod's API has a failure. {RUN_AGAIN}"
        case _:
            remedy = "This status is not expected; RunPod's console may show more"
    return error.explained(f"RunPod responded with {error.status} to {what}{note}. {remedy}", code, body=body)


def without(text: str, hidden: Iterable[str]) -> str:
    """Return `text` with each of the `hidden` strings replaced, also in its JSON-escaped form."""
    for secret in sorted(filter(None, hidden), key=len, reverse=True):
        for written in (secret, json.dumps(secret)[1:-1]):
            text = text.replace(written, "(not shown)")
    return text
