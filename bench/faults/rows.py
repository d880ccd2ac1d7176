"""A row of the fault table, and the decorator that adds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bench.worker_setup import WorkerSetup
from simulators.comfyui import Simulator
from simulators.runpod.queue_api import QueueJob

Cause = Callable[[WorkerSetup], QueueJob]
STEP_S = 0.05


@dataclass(frozen=True)
class FaultRow:
    """One fault, what the worker does about it, and what the caller gets.

    If `own_comfyui`, ComfyUI is the worker's child process, otherwise a simulator in the process of the tests.
    `environment` has additional variables of the worker.
    """

    fault: str
    reaction: str
    code: str | None
    within_s: float
    next_job_works: bool
    cause: Cause
    own_comfyui: bool = False
    step_s: float = STEP_S
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def needs_own_worker(self) -> bool:
        """Whether the fault needs a worker with special settings, or makes its worker unusable for other rows."""
        return self.own_comfyui or not self.next_job_works or self.step_s != STEP_S or bool(self.environment)


FAULT_ROWS: list[FaultRow] = []


def simulator_of(setup: WorkerSetup) -> Simulator:
    """Return the simulated ComfyUI. Only for rows without `own_comfyui`."""
    assert setup.simulator is not None
    return setup.simulator


def fault_row(
    fault: str,
    reaction: str,
    *,
    code: str | None,
    within_s: float,
    next_job_works: bool = True,
    own_comfyui: bool = False,
    step_s: float = STEP_S,
    **environment: str,
) -> Callable[[Cause], Cause]:
    """Return a decorator that adds a row to FAULT_ROWS. The decorated function is the row's `cause`."""

    def add(cause: Cause) -> Cause:
        FAULT_ROWS.append(
            FaultRow(fault, reaction, code, within_s, next_job_works, cause, own_comfyui, step_s, environment)
        )
        return cause

    return add
