"""The random faults that the soak injects around a worker, and the error codes that they may cause."""

from __future__ import annotations

import collections
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.worker_setup import WorkerSetup
from comfy_core.error_codes import ErrorCode
from simulators.comfyui import Simulator
from simulators.comfyui import faults as simulator_faults

LOST_JOB_S = 5.0
"""Seconds without a message about a job after which the platform hands it out again."""
MEAN_PAUSE_S = 1.0
"""Mean seconds between two faults of one worker."""
LONGEST_FAULT_S = 5.5
"""Seconds after which a hang, stall or delay is ended: a job's timeout, the stop of its prompt, and a margin."""
MAX_ARMED_FAULTS = 4
"""Maximum number of injected faults that have not happened yet."""


@dataclass(frozen=True)
class ScheduledFault:
    """A fault, and the error code with which it may fail jobs: at most the two that run concurrently."""

    name: str
    inject: Callable[[WorkerSetup, random.Random], object]
    code: ErrorCode | None = None
    may_lose: bool = False
    """Whether a job or its result may be lost in transit, so that the platform hands the job out again later."""


def _simulator_of(setup: WorkerSetup) -> Simulator:
    assert setup.simulator is not None  # every worker of the schedule has one
    return setup.simulator


def _faults_of(setup: WorkerSetup) -> simulator_faults.ComfyUIFaults:
    return _simulator_of(setup).faults


_UNAVAILABLE = ErrorCode.COMFYUI_UNAVAILABLE
_PATHS = ("POST /prompt", "/history", "/queue", "POST /upload/image", "/view", "POST /jobs", "/ws")
_NODES = ("VAEDecode", "CLIPTextEncode", "UNETLoader", "KSampler", "SendPixelsWebsocket")


def _step(rng: random.Random) -> int:
    return rng.randint(1, 3)


RESPONSE_LOST = "response to result lost"
FAULTS = (
    ScheduledFault("socket dropped", lambda setup, rng: _faults_of(setup).drop_socket(_step(rng))),
    ScheduledFault("socket dropped idle", lambda setup, _: _faults_of(setup).drop_socket(None)),
    ScheduledFault("socket reset", lambda setup, rng: _faults_of(setup).reset_socket(_step(rng))),
    ScheduledFault("socket stalled", lambda setup, rng: _faults_of(setup).stall_socket(_step(rng))),
    ScheduledFault(
        "out of memory once", lambda setup, _: _faults_of(setup).run_out_of_memory(), ErrorCode.OUT_OF_MEMORY
    ),
    ScheduledFault(
        "out of memory twice", lambda setup, _: _faults_of(setup).run_out_of_memory(2), ErrorCode.OUT_OF_MEMORY
    ),
    ScheduledFault(
        "node fails",
        lambda setup, rng: _faults_of(setup).fail_node(rng.choice(_NODES), "RuntimeError", "boom"),
        ErrorCode.EXECUTION_FAILED,
    ),
    ScheduledFault(
        "response late", lambda setup, rng: _faults_of(setup).respond_slowly(rng.choice(_PATHS), rng.uniform(0, 0.5))
    ),
    ScheduledFault("response 500", lambda setup, rng: _faults_of(setup).respond_500(rng.choice(_PATHS)), _UNAVAILABLE),
    ScheduledFault("history late", lambda setup, rng: _faults_of(setup).write_history_late(rng.uniform(0, 0.6))),
    ScheduledFault("everything forgotten", lambda setup, _: _faults_of(setup).forget_everything(), _UNAVAILABLE),
    ScheduledFault(
        "connections refused",
        lambda setup, rng: _faults_of(setup).refuse_connections(rng.uniform(0.1, 0.5)),
        _UNAVAILABLE,
    ),
    ScheduledFault(
        "hangs", lambda setup, rng: _faults_of(setup).hang_sampling(_step(rng)), ErrorCode.DEADLINE_EXCEEDED
    ),
    ScheduledFault(
        "hangs and ignores interrupts",
        lambda setup, rng: _faults_of(setup).hang_sampling(_step(rng), ignores_interrupt=True),
        ErrorCode.DEADLINE_EXCEEDED,
    ),
    ScheduledFault(
        "job-done 500, 500, 200", lambda setup, _: setup.platform.faults.respond("final", 500, 2), may_lose=True
    ),
    ScheduledFault("progress 500", lambda setup, _: setup.platform.faults.respond("progress", 500)),
    ScheduledFault("job-take 500", lambda setup, _: setup.platform.faults.respond("job-take-batch", 500, 2)),
    ScheduledFault("job-take dropped", lambda setup, _: setup.platform.faults.drop_connection("job-take-batch")),
    ScheduledFault("job-stop 500", lambda setup, _: setup.platform.faults.respond("job-stop", 500)),
    ScheduledFault(
        "platform outage", lambda setup, rng: setup.platform.faults.outage(rng.uniform(0.1, 0.5)), may_lose=True
    ),
    ScheduledFault(
        "jobs lost in transit",
        lambda setup, _: setup.platform.faults.drop_connection("job-take-batch", after_handling=True),
        may_lose=True,
    ),
    ScheduledFault(
        "result lost in transit", lambda setup, _: setup.platform.faults.drop_connection("final"), may_lose=True
    ),
    ScheduledFault(
        RESPONSE_LOST,
        lambda setup, _: setup.platform.faults.drop_connection("final", after_handling=True),
    ),
)

FAULT_CODES = frozenset(fault.code for fault in FAULTS if fault.code is not None)


class FaultSchedule:
    """Injects faults at random times. `counts` has the number of injections by fault."""

    def __init__(self, setup: WorkerSetup, rng: random.Random) -> None:
        self._setup = setup
        self._simulator = _simulator_of(setup)
        self._faults = self._simulator.faults
        self._rng = rng
        self._next_at = self._calm_at = time.monotonic()
        self._may_lose_again_at = 0.0
        self.counts: collections.Counter[str] = collections.Counter()

    def inject_next(self) -> None:
        """Inject a random fault if one is due and allowed, and end faults that have lasted long enough."""
        now = time.monotonic()
        self.end_lasting(now)
        if now < self._next_at:
            return
        self._next_at = now + self._rng.expovariate(1 / MEAN_PAUSE_S)
        fault = self._rng.choice(FAULTS)
        if len(self._faults.armed) >= MAX_ARMED_FAULTS or (fault.may_lose and not self._may_lose(now)):
            return
        fault.inject(self._setup, self._rng)
        self.counts[fault.name] += 1

    def _may_lose(self, now: float) -> bool:
        """Return whether a job may be lost now. A job that is lost twice fails, so losses must not overlap."""
        is_recovering = any(job.retries and not job.state.is_final for job in self._setup.platform.jobs.values())
        if now < self._may_lose_again_at or is_recovering:
            return False
        self._may_lose_again_at = now + 2 * LOST_JOB_S
        return True

    def end_lasting(self, now: float) -> None:
        """End a hang, stall or delay that has lasted long enough."""
        if self._simulator.hanging_step is None and not self._faults.history_delay_s:
            self._calm_at = now
        elif now > self._calm_at + LONGEST_FAULT_S:
            self._faults.release()

    def clear(self) -> None:
        """End all faults, also those that have not happened yet."""
        self._faults.clear()
        self._faults.release()
        self._setup.platform.faults.clear()
