"""The figures that are computed from measurements, and how they are printed. Without I/O."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.endpoint.figures import (
    CANCELLED,
    DONE,
    FAILED,
    NOT_RUN,
    STAGES,
    Price,
    Sample,
    cost,
    cost_per_image,
    duration,
    duration_pair,
    level_figures,
    percentiles,
    stages_of,
)
from bench.endpoint.report import cents, table

PRICE = Price(0.001, "a test")
TIMINGS = {"queue_s": 0.5, "execute_s": 4.0, "fetch_s": 0.25, "encode_s": 0.25, "total_s": 5.1}


def test_the_stages_of_a_job_on_our_worker() -> None:
    """The stages are the platform's delay, the worker's timings, and the rest of the total."""
    assert stages_of(8.0, 2.0, 5.2, TIMINGS) == {
        "wait": 2.0,
        "queue": 0.5,
        "execute": 4.0,
        "fetch": 0.25,
        "encode": 0.25,
        "rest": 1.0,
    }


def test_the_stages_of_a_direct_comfyui() -> None:
    """The delay of a job at a direct ComfyUI is the stage `queue`, and there is no stage `wait`."""
    direct = {name: value for name, value in TIMINGS.items() if name != "total_s"}

    assert stages_of(6.0, 0.5, 4.0, direct) == {
        "queue": 0.5,
        "execute": 4.0,
        "fetch": 0.25,
        "encode": 0.25,
        "rest": 1.0,
    }


def test_the_stages_of_a_stock_worker() -> None:
    """The stock worker reports no timings, so its execution is one stage. An unknown time is part of the rest."""
    assert stages_of(8.0, 2.0, 5.0, {}) == {"wait": 2.0, "execute": 5.0, "rest": 1.0}
    assert stages_of(8.0, None, None, {}) == {"rest": 8.0}


@given(
    total=st.floats(0, 1e4),
    delay=st.none() | st.floats(0, 1e4),
    execution=st.none() | st.floats(0, 1e4),
    timings=st.dictionaries(st.sampled_from(sorted(TIMINGS)), st.floats(0, 1e4)),
)
def test_stages_are_known_ones_and_no_time_is_lost(
    total: float, delay: float | None, execution: float | None, timings: dict[str, float]
) -> None:
    """The stages are in STAGES, add up to at least the total, and none is negative."""
    stages = stages_of(total, delay, execution, timings)

    assert set(stages) <= set(STAGES)
    assert min(stages.values()) >= 0
    assert sum(stages.values()) >= total * (1 - 1e-9)


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=50))
def test_percentiles_are_ordered(values: list[float]) -> None:
    """p50 is at most p95, and they are between the minimum and the maximum."""
    found = percentiles(values)

    assert found is not None
    tiny = 1e-9 * max(1.0, found["max"])
    assert found["min"] - tiny <= found["p50"] <= found["p95"] + tiny <= found["max"] + 2 * tiny
    assert found["count"] == len(values)


def test_percentiles_by_example() -> None:
    """The percentiles of the numbers 0 to 100 are the numbers themselves; an empty list has none."""
    assert percentiles([float(each) for each in range(101)]) == {
        "p50": 50,
        "p95": 95,
        "min": 0,
        "max": 100,
        "count": 101,
    }
    assert percentiles([]) is None


def succeeded_job(seed: int, begun_s: float, ended_s: float, execution_s: float | None = 1.2) -> Sample:
    """Return a job that succeeded."""
    return Sample(seed, DONE, begun_s, ended_s, {"wait": 0.5, "rest": ended_s - begun_s - 0.5}, execution_s, 1)


def test_a_level_counts_every_job_once() -> None:
    """Failed, cancelled and unsent jobs are counted, but their times are in neither `total` nor `stages`."""
    samples = [
        succeeded_job(1, 0.0, 2.0),
        succeeded_job(2, 0.0, 4.0),
        Sample(3, FAILED, 2.0, 30.0, error=("out_of_memory", "no room")),
        Sample(4, FAILED, 2.0, 3.0, error=("out_of_memory", "no room either")),
        Sample(5, CANCELLED, 4.0, 5.0),
        Sample(6, NOT_RUN),
    ]

    level = level_figures(2, samples, PRICE, 1)

    counts = (level["jobs"], level["done"], level["failed"], level["cancelled"], level["not_run"])
    assert counts == (6, 2, 2, 1, 1)
    assert level["failures"] == [{"code": "out_of_memory", "count": 2, "message": "no room"}]
    assert level["total"]["max"] == 4.0
    assert level["stages"]["wait"]["count"] == 2
    assert level["images_per_min"] == 60 * 2 / 30.0
    assert len(level["samples"]) == 6


def test_a_level_without_a_success_has_no_figures() -> None:
    """A level whose jobs all failed has no times, no stages, no cost and no throughput."""
    level = level_figures(1, [Sample(1, FAILED, 0.0, 1.0, error=("network", "gone"))], PRICE, None)

    assert (level["total"], level["stages"], level["cost"], level["images_per_min"]) == (None, {}, None, None)


def test_the_cost_of_an_image() -> None:
    """By execution, the seconds of each job are rounded up. By time, all workers are paid for the whole level.

    Without execution times there is no cost, and without a number of workers there is none by time.
    """
    done = [succeeded_job(1, 0.0, 2.0), succeeded_job(2, 0.0, 4.0, 2.0)]

    assert cost(done, 3.5, PRICE, 2) == {"by_execution": 0.002, "by_time": 0.004}
    assert cost(done, 3.5, PRICE, None) == {"by_execution": 0.002}
    assert cost([succeeded_job(1, 0.0, 2.0, None)], 2.0, PRICE, 1) is None


def test_the_cost_of_a_level_is_that_of_its_workers() -> None:
    """If the number of workers is known their time counts, otherwise the execution times of the jobs."""
    assert cost_per_image({"cost": {"by_execution": 0.002, "by_time": 0.004}}) == 0.004
    assert cost_per_image({"cost": {"by_execution": 0.002}}) == 0.002
    assert cost_per_image({"cost": None}) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0 ms"), (0.1234, "123 ms"), (1.2, "1.20 s"), (12.34, "12.3 s"), (123.4, "123 s")],
)
def test_a_duration_has_at_most_three_digits(value: float | None, text: str) -> None:
    """A duration below a second is in ms, others in seconds; a missing value is printed as `-`."""
    assert duration(value) == text


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [(0.004, 0.0061, "4 / 6 ms"), (9.5, 9.99, "9500 / 9990 ms"), (9.5, 12.0, "9.5 / 12.0 s")],
)
def test_two_durations_have_one_unit(first: float, second: float, text: str) -> None:
    """p50 and p95 are in the unit that suits p95."""
    assert duration_pair(first, second) == text


def test_a_table_is_aligned() -> None:
    """The first column is aligned left, the others right. Dollars are printed as cents, a missing value as `-`."""
    assert table([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc   d"
    assert (cents(0.0037), cents(None)) == ("0.370 ¢", "-")
