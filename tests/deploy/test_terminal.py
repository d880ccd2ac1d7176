"""`comfy-client deploy` on a terminal: it asks for confirmation, and Ctrl-C stops it safely at any point."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from simulators.waiting import until
from tests.cli.test_terminal import Terminal
from tests.deploy.conftest import DeploySetup

pytestmark = pytest.mark.slow


def terminal_of(deploy_setup: DeploySetup, *arguments: str) -> Terminal:
    """Return the command on a terminal, in the setup's folder."""
    return Terminal(arguments, deploy_setup.account.environment(), Path.cwd())


@pytest.mark.parametrize(("response", "status", "endpoints"), [("y", 0, 1), ("", 1, 0), ("no", 1, 0)])
def test_it_asks_for_confirmation(deploy_setup: DeploySetup, response: str, status: int, endpoints: int) -> None:
    """The command prints the difference, then the question. Only a yes is accepted."""
    terminal = terminal_of(deploy_setup, "deploy", "--no-picture")
    assert until(lambda: "[y/N]" in terminal.screen), terminal.screen
    assert deploy_setup.account.writes() == []
    terminal.type(response)

    assert terminal.end()[0] == status, terminal.screen
    assert len(deploy_setup.account.endpoints) == endpoints
    assert "create endpoint flux" in terminal.screen
    if not endpoints:
        assert "Nothing was changed." in terminal.screen


def test_ctrl_c_during_the_test_image_cancels_its_job(deploy_setup: DeploySetup) -> None:
    """The endpoint is kept, no job is left running, and the next run creates nothing twice."""
    deploy_setup.platform.faults.cold_start(60)
    try:
        terminal = terminal_of(deploy_setup, "deploy", "--yes")
        assert until(lambda: "a cold start" in terminal.screen), terminal.screen
        terminal.process.send_signal(signal.SIGINT)
        status, out = terminal.end()
    finally:
        deploy_setup.platform.faults.clear()
    again = deploy_setup.deploy("--picture")

    assert (status, out) == (130, "")
    assert "interrupted" in terminal.screen.lower()
    assert "Traceback" not in terminal.screen
    assert again.status == 0
    assert "Nothing to do" in again.err
    assert len(deploy_setup.account.endpoints) == 1
