"""The exceptions of this package: one class a reaction, one code a cause.

ComfyClientError            catch this to catch all
├ ConfigError               a setting is wrong; nothing was sent
├ RequestError              a server was not reached, or answered badly (`.status`)
└ JobError                  the job failed: `.report.code` says why
  ├ JobCancelled            someone cancelled it
  └ ComfyUIBroken           the ComfyUI it ran on can run nothing more
"""

from __future__ import annotations

from typing import Any

from comfy_client.contract import ErrorCode, ErrorReport, Fault


class ComfyClientError(Exception):
    """Every failure that this package foresees."""


class ConfigError(ComfyClientError):
    """A setting is missing or wrong. The message names the variable and the remedy."""


class RequestError(ComfyClientError):
    """A server was not reached, or answered with something else than it should.

    Attributes:
        status: the HTTP status, or None where no answer came.
        body: the start of the answer's body.
    """

    def __init__(self, message: str, *, status: int | None = None, body: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class JobError(ComfyClientError):
    """A job failed. `report` is what the caller of the worker gets."""

    def __init__(self, report: ErrorReport) -> None:
        super().__init__(f"{report.code.value}: {report.message}")
        self.report = report

    @property
    def code(self) -> ErrorCode:
        """The cause."""
        return self.report.code

    @classmethod
    def because(cls, code: ErrorCode, message: str, **details: Any) -> JobError:  # noqa: ANN401 - any JSON value
        """Return the error with that code, message and details."""
        kind = JobCancelled if code is ErrorCode.CANCELLED else cls
        return kind(ErrorReport(code, message, details))


class JobCancelled(JobError):  # noqa: N818 - an outcome that callers name, like asyncio.CancelledError
    """A job was cancelled by its caller."""


class ComfyUIBroken(JobError):  # noqa: N818 - an outcome, as above
    """A job failed in a way that leaves its ComfyUI unusable: what runs it is to be started anew."""


def invalid_input(faults: list[Fault]) -> JobError:
    """Return the error that lists all `faults` of a request."""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    text = "; ".join(f"{fault.path or 'input'}: {fault.message}" for fault in faults)
    return JobError.because(
        ErrorCode.INVALID_INPUT,
        f"The request has {count}. {text}",
        faults=[{"path": fault.path, "message": fault.message} for fault in faults],
    )
