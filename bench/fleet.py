"""Measures how long callers wait at several workers, compared with an ideal queue of the same jobs."""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bench.worker_setup import ROOT, code_of
from simulators.comfyui import Simulator
from simulators.runpod.queue_api import QueueJob, RunPodPlatform, WorkerProcess
from simulators.waiting import until

WORKERS = 3
UTILISATION = 0.6
ROUND_TRIP_S = 0.06
DISPATCH_JITTER_S = 0.005
"""A random one of the workers that poll gets a job."""
STEPS = (10, 20, 30)
"""The numbers of sampling steps of the jobs, each as frequent as the others."""
IMAGE = {"prompt": "a knight", "width": 256, "height": 256}
"""Small, because the simulators of all workers share this process."""
Rule: TypeAlias = Callable[[list[list[float]]], list[float]]
"""Chooses one of the workers with a free slot. Each is given as the ends of its jobs."""
RULES: Mapping[str, Rule] = {
    "an idle worker first": lambda free: min(free, key=len),
    "a random worker": random.Random(1).choice,  # noqa: S311 - not for security
    "a busy worker first": lambda free: max(free, key=len),
}
MODEL_JOBS = 50_000
BOOT_TIMEOUT_S = 120
JOB_TIMEOUT_S = 300


@dataclass(frozen=True)
class Arrival:
    """A job: when it is submitted, in seconds since the start, and its sampling steps."""

    at: float
    steps: int


@dataclass(frozen=True)
class Trip:
    """The times of a finished job: its submission, its result, and how long ComfyUI executed it."""

    submitted_at: float
    ended_at: float
    service_s: float


def poisson_arrivals(count: int, step_s: float, seed: int) -> list[Arrival]:
    """Return jobs that arrive at random and keep WORKERS workers busy for UTILISATION of the time."""
    source = random.Random(seed)  # noqa: S311 - not for security
    rate = WORKERS * UTILISATION / (statistics.mean(STEPS) * step_s)
    at, arrivals = 0.0, []
    for _ in range(count):
        at += source.expovariate(rate)
        arrivals.append(Arrival(at, source.choice(STEPS)))
    return arrivals


def queue_waits_s(trips: Sequence[Trip], slots: int, rule: Rule) -> list[float]:
    """Return the seconds from submission to result of each job on WORKERS workers, without any overhead.

    Each worker takes `slots` jobs and runs them in order. Jobs are handed out in the order of submission, each as soon
    as a worker has a free slot; `rule` chooses one of these workers. With one slot that is the ideal queue.
    """
    workers: list[list[float]] = [[] for _ in range(WORKERS)]  # the ends of each worker's jobs
    waits = []
    now = 0.0
    for trip in sorted(trips, key=lambda trip: trip.submitted_at):
        first_free_at = min(worker[-slots] if len(worker) >= slots else 0.0 for worker in workers)
        now = max(now, trip.submitted_at, first_free_at)
        for worker in workers:
            worker[:] = [end for end in worker if end > now]
        chosen = rule([worker for worker in workers if len(worker) < slots])
        chosen.append(max([now, *chosen]) + trip.service_s)
        waits.append(chosen[-1] - trip.submitted_at)
    return waits


def fleet(options: argparse.Namespace) -> None:
    """Print the callers' mean wait, from submission to result, with two jobs in hand and with one."""
    if options.model:
        _print_model(options.seed)
        return
    arrivals = poisson_arrivals(options.jobs, options.step_s, options.seed)
    print(
        f"{options.jobs} jobs of {STEPS} steps of {options.step_s:g} s, Poisson arrivals, {WORKERS} workers, random "
        f"dispatch, round trips of {ROUND_TRIP_S * 1000:.0f} ms; seconds from submission to result"
    )
    for concurrency in (2, 1):
        print(f"WORKER_CONCURRENCY={concurrency}", flush=True)
        for name, value in _figures(_run(arrivals, options.step_s, concurrency)):
            print(f"  {name:40} {value:8.2f}", flush=True)


