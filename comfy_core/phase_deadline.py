"""Ends a phase of a job early: on cancellation, worker shutdown, or a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError

StopErrorHook: TypeAlias = Callable[[], JobError | None]


@dataclass(frozen=True)
class PhaseDeadline:
    """The deadline and cancellation check of one phase.

    Attributes:
        stop_error: returns the error if the job must end now.
        started_at: start of the job's time, on the monotonic clock.
        deadline: latest end of the phase, on the monotonic clock.
        unfinished: the rest of the error message "After 300.0 s …", such as "its images were not encoded".
    """

    stop_error: StopErrorHook
    started_at: float
    deadline: float
    unfinished: str

    def at_least(self, seconds: float) -> PhaseDeadline:
        """Return a copy whose deadline is at least `seconds` from now."""
        return replace(self, deadline=max(self.deadline, time.monotonic() + seconds))

    def check(self) -> None:
        """Raise the error of `stop_error`, or JobError (deadline_exceeded) after the deadline."""
        error = self.stop_error()
        if error is not None:
            raise error
        now = time.monotonic()
        if now > self.deadline:
            after_s = now - self.started_at
            raise JobError.because(
                ErrorCode.DEADLINE_EXCEEDED,
                f"After {after_s:.1f} s {self.unfinished}",
                after_s=round(after_s, 1),
            )


def ignoring_comfyui_death(stop_error: StopErrorHook) -> StopErrorHook:
    """Return a hook like `stop_error` for a phase without ComfyUI: it ignores the error that ComfyUI is unavailable."""

    def other_stop_error() -> JobError | None:
        error = stop_error()
        return None if error is not None and error.code is ErrorCode.COMFYUI_UNAVAILABLE else error

    return other_stop_error
