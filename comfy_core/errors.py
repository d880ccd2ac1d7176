"""The exceptions of this package: one class a reaction, one code a cause.

ComfyClientError            catch this to catch all; `.report` says what happened, `.code` why
├ ConfigError               a setting is wrong; nothing was sent
├ RequestError              a server was not reached, or answered badly (`.status`)
│ └ Unauthorized            the key was refused
├ JobError                  the job failed
│ ├ JobCancelled            someone cancelled it
│ └ ComfyUIBroken           the ComfyUI it ran on can run nothing more
└ WaitTimeout               we stopped waiting; the job goes on (`.job_id`)
"""

from __future__ import annotations

from typing import Any, ClassVar

from comfy_core.contract import ErrorCode, ErrorReport, Fault


class ComfyClientError(Exception):
    """Every failure that this package foresees."""

    exit_status: ClassVar[int] = 1
    """That of a command which ends with it."""

    def __init__(self, text: str, report: ErrorReport | None = None) -> None:
        super().__init__(text)
        self.report = report or ErrorReport(ErrorCode.UNRECOGNIZED, text)

    @property
    def code(self) -> ErrorCode:
        """The cause."""
        return self.report.code


class ConfigError(ComfyClientError):
    """A setting is missing or wrong. The message names the variable and the remedy."""

    exit_status = 3

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorReport(ErrorCode.MISCONFIGURED, message))


class RequestError(ComfyClientError):
    """A server was not reached, or answered with something else than it should.

    Attributes:
        status: the HTTP status, or None where no answer came.
        body: the start of the answer's body.
        is_transient: whether the same call may soon be answered well.
        is_unsent: whether the call surely did not arrive, so that nothing came of it.
        retry_after_s: how long the server asks to be left alone, where it does.
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


class Unauthorized(RequestError):  # noqa: N818 - HTTP's own name for it
    """The key was refused."""

    exit_status = 3


class JobError(ComfyClientError):
    """A job failed. `report` is what the caller of the worker gets; `job_id` is the platform's, where there is one."""

    def __init__(self, report: ErrorReport, job_id: str | None = None) -> None:
        super().__init__(f"{report.code.value}: {report.message}", report)
        self.job_id = job_id

    @classmethod
    def because(cls, code: ErrorCode, message: str, **details: Any) -> JobError:  # noqa: ANN401 - any JSON value
        """Return the error with that code, message and details."""
        return cls.of(ErrorReport(code, message, details))

    @classmethod
    def of(cls, report: ErrorReport, job_id: str | None = None) -> JobError:
        """Return the error of a job's report: JobCancelled where it was cancelled."""
        kind = JobCancelled if report.code is ErrorCode.CANCELLED else cls
        return kind(report, job_id)


class JobCancelled(JobError):  # noqa: N818 - an outcome that callers name, like asyncio.CancelledError
    """A job was cancelled by its caller."""


class ComfyUIBroken(JobError):  # noqa: N818 - an outcome, as above
    """A job failed in a way that leaves its ComfyUI unusable: what runs it is to be started anew."""


class WaitTimeout(ComfyClientError):  # noqa: N818 - an outcome, as above
    """The caller's time was over before the job ended. The job goes on; its id leads back to it."""

    exit_status = 5

    def __init__(self, message: str, job_id: str, **details: Any) -> None:  # noqa: ANN401 - any JSON value
        super().__init__(message, ErrorReport(ErrorCode.QUEUE_TIMEOUT, message, {"job_id": job_id, **details}))
        self.job_id = job_id


def install_command(extra: str) -> str:
    """Return the command that adds an extra: this package is not on PyPI, so it is installed from a clone."""
    return f"pip install '.[{extra}]'"


def missing_extra(feature: str, extra: str) -> ConfigError:
    """Return the error for a feature whose extra, a set of optional packages, is not installed."""
    return ConfigError(
        f"{feature} needs the extra `{extra}`. In a clone of this project's repository run: {install_command(extra)}"
    )


def invalid_input(faults: list[Fault]) -> JobError:
    """Return the error that lists all `faults` of a request."""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    text = "; ".join(f"{fault.path or 'input'}: {fault.message}" for fault in faults)
    return JobError.because(
        ErrorCode.INVALID_INPUT,
        f"The request has {count}. {text}",
        faults=[{"path": fault.path, "message": fault.message} for fault in faults],
    )
