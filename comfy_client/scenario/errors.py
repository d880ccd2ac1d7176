"""What the shim answers where it cannot do what was asked: an HTTP status, and a reason in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_client.contract import ErrorCode, ErrorReport, Fault, JsonObject
from comfy_client.errors import ComfyClientError, JobError, RequestError

BAD_REQUEST = 400
UNAUTHORIZED = 401
NOT_FOUND = 404
METHOD_NOT_ALLOWED = 405
TOO_LARGE = 413
TOO_MANY = 429
INTERNAL = 500
NOT_HERE = 501
UNREACHABLE = 502


class ShimError(ComfyClientError):
    """A call that is answered with an error.

    Attributes:
        status: of HTTP.
        reason: the sentence that Scenario's callers show.
        headers: that go with it.
        facts: more of its body, such as `remainingSeconds` of a 429 (reference/scenario.md 1.3).
    """

    def __init__(
        self,
        status: int,
        reason: str,
        *,
        code: ErrorCode = ErrorCode.INVALID_INPUT,
        headers: dict[str, str] | None = None,
        **facts: object,
    ) -> None:
        super().__init__(reason, ErrorReport(code, reason))
        self.status = status
        self.reason = reason
        self.headers = headers or {}
        self.facts = facts

    def body(self, trace_id: str) -> JsonObject:
        """Return the answer's body: some callers read `reason`, others `message` (reference/scenario.md 1.4)."""
        return {"reason": self.reason, "message": self.reason, "trace_id": trace_id, **self.facts}


def bad_request(faults: Sequence[Fault]) -> ShimError:
    """Return the error that names all `faults` of a call."""
    text = "; ".join(f"{fault.path or 'the body'} {fault.message}" for fault in faults)
    return ShimError(BAD_REQUEST, text)


def not_found(what: str, its_id: str) -> ShimError:
    """Return the error for something that is not there, or not the caller's."""
    return ShimError(NOT_FOUND, f"There is no {what} {its_id[:80]!r}", code=ErrorCode.JOB_EXPIRED)


def shim_error(error: ComfyClientError) -> ShimError:
    """Return what an error of this package is to Scenario's callers."""
    if isinstance(error, ShimError):
        return error
    status = {ErrorCode.PAYLOAD_TOO_LARGE: TOO_LARGE, ErrorCode.RATE_LIMITED: TOO_MANY}.get(error.code)
    if status is None:
        status = BAD_REQUEST if isinstance(error, JobError) else UNREACHABLE
    if isinstance(error, RequestError) and status == UNREACHABLE:
        return ShimError(status, f"The endpoint behind the shim: {error.report.message}", code=error.code)
    return ShimError(status, error.report.message, code=error.code)
