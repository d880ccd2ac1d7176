"""One worker of the soak, with its own platform and simulator, under the fault schedule."""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections.abc import Iterator, Sequence

import requests

from bench.soak.cases import SoakCase
from bench.soak.fault_schedule import FAULT_CODES, FAULTS, LOST_JOB_S, RESPONSE_LOST, FaultSchedule
from bench.soak.leak_monitor import LeakMonitor
from bench.soak.verdicts import BOUND_S, Report, leftovers, outcome_of, problems_of
from bench.stage import Stage, staged
from simulators.runpod.queue_api import QueueJob, QueueJobState, RunPodPlatform

STEP_S = 0.05
SOAK_JOB_TIMEOUT_S = 5.0
CALM_JOBS = 3
"""Jobs that each worker runs at the end without faults. They must succeed."""
CANCELLED = 0.1
"""Share of jobs that are cancelled."""
SOAK_TICK_S = 0.02
RSS_SLACK_MB = 6.0
COUNT_SLACK = 4
"""Allowed growth of files and threads: the session to the platform keeps one connection per concurrent request."""


class WorkerRunner:
    """One worker and its jobs."""

    def __init__(self, stage: Stage, dice: random.Random, cases: Sequence[SoakCase]) -> None:
        self._stage = stage
        self._platform = stage.platform
        self._dice = dice
        self._cases = itertools.cycle(dice.sample(cases, len(cases)))
        self._submitted: dict[str, SoakCase] = {}
        self._to_cancel: dict[str, float] = {}
        self._cancelled: set[str] = set()
        self._leaks = LeakMonitor(stage.worker.pid)
        self._pause = threading.Event()
        self.report = Report()

    def run(self, count: int, schedule: FaultSchedule) -> None:
        """Run `count` jobs, the last of them without faults, and check their outcomes."""
        while len(self._submitted) < count - CALM_JOBS or self._unfinished():
            schedule.inject_next()
            self._submit_some(count - CALM_JOBS)
            self._tick()
        schedule.clear()
        last = [self._submit(case) for case in itertools.islice(self._good_cases(), CALM_JOBS)]
        while self._unfinished():
            self._tick()
        self.report.faults = schedule.counts
        for job_id in self._submitted:
            self._judge(self._platform.jobs[job_id])
        failed = [self._platform.jobs[job_id] for job_id in last if outcome_of(self._platform.jobs[job_id]) != "result"]
        self.report.wrong += [f"after the last fault a job failed: {job}" for job in failed]
        self._check_counts()

    def _good_cases(self) -> Iterator[SoakCase]:
        return (case for case in self._cases if case.result is not None)

    def _submit(self, case: SoakCase) -> str:
        job_id = self._platform.submit(case.inputs)
        self._submitted[job_id] = case
        return job_id

    def _submit_some(self, limit: int) -> None:
        """Keep a few jobs waiting; some of them are cancelled, at once or a moment after they were handed out."""
        waiting = sum(job.state is QueueJobState.IN_QUEUE for job in self._platform.jobs.values())
        for case in itertools.islice(self._cases, min(limit - len(self._submitted), max(0, 4 - waiting))):
            job_id = self._submit(case)
            if self._dice.random() < CANCELLED:
                self._to_cancel[job_id] = self._dice.choice((-math.inf, self._dice.uniform(0, 0.4)))

    def _tick(self) -> None:
        self._leaks.sample()
        self._cancel_some()
        self._pause.wait(SOAK_TICK_S)
        if self._stage.worker.exit_code is not None:
            raise AssertionError("the worker ended")

    def _cancel_some(self) -> None:
        now = time.monotonic()
        for job_id, after_s in list(self._to_cancel.items()):
            job = self._platform.jobs[job_id]
            if job.state.is_final:
                del self._to_cancel[job_id]
            elif after_s < 0 or (job.started_at is not None and now > job.started_at + after_s):
                address = f"{self._platform.endpoint_url}/cancel/{job_id}"
                answer = requests.post(address, headers={"Authorization": self._platform.api_key}, timeout=10)
                if answer.ok:
                    del self._to_cancel[job_id]

    def _unfinished(self) -> bool:
        """Whether a job has not ended. Raises AssertionError for one that hangs."""
        now = time.monotonic()
        unfinished = [job for job in self._platform.jobs.values() if not job.state.is_final]
        for job in unfinished:
            if job.started_at is not None and now > job.started_at + BOUND_S:
                raise AssertionError(f"hangs: {job}")
        return bool(unfinished)

    def _judge(self, job: QueueJob) -> None:
        case = self._submitted[job.id]
        outcome = outcome_of(job)
        self.report.outcomes[outcome] += 1
        self.report.handed_out_again += job.retries
        self.report.posted_again += max(0, job.final_posts - 1 - job.retries)
        if job.started_at is not None and job.ended_at is not None:
            self.report.durations_s.append(job.ended_at - job.started_at)
        self.report.wrong += [f"{problem}: {job}" for problem in problems_of(job, case, FAULT_CODES)]

    def _check_counts(self) -> None:
        """No more jobs failed with a code, or were posted twice, than the injected faults explain."""
        if self.report.posted_again > self.report.faults[RESPONSE_LOST]:
            self.report.wrong.append(f"{self.report.posted_again} results were posted again")
        for code in FAULT_CODES:
            faults = sum(self.report.faults[fault.name] for fault in FAULTS if fault.code is code)
            failed = self.report.outcomes[code.value]
            if failed > 2 * faults:
                self.report.wrong.append(
                    f"{failed} jobs failed with {code.value}, after {faults} faults that explain it"
                )

    def check_flat(self) -> None:
        """Compare the worker process's memory, files and threads at the end with those before."""
        first, second, third, last = self._leaks.quarters()
        self.report.memory = "  ".join(
            f"{each.rss_mb:.1f} MB/{each.files} files/{each.threads} threads" for each in (first, second, third, last)
        )
        if last.rss_mb > second.rss_mb + RSS_SLACK_MB:
            self.report.wrong.append(f"memory grows: {self.report.memory}")
        if max(last.files - second.files, last.threads - second.threads) > COUNT_SLACK:
            self.report.wrong.append(f"files or threads grow: {self.report.memory}")


def run_worker(name: str, cases: Sequence[SoakCase], count: int, *, shares_files: bool) -> Report:
    """Run `count` jobs on one worker; return the report of their outcomes and of leftovers."""
    dice = random.Random(name)  # noqa: S311 - faults, not secrets
    platform = RunPodPlatform(long_poll_s=1.0, lost_job_s=LOST_JOB_S)
    environment = {"WORKER_JOB_TIMEOUT_S": str(SOAK_JOB_TIMEOUT_S)}
    with staged(shares_files=shares_files, step_s=STEP_S, platform=platform, environment=environment) as stage:
        runner = WorkerRunner(stage, dice, cases)
        runner.run(count, FaultSchedule(stage, dice))
        runner.check_flat()
        # A ComfyUI that lost its history cannot report over HTTP which files it wrote.
        unknowable = 0 if shares_files else runner.report.faults["everything forgotten"]
        runner.report.wrong += leftovers(stage, unknowable)
        return runner.report
