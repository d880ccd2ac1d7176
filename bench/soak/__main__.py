"""A soak: many jobs through workers in production mode, while what is around them fails at random.

It runs in lanes side by side. A lane is one worker with two jobs in hand, on a platform and a simulator of its own; one
worker alone cannot do 1,000 jobs in two minutes, as the SDK takes two and then pauses for a second. One more lane has a
worker whose ComfyUI is its child, and kills it. Each job's end is held against what the same request gives without any
fault; at the end of a lane nothing may be left of any job. What fails, and when, follows from the seed that is printed;
how threads and processes interleave does not.
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

from bench.soak.cases import good_requests, refused, with_results
from bench.soak.killing_runner import killing_lane
from bench.soak.verdicts import Report
from bench.soak.worker_runner import soak_lane

LANE_JOBS_A_S = 0.8
"""What one lane gets through in a second, faults included; decides how many lanes there are."""
GOOD_REQUESTS = 70


def soak(jobs: int, seconds: float, kills: int, seed: int) -> bool:
    """Run the soak and print what it saw; return whether every promise was kept."""
    lanes = max(1, math.ceil(jobs / (seconds * LANE_JOBS_A_S)))
    print(f"{jobs} jobs on {lanes} workers, ComfyUI killed {kills} times; --seed {seed}", flush=True)
    begun_at = time.monotonic()
    dice = random.Random(seed)  # noqa: S311 - faults, not secrets
    cases = [*with_results(good_requests(dice, GOOD_REQUESTS)), *refused(dice)]
    print(f"{len(cases)} requests, their results made in {time.monotonic() - begun_at:.1f} s", flush=True)
    begun_at = time.monotonic()
    with ThreadPoolExecutor(lanes + 1) as threads:
        share = [jobs // lanes + (number < jobs % lanes) for number in range(lanes)]
        running = [
            threads.submit(soak_lane, f"{seed} {number}", cases, count, shares_files=number % 2 == 0)
            for number, count in enumerate(share)
        ]
        killing = threads.submit(killing_lane, f"{seed} kill", cases, kills)
        reports = [each.result() for each in running]
        killed = killing.result()
    elapsed_s = time.monotonic() - begun_at
    _print("jobs while everything fails", reports, elapsed_s)
    _print("jobs while ComfyUI is killed", [killed], elapsed_s)
    for report in reports:
        print(f"  memory by quarter: {report.memory}")
    wrong = [problem for report in (*reports, killed) for problem in report.wrong]
    for problem in wrong:
        print(f"WRONG: {problem}")
    verdict = "all promises were kept" if not wrong else f"{len(wrong)} promises were broken"
    print(f"{verdict}; {elapsed_s:.0f} s, --seed {seed}")
    return not wrong


def _print(title: str, reports: Sequence[Report], elapsed_s: float) -> None:
    outcomes = sum((report.outcomes for report in reports), collections.Counter[str]())
    weather = sum((report.weather for report in reports), collections.Counter[str]())
    durations = sorted(duration for report in reports for duration in report.durations_s)
    print(f"{outcomes.total()} {title}, {weather.total()} faults, {elapsed_s:.0f} s")
    print("  jobs:   " + ", ".join(f"{count} {name}" for name, count in outcomes.most_common()))
    print("  faults: " + ", ".join(f"{count} {name}" for name, count in weather.most_common()))
    again = sum(report.handed_out_again for report in reports)
    if durations:
        print(f"  handed out to ended: median {statistics.median(durations):.2f} s, longest {durations[-1]:.2f} s")
    print(f"  handed out again since the platform's side lost them: {again}")


def main() -> None:
    """Run the soak as asked."""
    logging.getLogger("simulators.comfyui").setLevel(logging.CRITICAL)  # requests that it cuts, with tracebacks
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Soaks the worker.")
    parser.add_argument("--jobs", type=int, default=1000, help="jobs in all; %(default)s")
    parser.add_argument("--seconds", type=float, default=120, help="how long that may take; more workers for less")
    parser.add_argument("--kills", type=int, default=6, help="how often a worker's ComfyUI is killed; %(default)s")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="what fails when")
    options = parser.parse_args()
    sys.exit(0 if soak(options.jobs, options.seconds, options.kills, options.seed) else 1)


if __name__ == "__main__":
    main()
