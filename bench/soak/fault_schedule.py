"""The random faults that the soak injects around a worker, and the error codes that they may cause."""

from __future__ import annotations

import collections
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.stage import Stage
from comfy_core.error_codes import ErrorCode
from simulators.comfyui import Simulator
from simulators.comfyui import faults as simulator_faults

LOST_JOB_S = 5.0
"""Seconds without a message about a job after which the platform hands it out again."""
MEAN_PAUSE_S = 1.0
"""Mean seconds between two faults of one worker."""
LASTING_S = 5.5
"""How long a hang, stall or delay lasts: the job's timeout, the stop of its prompt, and a margin."""
MAX_ARMED = 4


@dataclass(frozen=True)
class ScheduledFault:
    """A fault, and the error code that it may cause in a job: at most two jobs, because two run concurrently."""

    name: str
    act: Callable[[Stage, random.Random], object]
    code: ErrorCode | None = None
    may_lose: bool = False
    """Whether a job or its result may be lost in transit, so that the platform hands the job out again later."""


def _simulator(stage: Stage) -> Simulator:
    assert stage.simulator is not None  # every worker of the schedule has one
    return stage.simulator


def _faults_of(stage: Stage) -> simulator_faults.ComfyUIFaults:
    return _simulator(stage).faults


_UNAVAILABLE = ErrorCode.COMFYUI_UNAVAILABLE
_PATHS = ("POST /prompt", "/history", "/queue", "POST /upload/image", "/view", "POST /interrupt", "/ws")
_NODES = ("VAEDecode", "CLIPTextEncode", "UNETLoader", "KSampler", "SaveImageWebsocket")


def _step(dice: random.Random) -> int:
    return dice.randint(1, 3)


RESPONSE_LOST = "response to result lost"
FAULTS = (
    ScheduledFault("socket dropped", lambda stage, dice: _faults_of(stage).drop_socket(_step(dice))),
    ScheduledFault("socket dropped idle", lambda stage, _: _faults_of(stage).drop_socket(None)),
    ScheduledFault("socket reset", lambda stage, dice: _faults_of(stage).reset_socket(_step(dice))),
    ScheduledFault("socket stalled", lambda stage, dice: _faults_of(stage).stall_socket(_step(dice))),
    ScheduledFault(
        "out of memory once", lambda stage, _: _faults_of(stage).run_out_of_memory(), ErrorCode.OUT_OF_MEMORY
    ),
    ScheduledFault(
        "out of memory twice", lambda stage, _: _faults_of(stage).run_out_of_memory(2), ErrorCode.OUT_OF_MEMORY
    ),
    ScheduledFault(
        "node fails",
        lambda stage, dice: _faults_of(stage).fail_node(dice.choice(_NODES), "RuntimeError", "boom"),
        ErrorCode.EXECUTION_FAILED,
    ),
    ScheduledFault(
        "answer late", lambda stage, dice: _faults_of(stage).answer_slowly(dice.choice(_PATHS), dice.uniform(0, 0.5))
    ),
    ScheduledFault("answer 500", lambda stage, dice: _faults_of(stage).answer_500(dice.choice(_PATHS)), _UNAVAILABLE),
    ScheduledFault("history late", lambda stage, dice: _faults_of(stage).write_history_late(dice.uniform(0, 0.6))),
    ScheduledFault("everything forgotten", lambda stage, _: _faults_of(stage).forget_everything(), _UNAVAILABLE),
    ScheduledFault(
        "connections refused",
        lambda stage, dice: _faults_of(stage).refuse_connections(dice.uniform(0.1, 0.5)),
        _UNAVAILABLE,
    ),
    ScheduledFault(
        "hangs", lambda stage, dice: _faults_of(stage).hang_sampling(_step(dice)), ErrorCode.DEADLINE_EXCEEDED
    ),
    ScheduledFault(
        "hangs deaf",
        lambda stage, dice: _faults_of(stage).hang_sampling(_step(dice), deaf=True),
        ErrorCode.DEADLINE_EXCEEDED,
    ),
    ScheduledFault(
        "job-done 500, 500, 200", lambda stage, _: stage.platform.faults.respond("final", 500, 2), may_lose=True
    ),
    ScheduledFault("progress 500", lambda stage, _: stage.platform.faults.respond("progress", 500)),
    ScheduledFault("job-take 500", lambda stage, _: stage.platform.faults.respond("job-take-batch", 500, 2)),
    ScheduledFault("job-take cut", lambda stage, _: stage.platform.faults.drop_connection("job-take-batch")),
    ScheduledFault("job-stop 500", lambda stage, _: stage.platform.faults.respond("job-stop", 500)),
    ScheduledFault(
        "platform away", lambda stage, dice: stage.platform.faults.outage(dice.uniform(0.1, 0.5)), may_lose=True
    ),
    ScheduledFault(
        "jobs lost on their way",
        lambda stage, _: stage.platform.faults.drop_connection("job-take-batch", after_handling=True),
        may_lose=True,
    ),
    ScheduledFault(
        "result lost on its way", lambda stage, _: stage.platform.faults.drop_connection("final"), may_lose=True
    ),
    ScheduledFault(
        RESPONSE_LOST,
        lambda stage, _: stage.platform.faults.drop_connection("final", after_handling=True),
    ),
)

FAULT_CODES = frozenset(fault.code for fault in FAULTS if fault.code is not None)


class FaultSchedule:
    """Injects faults at random times. `counts` has how often each was injected."""

    def __init__(self, stage: Stage, dice: random.Random) -> None:
        self._stage = stage
        self._simulator = _simulator(stage)
        self._faults = self._simulator.faults
        self._dice = dice
        self._next_at = self._eased_at = time.monotonic()
        self._losing_again_at = 0.0
        self.counts: collections.Counter[str] = collections.Counter()

    def inject_next(self) -> None:
        """Inject the next fault if it is due, and end faults that have lasted long enough."""
        now = time.monotonic()
        self.end_lasting(now)
        if now < self._next_at:
            return
        self._next_at = now + self._dice.expovariate(1 / MEAN_PAUSE_S)
        fault = self._dice.choice(FAULTS)
        if len(self._faults.armed) >= MAX_ARMED or (fault.may_lose and not self._may_lose(now)):
            return
        fault.act(self._stage, self._dice)
        self.counts[fault.name] += 1

    def _may_lose(self, now: float) -> bool:
        """Whether a job may be lost: not while an earlier one is; the platform gives up a job that is lost twice."""
        is_recovering = any(job.retries and not job.state.is_final for job in self._stage.platform.jobs.values())
        if now < self._losing_again_at or is_recovering:
            return False
        self._losing_again_at = now + 2 * LOST_JOB_S
        return True

    def end_lasting(self, now: float) -> None:
        """End a hang, stall or delay that has lasted long enough."""
        if self._simulator.hanging_step is None and not self._faults.history_delay_s:
            self._eased_at = now
        elif now > self._eased_at + LASTING_S:
            self._faults.go_on()

    def clear(self) -> None:
        """End all faults and inject no more."""
        self._faults.clear()
        self._faults.go_on()
        self._stage.platform.faults.clear()
