"""`comfy-client deploy` on a terminal: it asks, and Ctrl-C ends it anywhere without harm."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading

import pytest

from tests.deploy.conftest import Desk
from tests.stage import ROOT
from tests.waiting import until


class Terminal:
    """The command with stdin and stderr on a terminal, and what was shown there."""

    def __init__(self, desk: Desk, *arguments: str) -> None:
        self._near, far = pty.openpty()
        self._pieces: list[bytes] = []
        self.process = subprocess.Popen(  # ended by `end`
            [sys.executable, "-m", "comfy_client.cli.main", *arguments],
            env={**os.environ, **desk.account.environment(), "PYTHONPATH": str(ROOT)},
            stdin=far,
            stdout=subprocess.PIPE,
            stderr=far,
            text=True,
        )
        os.close(far)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while piece := os.read(self._near, 4096):
                self._pieces.append(piece)
        except OSError:  # Linux: the other side was closed
            pass

    @property
    def shown(self) -> str:
        """What stands on the terminal so far."""
        return b"".join(self._pieces).decode("utf-8", "replace")

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self._near, f"{text}\n".encode())

    def end(self) -> tuple[int, str]:
        """Return the exit status, and what went to stdout."""
        with self.process:
            out, _ = self.process.communicate(timeout=60)
        self._reader.join(10)
        os.close(self._near)
        return self.process.returncode, out


@pytest.mark.parametrize(("answer", "status", "endpoints"), [("y", 0, 1), ("", 1, 0), ("no", 1, 0)])
def test_it_asks_before_it_changes_anything(desk: Desk, answer: str, status: int, endpoints: int) -> None:
    """The difference first, then the question; only a yes is one."""
    terminal = Terminal(desk, "deploy", "--no-picture")
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
        terminal = Terminal(desk, "deploy", "--yes")
        assert until(lambda: "a cold start" in terminal.shown), terminal.shown
        terminal.process.send_signal(signal.SIGINT)
        status, out = terminal.end()
    finally:
        desk.platform.faults.clear()
    again = desk.deploy("--picture")

    assert (status, out) == (130, "")
    assert "interrupted" in terminal.shown
    assert "Traceback" not in terminal.shown
    assert again.status == 0
    assert "Nothing to do" in again.err
    assert len(desk.account.endpoints) == 1
