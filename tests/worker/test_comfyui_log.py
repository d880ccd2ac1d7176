"""Which lines of ComfyUI's log a job's error may contain: only lines of that job, sanitized and shortened."""

from __future__ import annotations

import io

import pytest

from comfy_core.comfyui.responses import SHOWN_CHARACTERS, SHOWN_LINES, cleaned_line
from worker.comfyui_log import KEPT_LINES, ComfyLog
from worker.leases import Leases


def read_lines(log: ComfyLog, *lines: str) -> None:
    """Let `log` read these lines, as if ComfyUI had written them."""
    log.read(io.StringIO("".join(f"{line}\n" for line in lines)))


def test_an_error_shows_the_lines_since_its_job_began() -> None:
    """The excerpt for a job has only the lines since the job began; earlier lines belong to other jobs."""
    log, leases = ComfyLog(), Leases()
    read_lines(log, "of another job")
    lease = leases.begin(0, log.next_line)
    read_lines(log, "of this job")

    assert log.excerpt_for(lease) == ["of this job"]


def test_lines_of_overlapping_jobs_are_not_shown() -> None:
    """If two jobs overlap, the excerpts for both are empty, because a line may belong to the other job."""
    log, leases = ComfyLog(), Leases()
    first = leases.begin(0, log.next_line)
    second = leases.begin(0, log.next_line)
    leases.end(second)
    read_lines(log, "a line")

    assert log.excerpt_for(first) == log.excerpt_for(second) == []


def test_lines_are_not_shown_while_an_earlier_prompt_still_runs() -> None:
    """A lease with `is_shared` has an empty excerpt, because an earlier prompt may still write lines."""
    log, leases = ComfyLog(), Leases()
    lease = leases.begin(0, log.next_line, is_shared=True)
    read_lines(log, "a line")

    assert log.excerpt_for(lease) == []


def test_at_most_twenty_lines_of_300_characters_are_returned() -> None:
    """The excerpt has the last SHOWN_LINES lines, each cut to SHOWN_CHARACTERS."""
    log, leases = ComfyLog(), Leases()
    lease = leases.begin(0, log.next_line)
    read_lines(log, *(f"{number} {'x' * 1000}" for number in range(KEPT_LINES + 50)))
    shown = log.excerpt_for(lease)

    assert [line.split()[0] for line in shown] == [str(KEPT_LINES + 50 - SHOWN_LINES + n) for n in range(SHOWN_LINES)]
    assert {len(line) for line in shown} == {SHOWN_CHARACTERS}


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[32m[INFO]\x1b[0m got prompt", "[INFO] got prompt"),
        ("\x1b[1;38;5;208mwarm\x1b[m \x1b]0;title\x07done", "warm done"),
        (" 45%|####\r 50%|#####", " 45%|#### 50%|#####"),
        ("cannot open /tmp/comfyui/input/run-0123456789abcdef0123456789abcdef/0.png", "cannot open 0.png"),
        ("no file 'run-0123456789abcdef0123456789abcdef/0.png'", "no file 'run-…'"),
        ('File "/comfyui/nodes.py", line 5', 'File "nodes.py", line 5'),
    ],
)
def test_lines_are_sanitized(line: str, shown: str) -> None:
    """Lines contain no escape sequences, control characters, folders, or names of uploaded files."""
    assert cleaned_line(line) == shown
