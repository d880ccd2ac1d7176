"""`comfy-client deploy` on a terminal: it asks, and Ctrl-C ends it anywhere without harm."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from simulators.waiting import until
from tests.cli.test_terminal import Terminal
from tests.deploy.conftest import Desk

pytestmark = pytest.mark.slow


def terminal_of(desk: Desk, *arguments: str) -> Terminal:
    """Return the command on a terminal, in the folder of the desk."""
    return Terminal(arguments, desk.account.environment(), Path.cwd())


@pytest.mark.parametrize(("answer", "status", "endpoints"), [("y", 0, 1), ("", 1, 0), ("no", 1, 0)])
def test_it_asks_before_it_changes_anything(desk: Desk, answer: str, status: int, endpoints: int) -> None:
    """The difference first, then the question; only a yes is one."""
    terminal = terminal_of(desk, "deploy", "--no-picture")
    assert until(lambda: "[y/N]" in terminal.shown), terminal.shown
    assert desk.account.writes() == []
    terminal.type(answer)

    assert terminal.end()[0] == status, terminal.shown
    assert len(desk.account.endpoints) == endpoints
    assert "create endpoint flux" in terminal.shown
    if not endpoints:
        assert "Nothing was changed." in terminal.shown


def test_ctrl_c_at_the_picture_cancels_its_job_and_the_next_run_goes_on(desk: Desk) -> None:
    """The endpoint stays, no job is left that costs something, and nothing is made twice."""
    desk.platform.faults.cold_start(60)
    try:
        terminal = terminal_of(desk, "deploy", "--yes")
        assert until(lambda: "a cold start" in terminal.shown), terminal.shown
        terminal.process.send_signal(signal.SIGINT)
        status, out = terminal.end()
    finally:
        desk.platform.faults.clear()
    again = desk.deploy("--picture")

    assert (status, out) == (130, "")
    assert "interrupted" in terminal.shown.lower()
    assert "Traceback" not in terminal.shown
    assert again.status == 0
    assert "Nothing to do" in again.err
    assert len(desk.account.endpoints) == 1
