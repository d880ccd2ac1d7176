"""Runs the jobs of one worker in the soak test while faults are injected. Each worker has its own simulators."""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections.abc import Iterator, Sequence

import requests

from bench.soak.cases import SoakCase
from bench.soak.checks import MAX_JOB_S, Report, failed_checks, outcome_of, stop_and_find_leftovers
from bench.soak.fault_schedule import FAULT_CODES, FAULTS, LOST_JOB_S, RESPONSE_LOST, FaultSchedule
from bench.soak.leak_monitor import LeakMonitor
from bench.worker_setup import WorkerSetup, running_worker
from simulators.runpod.queue_api import QueueJob, QueueJobState, RunPodPlatform

STEP_S = 0.05
"""Duration of a simulated sampling step."""
SOAK_JOB_TIMEOUT_S = 5.0
FAULTLESS_JOBS = 3
"""Number of jobs that each worker runs at the end without faults. These jobs must succeed."""
CANCELLED_SHARE = 0.1
"""Fraction of jobs that are cancelled."""
SOAK_POLL_S = 0.02
"""Seconds between two polls of the jobs."""
ALLOWED_RSS_GROWTH_MB = 6.0
ALLOWED_COUNT_GROWTH = 4
"""Allowed growth of files and threads: the session to the platform keeps one connection per concurrent request."""


