"""Exceptions. Classes differ in how the caller reacts; `.code` gives the exact cause.

ComfyClientError            base class; `.report` describes the failure, `.code` is its cause
├ ConfigError               a setting is missing or invalid; nothing was sent
├ RequestError              a server could not be reached, or its response was an error (`.status`)
│ └ Unauthorized            the API key was rejected
├ JobError                  the job failed
│ ├ JobCancelled            the job was cancelled
│ └ ComfyUIBroken           the job failed, and ComfyUI must be restarted before it can run another
└ WaitTimeout               the wait timed out; the job is still running (`.job_id`)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

from comfy_core.contract import ErrorReport, Fault
from comfy_core.error_codes import ErrorCode


class ComfyClientError(Exception):
    """Base class of every expected failure."""

    exit_status: ClassVar[int] = 1
    """Exit status of a CLI command that fails with this error."""

    def __init__(self, text: str, report: ErrorReport | None = None) -> None:
        super().__init__(text)
        self.report = report or ErrorReport(ErrorCode.UNRECOGNIZED, text)

    @property
    def code(self) -> ErrorCode:
        """The cause of the failure."""
        return self.report.code


class ConfigError(ComfyClientError):
    """A setting is missing or invalid. The message names the variable and the remedy."""

    exit_status = 3

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorReport(ErrorCode.MISCONFIGURED, message))


class RequestError(ComfyClientError):
    """A server could not be reached, or its response was unexpected.

    Attributes:
        status: the HTTP status, or None if there was no response.
        body: the response body, or only its start.
        is_transient: whether a retry of the same request may soon succeed.
        is_unsent: whether the request certainly did not reach the server, so that it had no effect.
        retry_after_s: the delay in seconds from the server's Retry-After header, if any.
    """

    exit_status = 4

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        body: str = "",
        code: ErrorCode = ErrorCode.NETWORK,
        is_transient: bool = False,
        is_unsent: bool = False,
        retry_after_s: float | None = None,
        **details: Any,  # noqa: ANN401 - any JSON value
    ) -> None:
        super().__init__(message, ErrorReport(code, message, {"status": status, **details}))
        self.status = status
        self.body = body
        self.is_transient = is_transient
        self.is_unsent = is_unsent
        self.retry_after_s = retry_after_s

    def explained(
        self, message: str, code: ErrorCode | None = None, *, body: str | None = None, is_unsent: bool = False
    ) -> RequestError:
        """Return a copy of this error with another message, code or body: an Unauthorized for AUTH_FAILED."""
        code = code or self.code
        kind = Unauthorized if code is ErrorCode.AUTH_FAILED else RequestError
        return kind(
            message,
            status=self.status,
            body=self.body if body is None else body,
            code=code,
            is_transient=self.is_transient,
            is_unsent=self.is_unsent or is_unsent,
            retry_after_s=self.retry_after_s,
        )

    @classmethod
    def because(cls, code: ErrorCode, problem: str = "", **facts: Any) -> Self:  # noqa: ANN401 - arguments of __init__
        """Return an error whose message is `problem`, by default the code's cause, and the code's remedy."""
        return cls(code.message(problem), code=code, **facts)


class Unauthorized(RequestError):  # noqa: N818 - HTTP's own name for it
    """The API key was rejected."""

    exit_status = 3


class JobError(ComfyClientError):
    """A job failed. `report` is the report sent to the caller; `job_id` is the platform's id, if it assigned one."""

    def __init__(self, report: ErrorReport, job_id: str | None = None) -> None:
        super().__init__(f"{report.code.value}: {report.message}", report)
        self.job_id = job_id

    @classmethod
    def because(cls, code: ErrorCode, problem: str = "", **details: Any) -> JobError:  # noqa: ANN401 - any JSON value
        """Return a JobError with the report that `ErrorReport.because` returns."""
        return cls.of(ErrorReport.because(code, problem, **details))

    @classmethod
    def of(cls, report: ErrorReport, job_id: str | None = None) -> JobError:
        """Return the error for a job's report: JobCancelled if its code is `cancelled`."""
        kind = JobCancelled if report.code is ErrorCode.CANCELLED else cls
        return kind(report, job_id)


class JobCancelled(JobError):  # noqa: N818 - an outcome that callers name, like asyncio.CancelledError
    """The job was cancelled."""


class ComfyUIBroken(JobError):  # noqa: N818 - an outcome, as above
    """A job failed and left ComfyUI unusable. ComfyUI must be restarted."""


class WaitTimeout(ComfyClientError):  # noqa: N818 - an outcome, as above
    """The caller's wait timed out before the job ended. The job is still running; wait again with `job_id`."""

    exit_status = 5

    def __init__(self, problem: str, job_id: str, **details: Any) -> None:  # noqa: ANN401 - any JSON value
        report = ErrorReport.because(ErrorCode.QUEUE_TIMEOUT, problem, job_id=job_id, **details)
        super().__init__(report.message, report)
        self.job_id = job_id


def install_command(extra: str) -> str:
    """Return the command that installs an extra. The package is not on PyPI, so it is installed from a clone."""
    return f"pip install '.[{extra}]'"


def missing_extra(feature: str, extra: str) -> ConfigError:
    """Return the error for a feature whose extra (a set of optional packages) is not installed."""
    return ConfigError(
        f"{feature} needs the extra `{extra}`. In a clone of this repository, run: {install_command(extra)}"
    )


@contextmanager
def requiring_extra(feature: str, extra: str) -> Iterator[None]:
    """Raise the error of `missing_extra` for an ImportError in the block, which imports what the extra installs."""
    try:
        yield
    except ImportError as error:
        raise missing_extra(feature, extra) from error


def invalid_input(faults: list[Fault]) -> JobError:
    """Return an error that lists all `faults` of a request."""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    text = "; ".join(f"{fault.path or 'input'}: {fault.message}" for fault in faults)
    details = {"faults": [{"path": fault.path, "message": fault.message} for fault in faults]}
    return JobError(ErrorReport(ErrorCode.INVALID_INPUT, f"The request has {count}. {text}", details))
