"""Lists of commands: tables in the width of a terminal, and plain columns without one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from comfy_core.error_codes import ErrorCode
from simulators.runpod.queue_api import RunPodPlatform
from simulators.waiting import until
from tests.cli.conftest import Shell
from tests.cli.terminals import Terminal

COLOR = re.compile("\x1b\\[[0-9;]*(3[0-7]|9[0-7]|38;)[0-9;]*m")
ASCII = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}


def test_without_a_terminal_each_row_is_a_line(shell: Shell) -> None:
    """Columns are aligned, nothing is wrapped or cut, and there is no heading."""
    lines = shell("errors").out.splitlines()

    assert [line.split()[0] for line in lines] == [code.value for code in ErrorCode]
    assert [re.split("  +", line)[1:] for line in lines] == [[code.retry.value, code.cause] for code in ErrorCode]
    assert len({line.index(f"  {code.cause}") for line, code in zip(lines, ErrorCode, strict=True)}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("columns", [60, 100, 160])
def test_a_table_fits_into_the_terminal(tmp_path: Path, columns: int) -> None:
    """Only the column with prose is wrapped; each code is in one piece, and all words are there."""
    terminal = Terminal(["errors"], {}, tmp_path, columns, is_stdout_too=True)
    assert terminal.wait()[0] == 0
    first_words = [line.split()[0] for line in terminal.lines if not line.startswith(" ")]

    assert max(map(len, re.sub("\x1b\\[[0-9;]*m", "", terminal.screen).splitlines())) <= columns
    assert first_words == ["CODE", *(code.value for code in ErrorCode)]
    words = terminal.text.split()
    assert all(word in words for code in ErrorCode for word in code.cause.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "is_colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_marks_have_colors_if_the_terminal_has(tmp_path: Path, variables: dict[str, str], is_colored: bool) -> None:
    """NO_COLOR and TERM=dumb switch colors off."""
    terminal = Terminal(["doctor"], {"RUNPOD_API_KEY": "", **variables}, tmp_path, is_stdout_too=True)
    assert terminal.wait()[0] == 3

    assert "!!" in terminal.text
    assert bool(COLOR.search(terminal.screen)) is is_colored


@pytest.mark.slow
def test_a_console_without_unicode_gets_ascii(tmp_path: Path) -> None:
    """The bar is drawn with ASCII characters, which also goes for what cannot be encoded."""
    with RunPodPlatform(long_poll_s=0.1) as platform:
        terminal = Terminal(["txt2img", "a knight"], {**platform.client_env(), **ASCII}, tmp_path)
        terminal.wait_for_lines(r"^[- ]* +0% \d:\d\d$", "^queued$")
        terminal.process.terminate()
        terminal.wait()

    assert terminal.output.isascii()
    assert "\\u" not in terminal.screen


@pytest.mark.slow
def test_a_dumb_terminal_gets_lines(tmp_path: Path) -> None:
    """With TERM=dumb, progress is lines as in a log, without any escape sequence."""
    with RunPodPlatform(long_poll_s=0.1) as platform:
        terminal = Terminal(["txt2img", "a knight"], {**platform.client_env(), "TERM": "dumb"}, tmp_path)
        assert until(lambda: re.search(r"\[ +\d s\] queued", terminal.screen)), terminal.screen
        terminal.process.terminate()
        terminal.wait()

    assert "\x1b" not in terminal.screen
