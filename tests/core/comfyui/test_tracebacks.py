"""The lines of a node's traceback in the error of a failed prompt."""

from __future__ import annotations

import pytest

from comfy_core.comfyui.responses import SHOWN_CHARACTERS, SHOWN_LINES, Failed, read_history

RUN = "run-0123456789abcdef0123456789abcdef"


def lines_of(traceback: object) -> list[str]:
    """Return the `log_tail` of the error of a prompt that failed with this traceback."""
    error = {"node_id": "8", "node_type": "KSampler", "exception_message": "x", "exception_type": "ValueError"}
    messages = [["execution_error", {**error, "traceback": traceback}]]
    outcome = read_history({"1": {"outputs": {}, "status": {"status_str": "error", "messages": messages}}}, "1")
    assert isinstance(outcome, Failed)
    return outcome.error().report.log_tail


def test_the_lines_have_no_folders_and_no_names_of_uploads() -> None:
    """Entries are split into lines. Folders, escape sequences, names of uploads and lines of marks are removed."""
    entries = [
        f'  File "/comfyui/nodes.py", line 7, in load\n    open("/comfyui/input/{RUN}/0.png")\n',
        "\x1b[31mend\n",
    ]

    assert lines_of(entries) == ['  File "nodes.py", line 7, in load', '    open("0.png")', "end"]
    assert lines_of([f"    load({RUN}/0.png)"]) == ["    load(run-…)"]


@pytest.mark.parametrize("entries", [["x" * 1_000_000] * 500, ["x\n" * 1_000_000]], ids=["long", "many"])
def test_the_lines_are_limited(entries: list[str]) -> None:
    """An error has at most 20 lines of 300 characters."""
    lines = lines_of(entries)

    assert len(lines) <= SHOWN_LINES
    assert max(map(len, lines)) <= SHOWN_CHARACTERS


@pytest.mark.parametrize("traceback", [None, [], {}, "text", 7])
def test_without_a_traceback_there_are_no_lines(traceback: object) -> None:
    """Anything but a list of entries gives no lines."""
    assert lines_of(traceback) == []
