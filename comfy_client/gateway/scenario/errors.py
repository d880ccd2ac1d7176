"""The shim's error responses: ShimError, and functions that build one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from comfy_core.contract import ErrorReport, Fault, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError, JobError, RequestError

BAD_REQUEST = 400
UNAUTHORIZED = 401
FORBIDDEN = 403
NOT_FOUND = 404
METHOD_NOT_ALLOWED = 405
TIMED_OUT = 408
TOO_LARGE = 413
TOO_MANY = 429
INTERNAL = 500
NOT_IMPLEMENTED = 501
UNREACHABLE = 502
UNAVAILABLE = 503
NO_SPACE = 507
MAX_LISTED_FAULTS = 20
"""Maximum number of faults that one error lists. The rest are only counted."""


class ShimError(ComfyClientError):
    """An error response to a request.

    Attributes:
        status: the HTTP status.
        reason: the message, which Scenario's callers show.
        headers: additional response headers.
        is_unsupported: whether the request is valid for Scenario, and the shim cannot serve it.
        facts: additional fields of the body, such as `remainingSeconds` of a 429
            (docs/reference/scenario.md#rate-limits).
    """

    def __init__(
        self,
        status: int,
        reason: str,
        *,
        code: ErrorCode = ErrorCode.INVALID_INPUT,
        headers: dict[str, str] | None = None,
        is_unsupported: bool = False,
        **facts: object,
    ) -> None:
        super().__init__(reason, ErrorReport(code, reason))
        self.is_unsupported = is_unsupported
        self.status = status
        self.reason = reason
        self.headers = headers or {}
        self.facts = facts

    def body(self, trace_id: str) -> JsonObject:
        """Return the response body. Some callers read `reason`, others `message`.

        Source: docs/reference/scenario.md#error-bodies.
        """
        return {"reason": self.reason, "message": self.reason, "trace_id": trace_id, **self.facts}


def bad_request(faults: Sequence[Fault], *, is_unsupported: bool = False) -> ShimError:
    """Return the error (400) that lists the faults of a request, at most MAX_LISTED_FAULTS of them."""
    texts = [f"{fault.path[:200] or 'the body'} {fault.message[:400]}" for fault in faults[:MAX_LISTED_FAULTS]]
    if len(faults) > MAX_LISTED_FAULTS:
        texts.append(f"{len(faults) - MAX_LISTED_FAULTS} more faults")
    return ShimError(BAD_REQUEST, "; ".join(texts), is_unsupported=is_unsupported)


def key_of_another_request() -> ShimError:
    """Return the error (400) for an Idempotency-Key that an earlier, different request has."""
    return bad_request([Fault("Idempotency-Key", "was already used for a different request")])


def not_found(what: str, resource_id: str, advice: str = "") -> ShimError:
    """Return the error (404) for something that does not exist or belongs to another key."""
    text = f"There is no {what} {resource_id[:80]!r}{'. ' if advice else ''}{advice}"
    return ShimError(NOT_FOUND, text, code=ErrorCode.JOB_EXPIRED)


def not_stored(error: Exception, where: object) -> ShimError:
    """Return the error (507) for a failed write to disk: no space, or no permission."""
    why = getattr(error, "strerror", None) or str(error)
    return ShimError(
        NO_SPACE,
        f"The shim cannot write to {where} ({why}). The request had no effect. The shim's operator has to free disk "
        "space; running jobs are then saved automatically. Send the request again after that",
        code=ErrorCode.OUTPUT_NOT_STORED,
    )


@contextmanager
def storing(where: object) -> Iterator[None]:
    """Convert an OSError while writing to `where` into the ShimError of `not_stored`."""
    try:
        yield
    except OSError as error:
        raise not_stored(error, where) from error


def shim_error(error: ComfyClientError) -> ShimError:
    """Convert any ComfyClientError into a ShimError."""
    if isinstance(error, ShimError):
        return error
    status = {ErrorCode.PAYLOAD_TOO_LARGE: TOO_LARGE, ErrorCode.RATE_LIMITED: TOO_MANY}.get(error.code)
    if status is None:
        status = BAD_REQUEST if isinstance(error, JobError) else UNREACHABLE
    if isinstance(error, RequestError) and status == UNREACHABLE:
        return ShimError(status, f"The shim's endpoint failed: {error.report.message}", code=error.code)
    return ShimError(status, error.report.message, code=error.code)