class WorkerRunner:
    """Runs jobs on one worker and checks their outcomes. `report` has the outcomes and the failed checks."""

    def __init__(self, setup: WorkerSetup, rng: random.Random, cases: Sequence[SoakCase]) -> None:
        self._setup = setup
        self._platform = setup.platform
        self._rng = rng
        self._cases = itertools.cycle(rng.sample(cases, len(cases)))
        self._submitted: dict[str, SoakCase] = {}
        self._cancel_after_s: dict[str, float] = {}
        self._cancelled: set[str] = set()
        self._leaks = LeakMonitor(setup.worker.pid)
        self._pause = threading.Event()
        self.report = Report()

    def run(self, count: int, schedule: FaultSchedule) -> None:
        """Run `count` jobs, the last of them without faults, and check their outcomes."""
        while len(self._submitted) < count - FAULTLESS_JOBS or self._has_unfinished_jobs():
            schedule.inject_next()
            self._submit_some(count - FAULTLESS_JOBS)
            self._poll_once()
        schedule.clear()
        last = [self._submit(case) for case in itertools.islice(self._succeeding_cases(), FAULTLESS_JOBS)]
        while self._has_unfinished_jobs():
            self._poll_once()
        self.report.faults = schedule.counts
        for job_id in self._submitted:
            self._check_job(self._platform.jobs[job_id])
        failed = [self._platform.jobs[job_id] for job_id in last if outcome_of(self._platform.jobs[job_id]) != "result"]
        self.report.problems += [f"after the last fault a job failed: {job}" for job in failed]
        self._check_counts()

    def _succeeding_cases(self) -> Iterator[SoakCase]:
        return (case for case in self._cases if case.result is not None)

    def _submit(self, case: SoakCase) -> str:
        job_id = self._platform.submit(case.inputs)
        self._submitted[job_id] = case
        return job_id

    def _submit_some(self, limit: int) -> None:
        """Submit jobs until four are queued or `limit` are submitted, and choose some to cancel now or later."""
        waiting = sum(job.state is QueueJobState.IN_QUEUE for job in self._platform.jobs.values())
        for case in itertools.islice(self._cases, min(limit - len(self._submitted), max(0, 4 - waiting))):
            job_id = self._submit(case)
            if self._rng.random() < CANCELLED_SHARE:
                self._cancel_after_s[job_id] = self._rng.choice((-math.inf, self._rng.uniform(0, 0.4)))

    def _poll_once(self) -> None:
        self._leaks.sample()
        self._cancel_some()
        self._pause.wait(SOAK_POLL_S)
        if self._setup.worker.exit_code is not None:
            raise AssertionError("the worker exited before its jobs were done")

    def _cancel_some(self) -> None:
        now = time.monotonic()
        for job_id, after_s in list(self._cancel_after_s.items()):
            job = self._platform.jobs[job_id]
            if job.state.is_final:
                del self._cancel_after_s[job_id]
            elif after_s < 0 or (job.started_at is not None and now > job.started_at + after_s):
                address = f"{self._platform.endpoint_url}/cancel/{job_id}"
                response = requests.post(address, headers={"Authorization": self._platform.api_key}, timeout=60)
                if response.ok:
                    del self._cancel_after_s[job_id]

    def _has_unfinished_jobs(self) -> bool:
        """Return whether a job has not ended. Raises AssertionError if a job runs for longer than MAX_JOB_S."""
        now = time.monotonic()
        unfinished = [job for job in self._platform.jobs.values() if not job.state.is_final]
        for job in unfinished:
            if job.started_at is not None and now > job.started_at + MAX_JOB_S:
                raise AssertionError(f"a job has run for more than {MAX_JOB_S:g} s: {job}")
        return bool(unfinished)

    def _check_job(self, job: QueueJob) -> None:
        case = self._submitted[job.id]
        outcome = outcome_of(job)
        self.report.outcomes[outcome] += 1
        self.report.handed_out_again += job.retries
        self.report.posted_again += max(0, job.final_posts - 1 - job.retries)
        if job.started_at is not None and job.ended_at is not None:
            self.report.durations_s.append(job.ended_at - job.started_at)
        self.report.problems += [f"{problem}: {job}" for problem in failed_checks(job, case, FAULT_CODES)]

    def _check_counts(self) -> None:
        """Report a problem if more jobs failed or were posted twice than the injected faults can cause."""
        if self.report.posted_again > self.report.faults[RESPONSE_LOST]:
            self.report.problems.append(f"{self.report.posted_again} results were posted again")
        for code in FAULT_CODES:
            faults = sum(self.report.faults[fault.name] for fault in FAULTS if fault.code is code)
            failed = self.report.outcomes[code.value]
            if failed > 2 * faults:
                self.report.problems.append(
                    f"{failed} jobs failed with {code.value}, after {faults} faults that can cause it"
                )

    def check_growth(self) -> None:
        """Report a problem if memory, files or threads grew too much from the second quarter to the last."""
        first, second, third, last = self._leaks.quarters()
        self.report.memory = "  ".join(
            f"{each.rss_mb:.1f} MB/{each.files} files/{each.threads} threads" for each in (first, second, third, last)
        )
        if last.rss_mb > second.rss_mb + ALLOWED_RSS_GROWTH_MB:
            self.report.problems.append(f"memory grows: {self.report.memory}")
        if max(last.files - second.files, last.threads - second.threads) > ALLOWED_COUNT_GROWTH:
            self.report.problems.append(f"files or threads grow: {self.report.memory}")


def run_worker(name: str, cases: Sequence[SoakCase], count: int, *, shares_files: bool) -> Report:
    """Run `count` jobs on one worker and return the report. `name` is the seed of the random faults."""
    rng = random.Random(name)  # noqa: S311 - faults, not secrets
    platform = RunPodPlatform(long_poll_s=1.0, lost_job_s=LOST_JOB_S)
    environment = {"WORKER_JOB_TIMEOUT_S": str(SOAK_JOB_TIMEOUT_S)}
    with running_worker(shares_files=shares_files, step_s=STEP_S, platform=platform, environment=environment) as setup:
        runner = WorkerRunner(setup, rng, cases)
        runner.run(count, FaultSchedule(setup, rng))
        runner.check_growth()
        # A ComfyUI that lost its history cannot report over HTTP which files it wrote.
        allowed_files = 0 if shares_files else runner.report.faults["everything forgotten"]
        runner.report.problems += stop_and_find_leftovers(setup, allowed_files)
        return runner.report
