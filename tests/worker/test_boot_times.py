"""Boot times, measured from process start."""

from __future__ import annotations

import logging
import subprocess
import sys
import time

import psutil
import pytest

from bench.worker_setup import ROOT
from worker.boot_times import BootTimes, process_age_s

pytestmark = pytest.mark.slow


def test_boot_times_are_measured_from_process_start(caplog: pytest.LogCaptureFixture) -> None:
    """`log` writes one record, whose field `boot_s` has every step in order, in seconds since the process started."""
    times = BootTimes(lambda: 5.0)
    times.note("python")
    with caplog.at_level(logging.INFO):
        times.log("1.2.3")
    [record] = caplog.records
    steps = record.__dict__["boot_s"]

    assert record.getMessage() == "booted"
    assert list(steps) == ["python", "total"]
    assert 5.0 <= steps["python"] <= steps["total"] < 60.0


def test_the_process_s_age_includes_the_start_of_python() -> None:
    """The age counts from the start of the process, so it includes the start of Python itself."""
    began_at = psutil.Process().create_time()
    script = "from worker.boot_times import process_age_s; import time; print(process_age_s(), time.time())"
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    age_s, _ = map(float, ended.stdout.split())
    least_s = time.time() - began_at
    own_age_s = process_age_s()

    assert 0.01 <= age_s < 60
    assert least_s - 1.5 <= own_age_s <= time.time() - began_at + 1.5
