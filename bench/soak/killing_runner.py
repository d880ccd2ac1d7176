"""Runs the soak's jobs on workers whose own ComfyUI is killed while jobs run."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Mapping, Sequence

from bench.soak.cases import SoakCase
from bench.soak.checks import (
    MAX_JOB_S,
    MAX_WAIT_AFTER_JOBS_S,
    Report,
    failed_checks,
    outcome_of,
    processes_left,
    stop_and_find_leftovers,
)
from bench.worker_setup import WorkerSetup, running_worker
from comfy_core.error_codes import ErrorCode
from simulators.runpod.queue_api import QueueJobState
from simulators.waiting import until

KILLED_STEP_S = 0.25
KILLED_WITHIN_S = 1.5
KILLED_JOB_TIMEOUT_S = 20
KILL_TWICE_EVERY = 3
POST_DELAY_S = 1.0
"""Seconds from the end of a run in ComfyUI within which the worker posts the result."""


def run_killed_workers(name: str, cases: Sequence[SoakCase], kills: int) -> Report:
    """Run jobs on workers, and kill their ComfyUI `kills` times, every third time twice; return the report."""
    rng = random.Random(name)  # noqa: S311 - faults, not secrets
    report = Report()
    good = itertools.cycle([case for case in rng.sample(cases, len(cases)) if case.result is not None])
    killed = 0
    while killed < kills:
        with running_worker(
            own_comfyui=True, step_s=KILLED_STEP_S, environment={"WORKER_JOB_TIMEOUT_S": str(KILLED_JOB_TIMEOUT_S)}
        ) as setup:
            while killed < kills and setup.worker.exit_code is None:
                killed += 1
                submitted = {
                    setup.platform.submit({**case.inputs, "timeout_s": KILLED_JOB_TIMEOUT_S}): case
                    for case in itertools.islice(good, 4)
                    if isinstance(case.inputs, dict)
                }
                if killed % KILL_TWICE_EVERY:
                    _kill_once(setup, rng, submitted, report)
                else:
                    _kill_twice(setup, rng, submitted, report)
            if setup.worker.exit_code is None:
                report.problems += stop_and_find_leftovers(setup)
    return report


def _kill_once(setup: WorkerSetup, rng: random.Random, submitted: Mapping[str, SoakCase], report: Report) -> None:
    """Kill ComfyUI while jobs run. Check that running jobs fail, how other jobs end, and that a new job succeeds."""
    platform = setup.platform
    _kill_after_a_moment(setup, rng, submitted)
    report.faults["ComfyUI killed"] += 1
    killed_at = time.monotonic()
    running = [job for job in platform.jobs.values() if job.state is QueueJobState.IN_PROGRESS and job.progress]
    platform.wait_until(lambda: all(platform.jobs[job_id].state.is_final for job_id in submitted), MAX_JOB_S)
    for job in [platform.jobs[job.id] for job in running]:
        if outcome_of(job) == "result" and (job.ended_at or 0) > killed_at + POST_DELAY_S:
            report.problems.append(f"ran while ComfyUI was killed, and succeeded: {job}")
    _check_jobs_after_kill(setup, submitted, report)
    if outcome_of(setup.run(seed=1)) != "result":
        report.problems.append("after ComfyUI was killed and started again the next job failed")


def _kill_twice(setup: WorkerSetup, rng: random.Random, submitted: Mapping[str, SoakCase], report: Report) -> None:
    """Kill ComfyUI, and again after its restart. Check that the worker ends its jobs, reports its state and exits."""
    killed_pids = _kill_after_a_moment(setup, rng, submitted)
    report.faults["ComfyUI killed twice"] += 1
    if not until(lambda: {process.pid for process in setup.comfyui_processes()} - killed_pids, MAX_WAIT_AFTER_JOBS_S):
        report.problems.append("ComfyUI was not started again")
    setup.kill_comfyui()
    if (status := setup.worker.wait(2 * MAX_WAIT_AFTER_JOBS_S)) != 1:
        report.problems.append(f"the worker ended with {status} when its ComfyUI was lost")
    if not any(ping.is_unhealthy for ping in setup.platform.pings):
        report.problems.append("the worker did not report to the platform that it is unhealthy")
    report.problems += processes_left(setup)
    waiting = {job_id for job_id in submitted if setup.platform.jobs[job_id].state is QueueJobState.IN_QUEUE}
    report.outcomes["left to the next worker"] += len(waiting)
    _check_jobs_after_kill(setup, {job_id: case for job_id, case in submitted.items() if job_id not in waiting}, report)


def _kill_after_a_moment(setup: WorkerSetup, rng: random.Random, submitted: Mapping[str, SoakCase]) -> set[int]:
    """Kill ComfyUI at a random moment after the first job was handed out; return the ids of the killed processes."""
    first = next(iter(submitted))
    setup.platform.wait_until(lambda: setup.platform.jobs[first].started_at is not None, MAX_JOB_S)
    threading.Event().wait(rng.uniform(0, KILLED_WITHIN_S))
    killed_pids = {process.pid for process in setup.comfyui_processes()}
    setup.kill_comfyui()
    return killed_pids


def _check_jobs_after_kill(setup: WorkerSetup, submitted: Mapping[str, SoakCase], report: Report) -> None:
    for job_id, case in submitted.items():
        job = setup.platform.jobs[job_id]
        report.outcomes[outcome_of(job)] += 1
        report.problems += [
            f"{problem}: {job}" for problem in failed_checks(job, case, frozenset({ErrorCode.COMFYUI_UNAVAILABLE}))
        ]
        if job.started_at is not None and job.ended_at is not None:
            report.durations_s.append(job.ended_at - job.started_at)
