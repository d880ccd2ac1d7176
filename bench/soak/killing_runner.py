"""The lane of the soak whose workers' own ComfyUI is killed while jobs are in hand."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Mapping, Sequence

from bench.soak.cases import Case
from bench.soak.verdicts import BOUND_S, GRACE_S, Report, leftovers, outcome_of, problems_of, processes_left
from bench.stage import Stage, staged
from comfy_core.contract import ErrorCode
from simulators.runpod.queue_api import JobState
from simulators.waiting import until

KILLED_STEP_S = 0.25
KILLED_WITHIN_S = 1.5
PATIENT_S = 20
TWICE_EVERY = 3
POSTED_S = 1.0
"""How long after its end in ComfyUI a job may be posted."""


def killing_lane(name: str, cases: Sequence[Case], kills: int) -> Report:
    """Return what became of the jobs of workers whose own ComfyUI was killed so often, every third time twice."""
    dice = random.Random(name)  # noqa: S311 - faults, not secrets
    report = Report()
    good = itertools.cycle([case for case in dice.sample(cases, len(cases)) if case.result is not None])
    killed = 0
    while killed < kills:
        with staged(
            own_comfyui=True, step_s=KILLED_STEP_S, environment={"WORKER_JOB_TIMEOUT_S": str(PATIENT_S)}
        ) as stage:
            while killed < kills and stage.worker.exit_code is None:
                killed += 1
                submitted = {
                    stage.platform.submit({**case.inputs, "timeout_s": PATIENT_S}): case
                    for case in itertools.islice(good, 4)
                    if isinstance(case.inputs, dict)
                }
                if killed % TWICE_EVERY:
                    _kill_once(stage, dice, submitted, report)
                else:
                    _kill_twice(stage, dice, submitted, report)
            if stage.worker.exit_code is None:
                report.wrong += leftovers(stage)
    return report


def _kill_once(stage: Stage, dice: random.Random, submitted: Mapping[str, Case], report: Report) -> None:
    """Kill ComfyUI while jobs are in hand: those that it runs fail, the others and the next one work."""
    platform = stage.platform
    _kill(stage, dice, submitted)
    report.weather["ComfyUI killed"] += 1
    killed_at = time.monotonic()
    running = [job for job in platform.jobs.values() if job.state is JobState.IN_PROGRESS and job.progress]
    platform.wait_until(lambda: all(platform.jobs[job_id].state.is_final for job_id in submitted), BOUND_S)
    for job in [platform.jobs[job.id] for job in running]:
        if outcome_of(job) == "result" and (job.ended_at or 0) > killed_at + POSTED_S:
            report.wrong.append(f"ran while ComfyUI was killed, and ended well: {job}")
    _judge_killed(stage, submitted, report)
    if outcome_of(stage.run(seed=1)) != "result":
        report.wrong.append("after ComfyUI was killed and started again the next job failed")


def _kill_twice(stage: Stage, dice: random.Random, submitted: Mapping[str, Case], report: Report) -> None:
    """Kill ComfyUI, and again once it is started again: the worker answers what it has in hand and retires."""
    dead = _kill(stage, dice, submitted)
    report.weather["ComfyUI killed twice"] += 1
    if not until(lambda: {process.pid for process in stage.comfyui_processes()} - dead, GRACE_S):
        report.wrong.append("ComfyUI was not started again")
    stage.kill_comfyui()
    if (status := stage.worker.wait(2 * GRACE_S)) != 1:
        report.wrong.append(f"the worker ended with {status} when its ComfyUI was lost")
    if not any(ping.is_unhealthy for ping in stage.platform.pings):
        report.wrong.append("the platform was not told that the worker is unhealthy")
    report.wrong += processes_left(stage)
    waiting = {job_id for job_id in submitted if stage.platform.jobs[job_id].state is JobState.IN_QUEUE}
    report.outcomes["left to the next worker"] += len(waiting)
    _judge_killed(stage, {job_id: case for job_id, case in submitted.items() if job_id not in waiting}, report)


def _kill(stage: Stage, dice: random.Random, submitted: Mapping[str, Case]) -> set[int]:
    """Kill ComfyUI a moment after the first job was handed out; return what was killed."""
    first = next(iter(submitted))
    stage.platform.wait_until(lambda: stage.platform.jobs[first].started_at is not None, BOUND_S)
    threading.Event().wait(dice.uniform(0, KILLED_WITHIN_S))
    dead = {process.pid for process in stage.comfyui_processes()}
    stage.kill_comfyui()
    return dead


def _judge_killed(stage: Stage, submitted: Mapping[str, Case], report: Report) -> None:
    for job_id, case in submitted.items():
        job = stage.platform.jobs[job_id]
        report.outcomes[outcome_of(job)] += 1
        report.wrong += [
            f"{problem}: {job}" for problem in problems_of(job, case, frozenset({ErrorCode.COMFYUI_UNAVAILABLE}))
        ]
        if job.started_at is not None and job.ended_at is not None:
            report.durations_s.append(job.ended_at - job.started_at)
