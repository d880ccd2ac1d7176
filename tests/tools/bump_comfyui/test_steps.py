"""Steps that are repeated only if their inputs changed, and their commands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools.bump_comfyui.steps import StepError, Steps


def test_a_step_that_succeeded_is_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run with the same inputs only prints the result of the first run; a changed file is another input."""
    source, steps, numbers = tmp_path / "code.py", Steps(tmp_path), iter(range(1, 9))
    for text in ("a", "a", "b"):
        source.write_text(text)
        steps.run("lock", (source,), lambda: f"{next(numbers)} packages")

    first, second, third = capsys.readouterr().out.splitlines()
    assert first.endswith("s   1 packages")
    assert second.split() == ["lock", "done", "1", "packages"]
    assert third.endswith("s   2 packages")


def test_a_step_that_failed_is_repeated(tmp_path: Path) -> None:
    """A failed step raises an error with its name, and runs again the next time."""
    steps, problems = Steps(tmp_path), [StepError("Install uv.")]

    def lock() -> str:
        if problems:
            raise problems.pop()
        return "done"

    with pytest.raises(StepError, match=r"^lock failed after .* s\. Install uv\.$"):
        steps.run("lock", (), lock)
    steps.run("lock", (), lock)


@pytest.mark.slow
def test_a_failed_command_says_what_to_do(tmp_path: Path) -> None:
    """The error of a failed command has the remedy, the exit status, the log's path and the end of the output."""
    with pytest.raises(StepError) as raised:
        Steps(tmp_path).command(
            [sys.executable, "-c", "print('no such package'); raise SystemExit(7)"], remedy="Run again.", timeout_s=60
        )

    assert str(raised.value).startswith("Run again.\n")
    assert "status 7" in str(raised.value)
    assert str(raised.value).endswith(f"{tmp_path / 'log.txt'} ends with\nno such package")


@pytest.mark.slow
def test_the_output_of_a_command_is_returned(tmp_path: Path) -> None:
    """Only the output of this command is returned, though the log has those of all; another status can be accepted."""
    steps = Steps(tmp_path)
    for text in ("one", "two"):
        code = f"print('{text}'); raise SystemExit(1)"
        printed = steps.command([sys.executable, "-c", code], remedy="", timeout_s=60, accepted=(0, 1))
        assert printed == f"{text}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "timeout_s", "problem"),
    [(["no-such-program"], 60, "No such file"), (["sleep", "30"], 0, "no end after 0 s")],
)
def test_a_missing_program_and_a_timeout_are_failures(
    tmp_path: Path, command: list[str], timeout_s: float, problem: str
) -> None:
    """A program that is not installed, and a command that takes too long, raise the same error."""
    with pytest.raises(StepError, match=problem):
        Steps(tmp_path).command(command, remedy="Install it.", timeout_s=timeout_s)
