"""The benchmark of several workers: its arrivals, and the ideal queue that it compares with."""

from __future__ import annotations

import pytest

from bench.fleet import STEPS, UTILISATION, WORKERS, Trip, ideal_waits_s, poisson_arrivals


def test_the_arrivals_have_the_utilisation() -> None:
    """The work of many arrivals divided by the capacity of the workers is the utilisation. A seed repeats them."""
    arrivals = poisson_arrivals(20_000, 0.15, seed=1)

    work_s = sum(arrival.steps for arrival in arrivals) * 0.15
    assert work_s / (WORKERS * arrivals[-1].at) == pytest.approx(UTILISATION, rel=0.03)
    assert {arrival.steps for arrival in arrivals} == set(STEPS)
    assert poisson_arrivals(5, 0.15, seed=1) == arrivals[:5]


def test_jobs_of_the_ideal_queue_start_in_order_as_soon_as_a_worker_is_idle() -> None:
    """Of four jobs at two workers, the third starts when the second ends, and the fourth when the third ends."""
    trips = [Trip(0, 9, 10), Trip(1, 9, 2), Trip(2, 9, 4), Trip(2.5, 9, 1)]

    assert ideal_waits_s(trips, workers=2) == [10, 2, 5, 5.5]  # ends at 10, 3, 7 and 8


def test_a_fleet_without_waiting_jobs_has_only_service_times() -> None:
    """With as many workers as jobs, nobody waits for another job."""
    assert ideal_waits_s([Trip(0, 9, 3), Trip(0, 9, 3)], workers=2) == [3, 3]
