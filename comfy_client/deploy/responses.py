"""What RunPod's management API says when it refuses, as errors that name the field and the remedy. Pure.

Its errors are RFC 9457 (`application/problem+json`): `title`, `status`, `detail`, and `errors`, a list of texts, one a
failed field. An unknown field is a 422, a key without the right a 403, and a 429 carries Retry-After in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from comfy_core.contract import ErrorCode
from comfy_core.errors import RequestError, Unauthorized

AGAIN = "Run the command again: it looks for what is there by name, and goes on"
_SHOWN = 300
_MOST_ERRORS = 10


def api_error(error: RequestError, what: str, hidden: Iterable[str] = ()) -> RequestError:
    """Return the error of a call that was to do `what` ("create the endpoint flux"), without the texts in `hidden`."""
    body = without(error.body, hidden)
    said = words_of(body)
    told = f": {said}" if said else ""
    code = ErrorCode.NETWORK
    match error.status:
        case None:
            return RequestError(
                f"RunPod was not reached to {what} ({error}). Check the network, and RUNPOD_REST_BASE_URL if you set "
                f"it. {AGAIN}",
                is_transient=error.is_transient,
                is_unsent=error.is_unsent,
            )
        case 401 | 403:
            may = (
                "RunPod refuses the API key"
                if error.status == 401  # noqa: PLR2004 - HTTP's own
                else "The API key may not do this"
            )
            return Unauthorized(
                f"{may}: {what}{told}. Look at RUNPOD_API_KEY, and whether that key may read and write Serverless "
                "(RunPod's console: Settings > API Keys)",
                code=ErrorCode.AUTH_FAILED,
                status=error.status,
                body=body,
            )
        case 404:
            code, remedy = (
                ErrorCode.ENDPOINT_NOT_FOUND,
                f"Somebody deleted it, or RUNPOD_REST_BASE_URL is wrong. {AGAIN}",
            )
        case 429:
            waits = f" after {error.retry_after_s:g} s" if error.retry_after_s else " later"
            code, remedy = ErrorCode.RATE_LIMITED, f"RunPod takes no more calls for now. {AGAIN}{waits}"
        case 400 | 422:
            remedy = (
                "Correct in deploy.toml what it names; a field that it does not know is one that RunPod has changed"
            )
        case status if status >= 500:  # noqa: PLR2004 - HTTP's own
            remedy = f"RunPod's API is unwell. {AGAIN}"
        case _:
            remedy = "Nothing of this is known; RunPod's console may say more"
    return RequestError(
        f"RunPod answered {error.status} to {what}{told}. {remedy}",
        status=error.status,
        body=body,
        code=code,
        is_transient=error.is_transient,
        retry_after_s=error.retry_after_s,
    )


def words_of(body: str) -> str:
    """Return what a body says: its detail and its failed fields, or the start of a text that is no page of HTML."""
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        return "" if "<" in body[:_SHOWN] else body.strip()[:_SHOWN]
    if not isinstance(problem, dict):
        return ""
    detail = problem.get("detail") or problem.get("title") or problem.get("message") or ""
    errors = problem.get("errors")
    fields = [_field(each)[:_SHOWN] for each in errors[:_MOST_ERRORS]] if isinstance(errors, list) else []
    return "; ".join([str(detail)[:_SHOWN].rstrip("."), *fields] if detail else fields)


def _field(error: object) -> str:
    match error:
        case str(text) | {"message": str(text)} | {"detail": str(text)}:
            return text
    return json.dumps(error)


def without(text: str, hidden: Iterable[str]) -> str:
    """Return `text` with each of the hidden texts replaced, also as JSON writes it."""
    for secret in sorted(filter(None, hidden), key=len, reverse=True):
        for written in (secret, json.dumps(secret)[1:-1]):
            text = text.replace(written, "(not shown)")
    return text
