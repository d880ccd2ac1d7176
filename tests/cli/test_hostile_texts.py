"""Texts of others with terminal escape sequences: they are shown, and the terminal does not execute them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_entry, png
from tests.cli.conftest import Shell
from tests.cli.terminals import Terminal

pytestmark = pytest.mark.slow
HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202ebad\x7f"
SHOWN = r"\u001b]0;owned\u0007\u001b[2J\u000d\u009b31m\u202ebad\u007f"
EXECUTED = re.compile("\x1b[\\]]|\x1b\\[2J|[\x07\x7f-\x9f\u202e]")


def respond(job: Body) -> Body:
    """Return an error, or a result whose texts are hostile. A seed of 2 means an error."""
    if job["input"]["seed"] == 2:
        return {"error": ErrorReport(ErrorCode.EXECUTION_FAILED, HOSTILE, {"log_tail": [HOSTILE]}).to_json()}
    image = image_entry(png(8), 1) | {"filename": f"../../{HOSTILE}.png"}
    text = image_entry(b"x", 1, mime_type="text/plain") | {"filename": f"../../{HOSTILE}.txt"}
    output = {"images": [image], "files": [text], "texts": [HOSTILE], "warnings": [HOSTILE]}
    return {"output": {**output, "workflow": f"../../{HOSTILE}", "inputs": {"prompt": HOSTILE}}}


@pytest.fixture
def platform() -> Iterator[RunPodPlatform]:
    """A platform whose worker is hostile."""
    with RunPodPlatform(long_poll_s=0.1) as platform, ScriptedWorker(platform, respond):
        yield platform


COMMANDS = [
    ["txt2img", HOSTILE, "--seed", "1"],
    ["txt2img", HOSTILE, "--seed", "2"],
    ["jobs"],
    ["logs", "--last"],
    ["status", "--last"],
    ["wait", HOSTILE],
    [HOSTILE],
]


@pytest.mark.parametrize("stream", [[], ["--json"], ["--json", "--stream"]], ids=" ".join)
def test_no_output_has_control_characters(shell: Shell, tmp_path: Path, stream: list[str]) -> None:
    """Neither text nor JSON has escape sequences of a prompt, a worker's texts, a file name or an argument.

    The value of the JSON is unchanged. The files are in the current folder.
    """
    for command in COMMANDS:
        flags = stream[: 2 if command[0] in {"txt2img", "wait"} else 1]
        completed = shell(*command, *flags)
        assert not EXECUTED.search(completed.out + completed.err), command
    prompts = {job["inputs"]["prompt"] for job in shell("jobs", "--json").json["jobs"]}

    assert prompts == {HOSTILE}
    assert [path for path in tmp_path.iterdir() if "bad" in path.name]
    assert not [path for folder in tmp_path.parents[:2] for path in folder.glob("*bad*")]


def test_a_terminal_executes_no_sequence_of_others(platform: RunPodPlatform, tmp_path: Path) -> None:
    """On a terminal, too, for the lines above the progress display, the table of jobs and the errors."""
    environment = {**platform.client_env(), "COMFY_CLIENT_JOB_LOG": str(tmp_path / "jobs.sqlite3")}
    screens = ""
    for command in COMMANDS:
        terminal = Terminal(command, environment, tmp_path, 200, is_stdout_too=True)
        terminal.wait()
        assert not EXECUTED.search(terminal.screen), command
        screens += terminal.screen
    assert f"execution_failed: {SHOWN}" in screens