def _print_model(seed: int) -> None:
    """Print what two jobs in hand cost without any overhead, by the platform's choice among the workers."""
    jobs = [Trip(each.at, 0.0, each.steps) for each in poisson_arrivals(MODEL_JOBS, 1.0, seed)]
    ideal = statistics.mean(queue_waits_s(jobs, 1, min))
    print(f"{MODEL_JOBS:,} jobs, {WORKERS} workers, utilisation {UTILISATION:g}; mean wait relative to the ideal queue")
    for name, rule in RULES.items():
        print(f"  two jobs in hand, {name:30} {statistics.mean(queue_waits_s(jobs, 2, rule)) / ideal:8.2f}")


def _figures(trips: Sequence[Trip]) -> Iterator[tuple[str, float]]:
    """Yield the name and value of each figure."""
    waits = [trip.ended_at - trip.submitted_at for trip in trips]
    mean_s, ideal_s = statistics.mean(waits), statistics.mean(queue_waits_s(trips, 1, min))
    service_s = statistics.mean(trip.service_s for trip in trips)
    yield "mean", mean_s
    yield "mean of the ideal queue", ideal_s
    yield "relative to the ideal queue", mean_s / ideal_s
    yield "95th percentile", statistics.quantiles(waits, n=20)[-1]
    yield "ComfyUI's execution, mean", service_s
    duration_s = trips[-1].submitted_at - trips[0].submitted_at
    yield "utilisation of the workers", service_s * (len(trips) - 1) / (WORKERS * duration_s)


def _run(arrivals: Sequence[Arrival], step_s: float, concurrency: int) -> list[Trip]:
    """Run the jobs on new workers, each a process with RunPod's SDK and a simulated ComfyUI of its own."""
    platform = RunPodPlatform(round_trip_s=ROUND_TRIP_S, dispatch_jitter_s=DISPATCH_JITTER_S)
    with contextlib.ExitStack() as stack:
        stack.enter_context(platform)
        simulators = [stack.enter_context(Simulator(step_s=step_s)) for _ in range(WORKERS)]
        for number, simulator in enumerate(simulators):
            environment = {
                "COMFYUI_URL": simulator.url,
                "WORKER_CONCURRENCY": str(concurrency),
                "WORKER_WARMUP": "false",
                "RUNPOD_PING_INTERVAL": "1000",
                "PYTHONPATH": str(ROOT),
            }
            worker = WorkerProcess(platform, ROOT / "handler.py", worker_id=f"worker-{number}", env=environment)
            stack.enter_context(worker)
        if not until(lambda: len({take.worker_id for take in platform.takes}) == WORKERS, BOOT_TIMEOUT_S):
            sys.exit("scripts/bench: a worker takes no jobs")
        job_ids = list(_submitted(platform, arrivals))
        jobs = [platform.wait_for(job_id, JOB_TIMEOUT_S) for job_id in job_ids]
        service_s = {run.prompt_id: run.ended_at - run.started_at for each in simulators for run in each.executions}
    return [_trip(job, service_s) for job in jobs]


def _submitted(platform: RunPodPlatform, arrivals: Iterable[Arrival]) -> Iterator[str]:
    """Submit each job at its time; yield its id."""
    begun_at = time.monotonic()
    for seed, arrival in enumerate(arrivals):
        time.sleep(max(0.0, begun_at + arrival.at - time.monotonic()))
        yield platform.submit({**IMAGE, "seed": seed, "steps": arrival.steps})


def _trip(job: QueueJob, service_s: Mapping[str, float]) -> Trip:
    """Return a finished job's times. Exits if the job failed."""
    if code_of(job) or job.ended_at is None:
        sys.exit(f"scripts/bench: a job failed: {job.error}")
    return Trip(job.submitted_at, job.ended_at, service_s[job.output["prompt_ids"][0]])
