"""The benchmark of several workers: its arrivals, and the ideal queue that it compares with."""

from __future__ import annotations

import pytest

from bench.fleet import RULES, STEPS, UTILISATION, WORKERS, Trip, poisson_arrivals, queue_waits_s


def test_the_arrivals_have_the_utilisation() -> None:
    """The work of many arrivals divided by the capacity of the workers is the utilisation. A seed repeats them."""
    arrivals = poisson_arrivals(20_000, 0.15, seed=1)

    work_s = sum(arrival.steps for arrival in arrivals) * 0.15
    assert work_s / (WORKERS * arrivals[-1].at) == pytest.approx(UTILISATION, rel=0.03)
    assert {arrival.steps for arrival in arrivals} == set(STEPS)
    assert poisson_arrivals(5, 0.15, seed=1) == arrivals[:5]


def test_jobs_of_the_ideal_queue_start_in_order_as_soon_as_a_worker_is_idle() -> None:
    """Of five jobs at three workers, the fourth starts when the second ends, and the fifth when the third ends."""
    jobs = [Trip(0, 0, 10), Trip(1, 0, 2), Trip(1, 0, 9), Trip(2, 0, 4), Trip(2.5, 0, 1)]

    assert queue_waits_s(jobs, 1, min) == [10, 2, 9, 5, 5.5]  # ends at 10, 3, 10, 7 and 8


def test_with_two_slots_a_job_can_wait_for_a_busy_worker_while_another_is_idle() -> None:
    """The second job starts at once on an idle worker, and when the first ends on the busy one."""
    jobs = [Trip(0, 0, 10), Trip(1, 0, 2)]

    assert queue_waits_s(jobs, 2, RULES["an idle worker first"]) == [10, 2]
    assert queue_waits_s(jobs, 2, RULES["a busy worker first"]) == [10, 11]


def test_a_job_waits_in_the_queue_while_all_slots_are_taken() -> None:
    """Six jobs fill the slots of three workers. The seventh is handed out when the first job ends."""
    jobs = [Trip(0, 0, 4)] * 6 + [Trip(1, 0, 1)]

    assert queue_waits_s(jobs, 2, RULES["an idle worker first"]) == [4, 4, 4, 8, 8, 8, 8]
