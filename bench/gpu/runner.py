"""Measures flag sets one after another within a time budget. One that fails does not affect the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from bench.gpu.flag_sets import FlagSet
from bench.gpu.results import Figures, SetResult, Status
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError
from worker.comfyui_process import ModelsMissing

STOP_S = 10.0
"""Reserve for the end of a ComfyUI whose time is over."""

Measure: TypeAlias = Callable[[FlagSet, float], Iterator[Figures]]
"""Yields the figures of a flag set after each part of its measurement, within the given seconds."""


@dataclass
class Budget:
    """The time of one call.

    Attributes:
        total_s: maximum seconds of the call.
        set_limit_s: maximum seconds of one flag set.
        now: the clock.
        begun_at: the clock's time at the start of the call.
    """

    total_s: float
    set_limit_s: float
    now: Callable[[], float]
    begun_at: float

    @property
    def used_s(self) -> float:
        """Seconds since the start of the call."""
        return self.now() - self.begun_at

    @property
    def next_limit_s(self) -> float:
        """Maximum seconds of the next flag set."""
        return min(self.set_limit_s, self.total_s - self.used_s - STOP_S)


def measured_sets(flag_sets: Iterable[FlagSet], measure: Measure, budget: Budget) -> Iterator[SetResult]:
    """Yield the result of each flag set.

    A flag set is not measured if less time is left than the fastest one so far took.
    """
    fastest_s = 0.0
    for flag_set in flag_sets:
        limit_s = budget.next_limit_s
        if limit_s <= fastest_s:
            problem = f"{max(limit_s, 0):.0f} s of {budget.total_s:.0f} s were left"
            yield SetResult(flag_set, Status.NOT_MEASURED, problem=problem)
            continue
        begun_at = budget.now()
        result = _measured(flag_set, measure, limit_s)
        result = replace(result, duration_s=budget.now() - begun_at)
        if result.status is Status.MEASURED:
            fastest_s = min(fastest_s or result.duration_s, result.duration_s)
        yield result


def _measured(flag_set: FlagSet, measure: Measure, limit_s: float) -> SetResult:
    figures = Figures()
    try:
        for figures in measure(flag_set, limit_s):  # noqa: B007 - the last ones are the result, also after an error
            pass
    except (ComfyClientError, ModelsMissing, OSError) as error:
        is_late = isinstance(error, ComfyClientError) and error.code is ErrorCode.DEADLINE_EXCEEDED
        return SetResult(flag_set, Status.TIMED_OUT if is_late else Status.FAILED, figures, problem=str(error))
    return SetResult(flag_set, Status.MEASURED, figures)
