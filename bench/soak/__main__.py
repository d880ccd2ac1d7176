"""Runs the soak: many jobs on workers in production mode, with random faults injected into ComfyUI and RunPod.

Several workers run in parallel, each with two concurrent jobs and its own platform and simulator. One worker cannot run
1,000 jobs in two minutes, because the SDK takes two jobs and then pauses for a second. Further workers, one after
another, start their own ComfyUI, which is killed repeatedly. Each result is compared with the result of the same
request without faults. At the end, no file or process of a job may be left. The printed seed determines the faults and
their times, but not how threads and processes interleave.
"""

from __future__ import annotations

import argparse
import collections
import logging
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from bench.soak.cases import good_requests, invalid_requests, with_results
from bench.soak.checks import Report
from bench.soak.killing_runner import run_killed_workers
from bench.soak.worker_runner import run_worker

JOBS_PER_WORKER_S = 0.8
"""Jobs that one worker completes per second with faults. The number of workers is computed from it."""
GOOD_REQUESTS = 70


def soak(jobs: int, seconds: float, kills: int, seed: int) -> bool:
    """Run the soak and print its report; return whether every check passed."""
    workers = max(1, math.ceil(jobs / (seconds * JOBS_PER_WORKER_S)))
    print(f"{jobs} jobs on {workers} workers, ComfyUI killed {kills} times; --seed {seed}", flush=True)
    begun_at = time.monotonic()
    rng = random.Random(seed)  # noqa: S311 - faults, not secrets
    cases = [*with_results(good_requests(rng, GOOD_REQUESTS)), *invalid_requests(rng)]
    print(
        f"{len(cases)} requests; their expected results were generated in {time.monotonic() - begun_at:.1f} s",
        flush=True,
    )
    begun_at = time.monotonic()
    with ThreadPoolExecutor(workers + 1) as threads:
        jobs_of_workers = [jobs // workers + (number < jobs % workers) for number in range(workers)]
        running = [
            threads.submit(run_worker, f"{seed} {number}", cases, count, shares_files=number % 2 == 0)
            for number, count in enumerate(jobs_of_workers)
        ]
        killing = threads.submit(run_killed_workers, f"{seed} kill", cases, kills)
        reports = [worker.result() for worker in running]
        killed = killing.result()
    elapsed_s = time.monotonic() - begun_at
    _print("jobs with random faults", reports, elapsed_s)
    _print("jobs with a killed ComfyUI", [killed], elapsed_s)
    for report in reports:
        print(f"  memory by quarter: {report.memory}")
    problems = [problem for report in (*reports, killed) for problem in report.problems]
    for problem in problems:
        print(f"WRONG: {problem}")
    verdict = "all checks passed" if not problems else f"{len(problems)} checks failed"
    print(f"{verdict}; {elapsed_s:.0f} s, --seed {seed}")
    return not problems


def _print(title: str, reports: Sequence[Report], elapsed_s: float) -> None:
    outcomes = sum((report.outcomes for report in reports), collections.Counter[str]())
    faults = sum((report.faults for report in reports), collections.Counter[str]())
    durations = sorted(duration for report in reports for duration in report.durations_s)
    print(f"{outcomes.total()} {title}, {faults.total()} faults, {elapsed_s:.0f} s")
    print("  jobs:   " + ", ".join(f"{count} {name}" for name, count in outcomes.most_common()))
    print("  faults: " + ", ".join(f"{count} {name}" for name, count in faults.most_common()))
    retries = sum(report.handed_out_again for report in reports)
    if durations:
        print(f"  handed out to ended: median {statistics.median(durations):.2f} s, longest {durations[-1]:.2f} s")
    print(f"  handed out again because the platform lost them: {retries}")


def main() -> None:
    """Run the soak that the command line describes."""
    logging.getLogger("simulators.comfyui").setLevel(logging.CRITICAL)  # it logs a traceback for each injected fault
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Runs jobs on workers while faults are injected.")
    parser.add_argument("--jobs", type=int, default=1000, help="number of jobs; %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=120, help="duration; a shorter one starts more workers; %(default)s"
    )
    parser.add_argument("--kills", type=int, default=6, help="how often a worker's ComfyUI is killed; %(default)s")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10**6), help="seed of the faults; default: random"
    )
    options = parser.parse_args()
    sys.exit(0 if soak(options.jobs, options.seconds, options.kills, options.seed) else 1)


if __name__ == "__main__":
    main()
