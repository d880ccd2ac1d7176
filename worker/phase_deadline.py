"""Ends a phase of a job early: on cancellation, worker shutdown, or a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError

Stop: TypeAlias = Callable[[], JobError | None]


@dataclass(frozen=True)
class PhaseDeadline:
    """The deadline and cancellation check of one phase.

    Attributes:
        stop: returns the error of a job that must end now.
        started_at: start of the job's time, on the monotonic clock.
        deadline: latest end of the phase, on the monotonic clock.
        unfinished: the error message after "After 300 s", such as "its images were not encoded".
    """

    stop: Stop
    started_at: float
    deadline: float
    unfinished: str

    def at_least(self, seconds: float) -> PhaseDeadline:
        """Return the same deadline, but no sooner than `seconds` from now."""
        return replace(self, deadline=max(self.deadline, time.monotonic() + seconds))

    def check(self) -> None:
        """Raise the JobError that ends the job, if any."""
        error = self.stop()
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


def ignoring_comfyui_death(stop: Stop) -> Stop:
    """Return `stop` for a phase that does not need ComfyUI: a ComfyUI death does not end the job."""

    def stop_otherwise() -> JobError | None:
        error = stop()
        return None if error is not None and error.code is ErrorCode.COMFYUI_UNAVAILABLE else error

    return stop_otherwise
