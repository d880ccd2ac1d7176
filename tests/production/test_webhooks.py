"""handler.py in production mode with webhooks: the receiver of docs/webhooks.md, one that is killed, and a slow one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench.faults.jobs import cancel
from bench.worker_setup import ROOT, code_of, running_worker
from simulators.http_server import free_port
from simulators.waiting import until
from tests.fakes.webhook_receiver import SECRET, SECRETS, WebhookReceiver
from tests.processes import killed_at_end

pytestmark = pytest.mark.slow
RETRIED_S = 15.0
"""A result that a receiver holds back would arrive after this time: the timeout of one attempt."""


def variables(url: str) -> Mapping[str, str]:
    """Return the worker's variables for a receiver on this machine."""
    return {"WORKER_WEBHOOK_SECRETS": SECRETS, "WORKER_WEBHOOK_PRIVATE_HOSTS": url.removeprefix("http://")}


def receiver_of_the_page() -> str:
    """Return the program of docs/webhooks.md."""
    page = (ROOT / "docs" / "webhooks.md").read_text()
    programs: list[str] = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    [program] = programs
    return program


def test_the_receiver_of_the_page_is_killed_and_gets_the_event_later(tmp_path: Path) -> None:
    """A job ends while its receiver is down. The event arrives once the receiver runs, and is not sent again."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "receiver.py").write_text(receiver_of_the_page())
    with running_worker(environment=variables(url)) as setup:
        job = setup.run(webhook={"url": f"{url}/hook"})
        assert code_of(job) is None
        assert until(lambda: "was not reached" in setup.worker.log)
        with killed_at_end(
            subprocess.Popen(
                [sys.executable, str(tmp_path / "receiver.py")],
                env={**os.environ, "WEBHOOK_SECRET": SECRET, "PORT": str(port)},
                stdout=subprocess.PIPE,
                text=True,
            )
        ) as receiver:
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == f"completed {job.id}\n"
            assert until(lambda: "webhook: completed delivered" in setup.worker.log)
            setup.worker.terminate()
            assert setup.worker.wait(60) == 0
            receiver.terminate()
            assert receiver.stdout.read() == ""
        assert SECRET not in setup.worker.log


def test_a_slow_receiver_delays_no_result() -> None:
    """A receiver that does not respond holds neither the result nor the next job, and gets one event for each job."""
    with WebhookReceiver() as receiver, running_worker(environment=variables(receiver.url)) as setup:
        receiver.released.clear()
        begun_at = time.monotonic()
        jobs = [setup.run(webhook={"url": receiver.url}, seed=seed) for seed in (1, 2)]
        took_s = time.monotonic() - begun_at
        receiver.await_events(2)
        receiver.released.set()
        setup.worker.terminate()
        assert setup.worker.wait(60) == 0

        assert [code_of(job) for job in jobs] == [None, None]
        assert took_s < RETRIED_S
        assert [received.event["data"]["job_id"] for received in receiver.received] == [job.id for job in jobs]


def test_progress_and_a_cancelled_job_are_reported() -> None:
    """A job that RunPod cancels while it samples has sent progress, and then sends `failed` with `cancelled`."""
    with WebhookReceiver() as receiver, running_worker(step_s=0.3, environment=variables(receiver.url)) as setup:
        events = ["progress", "completed", "failed"]
        job_id = setup.submit(steps=100, webhook={"url": receiver.url, "events": events})
        setup.await_sampling(job_id)
        cancel(setup, job_id)
        receiver.await_events(2)

        first, last = receiver.received[0], receiver.received[-1]
        assert first.event["data"]["progress"]["stage"]
        assert last.event["data"]["error"]["code"] == "cancelled"
