"""tools/check_advisories.py: which versions of ComfyUI and which ignored findings it accepts."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest

from tools.check_advisories import ADVISORIES, IGNORED, main

REVIEWED = date(2026, 11, 1)
LISTED = """\
reviewed = 2026-11-01
pages = ["https://example.com/advisories"]
[[advisories]]
id = "CVE-2026-1"
fixed_in = "0.28.0"
published = 2026-07-15
summary = "path traversal"
source = "https://example.com/CVE-2026-1"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with one advisory, whose fix is in the pinned ComfyUI 0.28.0, and no ignored finding."""
    (tmp_path / "requirements").mkdir()
    (tmp_path / ADVISORIES).write_text(LISTED)
    (tmp_path / IGNORED).write_text("ignore: []\n")
    (tmp_path / "snapshot.json").write_text('{"comfyui_version": "0.28.0"}')
    return tmp_path


def test_the_version_with_the_fix_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If the pinned version has all fixes, the status is 0 and nothing is printed."""
    assert main(folder, REVIEWED) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("version", ["0.3.64", "0.9.0", "0.27.9"])
def test_an_older_version_fails(version: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A version before the fix is an error that names the advisory and the version to pin.

    Versions are compared as numbers: 0.9 and 0.3.64 are older than 0.28.
    """
    (folder / "snapshot.json").write_text(f'{{"comfyui_version": "{version}"}}')

    assert main(folder, REVIEWED) == 1
    message = capsys.readouterr().err
    assert f"ComfyUI {version}, which has CVE-2026-1" in message
    assert "Pin 0.28.0 or later" in message


@pytest.mark.parametrize(("days", "is_warned"), [(90, False), (91, True)])
def test_an_old_review_is_a_warning(
    days: int, is_warned: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More than 90 days after the last review a warning is printed; the status stays 0."""
    assert main(folder, REVIEWED + timedelta(days=days)) == 0
    assert ("last reviewed 91 days ago" in capsys.readouterr().err) == is_warned


@pytest.mark.parametrize(
    ("reason", "status", "expected"),
    [
        ("until 2026-11-01: the function is not called", 0, ""),
        ("until 2026-10-31: the function is not called", 1, "CVE-2026-2 was ignored until 2026-10-31"),
        ("the function is not called", 1, "CVE-2026-2 needs a reason like"),
        ("until 2026-12-31:", 1, "CVE-2026-2 needs a reason like"),
    ],
)
def test_an_ignored_finding_needs_a_reason_and_expires(
    reason: str, status: int, expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An ignored finding is accepted to the end of its date. Without a date or a reason it is an error."""
    (folder / IGNORED).write_text(f'ignore:\n  - vulnerability: CVE-2026-2\n    reason: "{reason}"\n')

    assert main(folder, REVIEWED) == status
    assert expected in capsys.readouterr().err
