"""The help: grouped commands and flags, in the width of the terminal."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Mapping

import pytest

from comfy_client.cli.help import FLAG_GROUPS
from comfy_client.cli.main import COMMANDS, GROUPS, all_commands
from comfy_core.workflows import Workflow
from tests.cli.conftest import Shell
from tests.cli.terminals import COMMAND


def test_every_command_is_in_one_group() -> None:
    """GROUPS has each command once, and `help`."""
    assert Counter(name for names in GROUPS.values() for name in names) == Counter([*COMMANDS, "help"])


def test_every_grouped_flag_exists(workflows: Mapping[str, Workflow]) -> None:
    """FLAG_GROUPS has no flag twice, and none that no command has."""
    grouped = Counter(name for names in FLAG_GROUPS.values() for name in names)

    assert set(grouped.values()) == {1}
    assert set(grouped) <= {flag.names[0] for command in all_commands(workflows) for flag in command.flags}


def test_the_command_alone_shows_the_help(shell: Shell) -> None:
    """`comfy-client` without arguments is `comfy-client help`, also with --json."""
    assert shell() == shell("help") == shell("--help")
    assert shell().status == 0
    assert shell("--json").json == {"help": shell().out.rstrip("\n")}


def test_flags_are_grouped(shell: Shell) -> None:
    """The usage is one short line with what is required; then come the groups, with --help at the end."""
    lines = shell("img2img", "--help").out.splitlines()
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]

    assert lines[0] == "usage: comfy-client img2img PROMPT --image PATH|URL [options]"
    assert titles == ["positional arguments:", "image:", "sampling:", "output:", "job:", "options:"]
    assert lines[-1].split() == ["-h,", "--help", "Show", "this", "help."]


@pytest.mark.slow
@pytest.mark.parametrize("columns", [60, 100, 160])
@pytest.mark.parametrize("words", [["help"], ["help", "txt2img"], ["help", "models"]], ids=" ".join)
def test_the_help_fits_into_the_terminal(columns: int, words: list[str]) -> None:
    """No line is longer than the terminal is wide, except a usage that has no place for a break."""
    environment = {**os.environ, "COLUMNS": str(columns)}
    ended = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=True, env=environment)

    too_long = [line for line in ended.stdout.splitlines() if len(line) > columns and not line.startswith("usage: ")]
    assert too_long == []
