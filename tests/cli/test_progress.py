"""Progress in a log: a line at each change of state, and one at each interval without a change."""

from __future__ import annotations

import io
import re

from comfy_client.cli.progress import ProgressLog
from comfy_client.job import Downloading, ProviderUnavailable, Queued, Running, Sampling, Waiting
from simulators.waiting import until


def test_each_change_of_state_is_a_line() -> None:
    """Further steps of one image cause no line; the next line has the latest step."""
    err = io.StringIO()
    clock = iter(range(0, 1000, 10))
    log = ProgressLog(err, clock=lambda: float(next(clock)))
    for event in (
        Queued("job-1"),
        Waiting("cold", "1 worker is starting"),
        Waiting("cold", "1 worker is starting"),
        ProviderUnavailable("RunPod did not respond"),
        Running("w"),
        Downloading(5_000_000, 300_000_000),
        Sampling(1, 2, 1, 20, 2),
        Sampling(1, 2, 9, 20, 22),
    ):
        log.show(event)
    log.tick()

    assert [re.sub(r"^\[ *\d+ s\] ", "", line) for line in err.getvalue().splitlines()] == [
        "queued",
        "queued: 1 worker is starting",
        "queued: RunPod did not respond",
        "running",
        "downloading models, 5 of 300 MB (0%)",
        "sampling, image 1 of 2, step 1 of 20 (2%)",
        "sampling, image 1 of 2, step 9 of 20 (22%)",
    ]


def test_a_line_at_each_interval() -> None:
    """At each interval a line with the elapsed time is printed."""
    err = io.StringIO()
    with ProgressLog(err, tick_s=0.05) as log:
        log.show(Queued("job-1"))
        assert until(lambda: err.getvalue().count("queued") >= 4)
