"""`comfy-client deploy` on a terminal: confirmation, and Ctrl-C before or during the test image."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from simulators.waiting import until
from tests.cli.terminals import Terminal
from tests.deploy.conftest import DeploySetup

pytestmark = pytest.mark.slow


def start_on_terminal(deploy_setup: DeploySetup, *arguments: str) -> Terminal:
    """Start `comfy-client` with `arguments` on a terminal, in the current folder (the fixture's)."""
    return Terminal(arguments, deploy_setup.account.environment(), Path.cwd())


@pytest.mark.parametrize(("response", "status", "endpoints"), [("y", 0, 1), ("", 1, 0), ("no", 1, 0)])
def test_it_asks_for_confirmation(deploy_setup: DeploySetup, response: str, status: int, endpoints: int) -> None:
    """The command prints the changes and the question, and sends nothing until the reply. Only `y` deploys."""
    terminal = start_on_terminal(deploy_setup, "deploy", "--no-image")
    assert until(lambda: "[y/N]" in terminal.screen), terminal.screen
    assert deploy_setup.account.writes() == []
    terminal.type(response)

    assert terminal.wait()[0] == status, terminal.screen
    assert len(deploy_setup.account.endpoints) == endpoints
    assert "create endpoint flux" in terminal.screen
    if not endpoints:
        assert "Nothing was changed." in terminal.screen


@pytest.mark.parametrize("is_worker_ready", [False, True], ids=["waiting for a worker", "generating the image"])
def test_ctrl_c_leaves_the_endpoint_and_no_job(deploy_setup: DeploySetup, *, is_worker_ready: bool) -> None:
    """The endpoint is kept, a job that was sent is cancelled, and the next run creates no second endpoint."""
    platform = deploy_setup.platform
    earlier_jobs = set(platform.jobs)
    platform.faults.cold_start(60)
    if is_worker_ready:
        platform.faults.respond("health", 200, body={"jobs": {}, "workers": {"idle": 1, "ready": 1}})
    try:
        terminal = start_on_terminal(deploy_setup, "deploy", "--yes")
        assert until(lambda: "a cold start" in terminal.screen), terminal.screen
        terminal.process.send_signal(signal.SIGINT)
        status, out = terminal.wait()
    finally:
        platform.faults.clear()
    job_states = [job.state.value for job_id, job in platform.jobs.items() if job_id not in earlier_jobs]
    again = deploy_setup.deploy("--image")

    assert (status, out) == (130, "")
    assert "interrupted" in terminal.screen.lower()
    assert "Traceback" not in terminal.screen
    assert job_states == (["CANCELLED"] if is_worker_ready else [])
    assert again.status == 0
    assert "Nothing to do" in again.err
    assert len(deploy_setup.account.endpoints) == 1
