"""A lane of the soak: one worker on a platform and a simulator of its own, in the weather."""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections.abc import Iterator, Sequence

import requests

from bench.soak.cases import Case
from bench.soak.fault_schedule import ANSWER_LOST, LOST_JOB_S, WEATHER, WEATHER_CODES, Weather
from bench.soak.leak_monitor import Gauge
from bench.soak.verdicts import BOUND_S, Report, leftovers, outcome_of, problems_of
from bench.stage import Stage, staged
from simulators.runpod.queue_api import Job, JobState, RunPodPlatform

STEP_S = 0.05
JOB_TIMEOUT_S = 5.0
CALM_JOBS = 3
"""Jobs of each lane that come last, in fair weather, and must succeed."""
CANCELLED = 0.1
"""Share of jobs that are cancelled."""
TICK_S = 0.02
RSS_SLACK_MB = 6.0
COUNT_SLACK = 4
"""The session to the platform keeps a connection for each request that was under way at once."""


class Lane:
    """One worker and its jobs."""

    def __init__(self, stage: Stage, dice: random.Random, cases: Sequence[Case]) -> None:
        self._stage = stage
        self._platform = stage.platform
        self._dice = dice
        self._cases = itertools.cycle(dice.sample(cases, len(cases)))
        self._submitted: dict[str, Case] = {}
        self._to_cancel: dict[str, float] = {}
        self._cancelled: set[str] = set()
        self._gauge = Gauge(stage.worker.pid)
        self._pause = threading.Event()
        self.report = Report()

    def run(self, count: int, weather: Weather) -> None:
        """Run so many jobs, the last ones of them in fair weather, and judge what became of them."""
        while len(self._submitted) < count - CALM_JOBS or self._unfinished():
            weather.blow()
            self._submit_some(count - CALM_JOBS)
            self._tick()
        weather.clear()
        last = [self._submit(case) for case in itertools.islice(self._good_cases(), CALM_JOBS)]
        while self._unfinished():
            self._tick()
        self.report.weather = weather.counts
        for job_id in self._submitted:
            self._judge(self._platform.jobs[job_id])
        failed = [self._platform.jobs[job_id] for job_id in last if outcome_of(self._platform.jobs[job_id]) != "result"]
        self.report.wrong += [f"after the last fault a job failed: {job}" for job in failed]
        self._check_counts()

    def _good_cases(self) -> Iterator[Case]:
        return (case for case in self._cases if case.result is not None)

    def _submit(self, case: Case) -> str:
        job_id = self._platform.submit(case.inputs)
        self._submitted[job_id] = case
        return job_id

    def _submit_some(self, limit: int) -> None:
        """Keep a few jobs waiting; some of them are cancelled, at once or a moment after they were handed out."""
        waiting = sum(job.state is JobState.IN_QUEUE for job in self._platform.jobs.values())
        for case in itertools.islice(self._cases, min(limit - len(self._submitted), max(0, 4 - waiting))):
            job_id = self._submit(case)
            if self._dice.random() < CANCELLED:
                self._to_cancel[job_id] = self._dice.choice((-math.inf, self._dice.uniform(0, 0.4)))

    def _tick(self) -> None:
        self._gauge.look()
        self._cancel_some()
        self._pause.wait(TICK_S)
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

    def _judge(self, job: Job) -> None:
        case = self._submitted[job.id]
        outcome = outcome_of(job)
        self.report.outcomes[outcome] += 1
        self.report.handed_out_again += job.retries
        self.report.posted_again += max(0, job.final_posts - 1 - job.retries)
        if job.started_at is not None and job.ended_at is not None:
            self.report.durations_s.append(job.ended_at - job.started_at)
        self.report.wrong += [f"{problem}: {job}" for problem in problems_of(job, case, WEATHER_CODES)]

    def _check_counts(self) -> None:
        """No more jobs failed with a code, or were posted twice, than the weather explains."""
        if self.report.posted_again > self.report.weather[ANSWER_LOST]:
            self.report.wrong.append(f"{self.report.posted_again} results were posted again")
        for code in WEATHER_CODES:
            faults = sum(self.report.weather[fault.name] for fault in WEATHER if fault.code is code)
            failed = self.report.outcomes[code.value]
            if failed > 2 * faults:
                self.report.wrong.append(
                    f"{failed} jobs failed with {code.value}, after {faults} faults that explain it"
                )

    def check_flat(self) -> None:
        """Hold what the worker's process held last against what it held before."""
        first, second, third, last = self._gauge.quarters()
        self.report.memory = "  ".join(
            f"{each.rss_mb:.1f} MB/{each.files} files/{each.threads} threads" for each in (first, second, third, last)
        )
        if last.rss_mb > second.rss_mb + RSS_SLACK_MB:
            self.report.wrong.append(f"memory grows: {self.report.memory}")
        if max(last.files - second.files, last.threads - second.threads) > COUNT_SLACK:
            self.report.wrong.append(f"files or threads grow: {self.report.memory}")


def soak_lane(name: str, cases: Sequence[Case], count: int, *, shares_files: bool) -> Report:
    """Return what became of `count` jobs of one worker, and of what it left."""
    dice = random.Random(name)  # noqa: S311 - faults, not secrets
    platform = RunPodPlatform(long_poll_s=1.0, lost_job_s=LOST_JOB_S)
    environment = {"WORKER_JOB_TIMEOUT_S": str(JOB_TIMEOUT_S)}
    with staged(shares_files=shares_files, step_s=STEP_S, platform=platform, environment=environment) as stage:
        lane = Lane(stage, dice, cases)
        lane.run(count, Weather(stage, dice))
        lane.check_flat()
        # Over HTTP nobody can learn which files a ComfyUI wrote that has forgotten its history.
        unknowable = 0 if shares_files else lane.report.weather["everything forgotten"]
        lane.report.wrong += leftovers(stage, unknowable)
        return lane.report
