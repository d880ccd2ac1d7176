"""`comfy-client cost`, and what the commands write into the log of jobs."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from comfy_client.cli.costs import parse_since
from comfy_client.job_log import JobLog
from comfy_client.providers.interface import JobState
from simulators.comfyui import Simulator
from tests.cli.conftest import Shell

PRICE = {"COMFY_CLIENT_GPU_USD_PER_S": "0.5"}
LOG = Path("state", "jobs.sqlite3")


def test_the_costs_of_the_commands_are_summed(shell: Shell) -> None:
    """The sum is that of the results, a job counts once and keeps its cost, and a free job has none."""
    made = shell("txt2img", "a knight", "--json", **PRICE).json
    job_id = shell("submit", "txt2img", "-iprompt=x", **PRICE).out.strip()
    awaited = shell("wait", job_id, "--json", **PRICE).json
    shell("wait", job_id)  # without the price
    with Simulator() as simulator:
        free = shell("txt2img", "x", "--width=64", "--height=64", "--steps=1", "--json", COMFYUI_ENDPOINT=simulator.url)
    cost = shell("cost", "--json").json
    lines = shell("cost").out.splitlines()

    assert free.json["cost"] is None
    assert (cost["jobs"], cost["jobs_without_cost"], cost["since"]) == (3, 1, None)
    assert cost["cost"] == made["cost"] + awaited["cost"]
    assert [each["jobs"] for each in cost["places"]] == [2, 1]
    assert lines[1].split("  ") == [f"ComfyUI at {simulator.url}", "$0.0000", " 1 job", "1 without a cost"]
    assert lines[2].startswith("in all ")
    assert lines[2].endswith(f"  ${cost['cost']:.4f}  3 jobs  1 without a cost")


def test_the_log_has_the_files_of_a_result(shell: Shell) -> None:
    """A job's row has its state and the absolute path of its image."""
    ended = shell("txt2img", "a knight", "-o", "knight.png", "--json")
    log = JobLog(LOG)
    [job] = log.jobs()
    log.close()

    assert (job.job_id, job.state) == (ended.json["job_id"], JobState.SUCCEEDED)
    assert job.files == (str(Path("knight.png").absolute()),)


def test_since_limits_the_jobs(shell: Shell) -> None:
    """`--since` counts the jobs submitted at or after a date or within an age."""
    now = datetime.now().astimezone()
    for age_days in (0, 2, 40):
        submitted_at = (now - timedelta(days=age_days)).timestamp()
        log = JobLog(LOG, clock=partial(float, submitted_at))
        log.note(f"job-{age_days}", cost=0.25)
        log.close()
    two_months_ago = (now - timedelta(days=60)).date().isoformat()

    assert shell("cost", "--since=24h", "--json").json["cost"] == 0.25
    assert shell("cost", "--since=7d", "--json").json["cost"] == 0.5
    assert shell("cost", f"--since={two_months_ago}", "--json").json["cost"] == 0.75


def test_a_date_begins_at_local_midnight() -> None:
    """A date without a time zone is one of this machine's clock."""
    assert parse_since("2026-11-01") == datetime(2026, 11, 1).timestamp()  # noqa: DTZ001 - local, as the user means it


@pytest.mark.parametrize("since", ["yesterday", "7", "2026-13-01", ""])
def test_an_invalid_since_is_rejected(shell: Shell, since: str) -> None:
    """The error shows a date and an age."""
    ended = shell("cost", f"--since={since}")

    assert ended.status == 2
    assert "2026-11-01, or an age such as 12h or 7d" in ended.err


def test_without_a_log_the_variable_is_named(shell: Shell) -> None:
    """If the log is off, the error names COMFY_CLIENT_JOB_LOG."""
    ended = shell("cost", COMFY_CLIENT_JOB_LOG="off")

    assert ended.status == 3
    assert "Set COMFY_CLIENT_JOB_LOG to a path" in ended.err
