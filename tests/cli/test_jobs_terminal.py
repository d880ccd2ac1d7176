"""`comfy-client jobs` on terminals of several widths."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from comfy_client.job_log import JobLog
from tests.cli.terminals import Terminal

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("columns", "headings"),
    [
        (60, "ID STATE"),
        (100, "ID TIME STATE PROMPT"),
        (180, "ID TIME STATE COST PROMPT FILES ERROR WORKFLOW"),
    ],
)
def test_the_table_fits_into_the_terminal(tmp_path: Path, columns: int, headings: str) -> None:
    """No line and no id is wrapped by the terminal, and columns that do not fit are left out."""
    log = JobLog(tmp_path / "jobs.sqlite3")
    ids = [f"local-{uuid.uuid4()}" for _ in range(3)]
    for job_id in ids:
        facts = {"state": "succeeded", "workflow": "flux-dev-txt2img", "cost": 0.0031, "error_code": "result_lost"}
        log.note(job_id, inputs={"prompt": "a castle by night " * 9}, files=["/images/knight.png"], **facts)
    log.close()
    environment = {"COMFY_CLIENT_JOB_LOG": str(log.path)}
    terminal = Terminal(["jobs"], environment, tmp_path, columns, is_stdout_too=True)
    status, _ = terminal.wait()
    lines = terminal.lines

    assert status == 0
    assert lines[0].split() == headings.split()
    assert [line.split()[0] for line in lines if line.startswith("local-")] == ids[::-1]
