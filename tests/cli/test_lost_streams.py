"""Streams that are closed or full: no job is lost, and no error is a traceback."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import png
from tests.cli.conftest import Shell
from tests.cli.test_nothing_is_lost import COMMAND, start
from tests.processes import killed_at_end

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ARGUMENTS = ("txt2img", "a knight", "--seed=7")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2> >(exec 0<&-)"])
@pytest.mark.parametrize("flags", [(), ("--json", "--stream")], ids=" ".join)
def test_messages_that_cannot_be_written_fail_no_job(shell: Shell, redirection: str, flags: tuple[str, ...]) -> None:
    """With a stderr that is closed, full or unread, the image is saved and stdout has the result."""
    process = start(shell, *ARGUMENTS, "-o", "x.png", *flags, prefix=("bash", "-c", f'exec "$@" {redirection}', "bash"))
    out, err = process.communicate(timeout=60)

    assert (process.returncode, err) == (0, "")
    assert "x.png" in out
    assert Path("x.png").read_bytes() == png(8, 7)


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
@pytest.mark.parametrize("flags", [("-o", "x.png"), ("-o", "x.png", "--json"), ("-o", "-")], ids=" ".join)
def test_a_result_that_cannot_be_shown_is_saved(shell: Shell, redirection: str, flags: tuple[str, ...]) -> None:
    """With a stdout that is closed or full, the image is saved, and the error is one line."""
    process = start(shell, *ARGUMENTS, *flags, prefix=("bash", "-c", f'exec "$@" {redirection}', "bash"))
    _, err = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "Traceback" not in err
    assert "--json" in flags or "stdout cannot be written" in err
    assert [path.read_bytes() for path in Path().glob("*.png") if path.stem not in {"in", "mask"}] == [png(8, 7)]


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (("init", "--endpoint-id=ep", "--key-stdin", "--yes"), 3, "RUNPOD_API_KEY"),
        (("init",), 2, "without a terminal"),
    ],
    ids=["key", "questions"],
)
def test_a_closed_stdin_is_an_empty_one(shell: Shell, arguments: tuple[str, ...], status: int, reason: str) -> None:
    """A command that reads from a closed stdin has the error of a missing value."""
    process = start(shell, *arguments, prefix=("bash", "-c", 'exec env -u RUNPOD_API_KEY "$@" <&-', "bash"))
    _, err = process.communicate(timeout=60)

    assert process.returncode == status, err
    assert reason in err
    assert "Traceback" not in err


def test_a_closed_terminal_cancels_the_job() -> None:
    """When the terminal is gone, nothing can be written, and the job is cancelled nevertheless."""
    near, far = pty.openpty()
    with RunPodPlatform(long_poll_s=0.1) as platform:
        environment = {**os.environ, **platform.client_env(), "TERM": "xterm", "PYTHONPATH": str(ROOT)}
        with killed_at_end(subprocess.Popen([*COMMAND, *ARGUMENTS], env=environment, stderr=far)) as process:
            os.close(far)
            shown = b""
            while b"queued" not in shown:
                shown += os.read(near, 4096)
            os.close(near)
            process.send_signal(signal.SIGHUP)
            status = process.wait(60)
        [job] = platform.jobs.values()

    assert status == 129
    assert job.state.value == "CANCELLED"
