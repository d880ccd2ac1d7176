"""Which lines of ComfyUI's log an error may contain: only those of its job, sanitized and shortened."""

from __future__ import annotations

import io

import pytest

from worker.comfyui_log import KEPT_LINES, SHOWN_CHARACTERS, SHOWN_LINES, ComfyLog, cleaned
from worker.leases import Leases


def written(log: ComfyLog, *lines: str) -> None:
    """Write lines as ComfyUI would."""
    log.read(io.StringIO("".join(f"{line}\n" for line in lines)))


def test_an_error_shows_the_lines_since_its_job_began() -> None:
    """An error has only the log lines since its job began; earlier lines belong to other jobs."""
    log, leases = ComfyLog(), Leases()
    written(log, "of another job")
    lease = leases.begin(0, log.next_line)
    written(log, "of this job")

    assert log.excerpt_for(lease) == ["of this job"]


def test_lines_of_overlapping_jobs_are_not_shown() -> None:
    """If two jobs overlapped, the error of neither has lines that may belong to the other."""
    log, leases = ComfyLog(), Leases()
    first = leases.begin(0, log.next_line)
    second = leases.begin(0, log.next_line)
    leases.end(second)
    written(log, "a line")

    assert log.excerpt_for(first) == log.excerpt_for(second) == []


def test_lines_are_not_shown_while_an_earlier_prompt_still_runs() -> None:
    """An interrupted prompt that keeps running still writes lines."""
    log, leases = ComfyLog(), Leases()
    lease = leases.begin(0, log.next_line, is_shared=True)
    written(log, "a line")

    assert log.excerpt_for(lease) == []


def test_at_most_twenty_lines_of_300_characters_are_returned() -> None:
    """The last lines are returned, even if more were written than are kept."""
    log, leases = ComfyLog(), Leases()
    lease = leases.begin(0, log.next_line)
    written(log, *(f"{number} {'x' * 1000}" for number in range(KEPT_LINES + 50)))
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
    assert cleaned(line) == shown
