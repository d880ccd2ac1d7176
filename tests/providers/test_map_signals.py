"""SIGTERM during `map`, handled as docs/client.md recommends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from bench.worker_setup import ROOT
from simulators.runpod.queue_api import RunPodPlatform
from tests.processes import killed_at_end

pytestmark = pytest.mark.slow
MAP = """
import signal
from comfy_client import client_from_env
{advice}
with client_from_env() as client:
    list(client.map(({{"prompt": "x", "seed": seed}} for seed in range(20)), 4))
"""


def test_a_map_that_is_terminated_cancels_its_jobs() -> None:
    """With the lines of docs/client.md, SIGTERM ends the program with an error, and all its jobs are cancelled."""
    page = (ROOT / "docs" / "client.md").read_text()
    [advice] = re.findall(r"<!-- Run by tests/providers/test_map_signals.py. -->\n```python\n(.*?)```", page, re.DOTALL)
    with RunPodPlatform(long_poll_s=0.1) as platform:
        command = [sys.executable, "-c", MAP.format(advice=advice)]
        environment = {**os.environ, **platform.client_env(), "PYTHONPATH": str(ROOT)}
        with killed_at_end(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)) as process:
            platform.wait_until(lambda: len(platform.jobs) >= 4)
            process.send_signal(signal.SIGTERM)

            assert process.wait(60) != 0
        assert {job.state.value for job in platform.jobs.values()} == {"CANCELLED"}
