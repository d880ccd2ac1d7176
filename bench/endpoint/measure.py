"""Runs the jobs of a benchmark through the client, and records how long each job took."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from bench.endpoint.figures import CANCELLED, DONE, FAILED, NOT_RUN, Sample, stages_of
from comfy_client.client import Client
from comfy_client.coroutines import run
from comfy_client.job import Done, Running, Waiting
from comfy_client.providers.interface import GenerationResult, Health
from comfy_client.tasks import make_request, run_task
from comfy_core.errors import ComfyClientError, WaitTimeout

COLD = frozenset({"cold", "no_worker", "throttled", "unhealthy"})
"""The values of `Health.why` if no worker is available."""


@dataclass(frozen=True)
class Plan:
    """The inputs of a benchmark's jobs, the number of jobs, and the time limits.

    Attributes:
        inputs: inputs of every job, without the seed.
        first_seed: seed of the first job. Each job gets the next seed, because ComfyUI caches results.
        warmups: rounds of jobs before each level that are not measured. A round has as many jobs as the level runs
            concurrently, so that as many workers start.
        jobs: number of jobs of each level.
        levels: for each level, the number of concurrent jobs.
        job_timeout_s: seconds after which a job is cancelled and counted as failed.
        max_s: seconds after which no job is sent, and the running jobs are cancelled.
    """

    inputs: Mapping[str, Any]
    first_seed: int
    warmups: int
    jobs: int
    levels: tuple[int, ...]
    job_timeout_s: float
    max_s: float

    def requests(self) -> Iterator[dict[str, Any]]:
        """Yield inputs with increasing seeds, without end."""
        seed = self.first_seed
        while True:
            yield {**self.inputs, "seed": seed}
            seed += 1


class Stopped(Exception):  # noqa: N818 - not an error: somebody stopped the benchmark
    """The benchmark was stopped before all jobs were done."""


class Stop:
    """Stops a benchmark at its deadline or on request. `why` is empty while the benchmark runs."""

    def __init__(self, max_s: float) -> None:
        self._deadline = time.monotonic() + max_s
        self._max_s = max_s
        self._requested = threading.Event()

    def request(self) -> None:
        """Stop the benchmark now."""
        self._requested.set()

    @property
    def why(self) -> str:
        """The reason why the benchmark was stopped, or an empty string."""
        if self._requested.is_set():
            return "interrupted"
        return f"the limit of {self._max_s:g} s was reached" if time.monotonic() >= self._deadline else ""

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`. Raises Stopped when the benchmark is stopped."""
        self._requested.wait(max(0.0, min(seconds, self._deadline - time.monotonic())))
        if self.why:
            raise Stopped


@dataclass(frozen=True)
class FirstJob:
    """The first job: the cold start, if no worker was running.

    Attributes:
        health: the provider's health before the job.
        was_cold: whether no worker was available before the job.
        waits: the reasons for which the job waited, each with the seconds since the job's submission.
        to_running_s: seconds from the submission until a worker took the job; None if the job failed.
        to_result_s: seconds from the submission to the result; None if the job failed.
        error: the code and message of a failed job.
    """

    health: Health
    was_cold: bool
    waits: tuple[tuple[float, str], ...] = ()
    to_running_s: float | None = None
    to_result_s: float | None = None
    result: GenerationResult | None = field(default=None, repr=False)
    error: tuple[str, str] | None = None


def run_first(client: Client, plan: Plan, inputs: Mapping[str, Any], stop: Stop) -> FirstJob:
    """Run the first job and measure its phases. Raises Stopped, or RequestError if the health cannot be read."""
    health = client.health()
    was_cold = health.why in COLD
    waits: list[tuple[float, str]] = []
    running_s: list[float] = []
    begun_at = time.monotonic()

    def observe(event: object) -> None:
        seconds = time.monotonic() - begun_at
        match event:
            case Waiting(sentence=sentence):
                waits.append((seconds, sentence))
            case Running() | Done() if not running_s:
                running_s.append(seconds)

    try:
        result = run(run_task(client, make_request(**inputs), plan.job_timeout_s, observe), stop.sleep)
    except ComfyClientError as error:
        _cancel(client, error)
        return FirstJob(health, was_cold, tuple(waits), error=_code_and_message(error))
    to_result_s = time.monotonic() - begun_at
    # The delay that the platform reports is more precise than the time of a poll. Providers without a queue have none.
    to_running_s = result.delay_s if result.delay_s is not None else running_s[0]
    return FirstJob(health, was_cold, tuple(waits), to_running_s, to_result_s, result)


def run_level(
    client: Client,
    plan: Plan,
    inputs: list[Mapping[str, Any]],
    concurrency: int,
    stop: Stop,
    on_sample: Callable[[Sample], object] = lambda _: None,
) -> tuple[list[Sample], int | None]:
    """Run a job for each of `inputs`, `concurrency` at once; return the samples, and the number of running workers.

    The workers are counted when half of the jobs have ended. `on_sample` is called with each sample. Ctrl-C
    requests `stop`, which cancels the running jobs; the samples are returned.
    """
    begun_at = time.monotonic()
    with ThreadPoolExecutor(concurrency, thread_name_prefix="benchmark") as pool:
        jobs = [pool.submit(_run_job, client, plan, each, begun_at, stop) for each in inputs]
        workers = None
        try:
            for number, job in enumerate(as_completed(jobs), 1):
                on_sample(job.result())
                if number == (len(jobs) + 1) // 2:
                    workers = _running_workers(client)
        except KeyboardInterrupt:
            stop.request()
        return [job.result() for job in jobs], workers


def _running_workers(client: Client) -> int | None:
    with contextlib.suppress(ComfyClientError):
        workers = client.health().workers
        return (workers.get("running") or 1) if workers else None  # a single worker may be between two jobs
    return None


def _run_job(client: Client, plan: Plan, inputs: Mapping[str, Any], level_begun_at: float, stop: Stop) -> Sample:
    """Run one job and return its sample."""
    seed = inputs["seed"]
    begun_s = time.monotonic() - level_begun_at
    if stop.why:
        return Sample(seed, NOT_RUN)
    try:
        result = run(run_task(client, make_request(**inputs), plan.job_timeout_s), stop.sleep)
    except Stopped:
        return Sample(seed, CANCELLED, begun_s, time.monotonic() - level_begun_at)
    except ComfyClientError as error:
        _cancel(client, error)
        return Sample(seed, FAILED, begun_s, time.monotonic() - level_begun_at, error=_code_and_message(error))
    ended_s = time.monotonic() - level_begun_at
    stages = stages_of(ended_s - begun_s, result.delay_s, result.execution_s, result.timings)
    return Sample(seed, DONE, begun_s, ended_s, stages, result.execution_s, len(result.images))


def _cancel(client: Client, error: ComfyClientError) -> None:
    """Cancel a job for which the client stopped waiting, so that it costs no more money."""
    if isinstance(error, WaitTimeout):
        with contextlib.suppress(ComfyClientError):
            client.job(error.job_id).cancel()


def _code_and_message(error: ComfyClientError) -> tuple[str, str]:
    return error.report.code.value, error.report.message
