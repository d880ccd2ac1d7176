"""The comparison of ComfyUI's requirements.txt with the packages of the image."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from worker.snapshot.requirements import EXIT_UNMET, EXIT_USAGE_ERROR, installed_version, main, unmet

INSTALLED = {"torch": "2.14.1+cu130", "numpy": "2.4.6", "PyOpenGL": "3.1.10", "a-dev": "2.0rc1"}
OVERRIDES = """\
# A page that a worker does not show.
Front_End; sys_platform == "never"
torch==2.14.1
"""


@pytest.mark.parametrize(
    "line",
    [
        "torch",
        "torch==2.14.1",
        "numpy>=1.25.0  # a comment",
        "#non essential dependencies:",
        "",
        "front-end==1.48.7",
        'windows-only; sys_platform == "win32"',
        "PyOpenGL>=3.1.8,<4",
        "a-dev>=1",
    ],
)
def test_a_met_requirement_is_not_reported(line: str) -> None:
    """A version in the range, a package left out on purpose, one of another system, and comments are no problem."""
    assert unmet(line, OVERRIDES, INSTALLED.get) == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("comfy-kitchen==0.2.31", "comfy-kitchen==0.2.31: comfy-kitchen is not installed"),
        ("numpy>=3", "numpy>=3: numpy 2.4.6 is installed"),
        # An override changes what is installed, not what ComfyUI requires.
        ("torch>=2.15", "torch>=2.15: torch 2.14.1+cu130 is installed"),
        ("-r more.txt", "-r more.txt: this line is not a requirement, so the lock cannot be compared with it"),
    ],
)
def test_an_unmet_requirement_is_reported(line: str, problem: str) -> None:
    """The sentence has ComfyUI's line and the package that is missing or has another version."""
    assert unmet(f"numpy\n{line}\n", OVERRIDES, INSTALLED.get) == [problem]


def test_the_command_names_all_problems_and_the_remedy(tmp_path: Path) -> None:
    """The command returns 1 and lists what this Python lacks, or 0 if it lacks nothing."""
    err = io.StringIO()
    file, overrides = tmp_path / "requirements.txt", tmp_path / "overrides.txt"
    overrides.write_text(OVERRIDES)
    arguments = [str(file), "--overrides", str(overrides)]

    file.write_text("no-such-package\npytest>=99\n")
    assert main(arguments, err) == EXIT_UNMET
    file.write_text("pytest\n")
    assert main(arguments, err) == 0

    assert "- no-such-package: no-such-package is not installed\n" in err.getvalue()
    assert f"- pytest>=99: pytest {installed_version('pytest')} is installed\n" in err.getvalue()
    assert "scripts/lock" in err.getvalue()


def test_files_and_options_that_are_wrong_are_named(tmp_path: Path) -> None:
    """A file that cannot be read is named, as is a missing option."""
    err = io.StringIO()

    assert main([str(tmp_path / "absent.txt"), "--overrides", str(tmp_path)], err) == EXIT_UNMET
    assert main([], err) == EXIT_USAGE_ERROR

    assert f"{tmp_path}/absent.txt cannot be read (No such file or directory)" in err.getvalue()
    assert "--overrides" in err.getvalue()
