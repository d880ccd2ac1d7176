"""The commands that use the log of jobs: `jobs`, `--last`, `result` and `logs`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from comfy_client.job_log import JobLog
from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from simulators.http_server import free_port
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_result, png
from tests.cli.conftest import Shell

PRICE = {"COMFY_CLIENT_GPU_USD_PER_S": "0.5"}
LOG_TAIL = ["loading flux1-dev.safetensors", "Killed"]


def fail_or_draw(job: Body) -> Body:
    """Return an image, or for the prompt `fail` an error with lines of ComfyUI's log."""
    if job["input"].get("prompt") == "fail":
        report = ErrorReport(ErrorCode.COMFYUI_UNAVAILABLE, "ComfyUI died.", {"log_tail": LOG_TAIL})
        return {"error": report.to_json()}
    return image_result(job)


@pytest.fixture
def platform() -> Iterator[RunPodPlatform]:
    """A platform without a worker, so that jobs stay in the queue until `work` is called."""
    with RunPodPlatform(long_poll_s=0.1) as platform:
        yield platform


def work(platform: RunPodPlatform) -> None:
    """Let a worker run all jobs of the queue."""
    with ScriptedWorker(platform, fail_or_draw):
        for job_id in list(platform.jobs):
            platform.wait_for(job_id)


def submit(shell: Shell, prompt: str = "a knight") -> str:
    """Submit a job and return its id."""
    return shell("submit", "txt2img", f"-iprompt={prompt}", "-iseed=3").out.strip()


def test_jobs_lists_the_newest_jobs(shell: Shell, platform: RunPodPlatform) -> None:
    """The table has the newest job first, with state, cost, file and prompt. --state and --limit select jobs."""
    first, failing = submit(shell), submit(shell, "fail")
    work(platform)
    shell("wait", first, "-o", "knight.png", **PRICE)
    last = submit(shell, "a castle\nby night")
    listed = shell("jobs").out.splitlines()
    as_json = shell("jobs", "--json").json

    assert [line.split()[0] for line in listed] == [last, failing, first]
    assert "  a castle by night  " in listed[0]
    assert re.search("failed .* comfyui_unavailable", listed[1])
    for part in ("succeeded", "knight.png", "a knight", "$0.", "flux-dev-txt2img"):
        assert part in listed[2]
    assert [job["state"] for job in as_json["jobs"]] == ["queued", "failed", "succeeded"]
    assert as_json["jobs"][2]["files"] == [str(Path("knight.png").absolute())]
    assert [job["job_id"] for job in shell("jobs", "--state=failed", "--json").json["jobs"]] == [failing]
    assert [line.split()[0] for line in shell("jobs", "--limit=1").out.splitlines()] == [last]
    assert "2 older jobs" in shell("jobs", "--limit=1").err
    assert shell("jobs", "--since=2999-01-01").out == "no jobs\n"


def test_jobs_updates_unfinished_jobs(shell: Shell, platform: RunPodPlatform) -> None:
    """The states of unfinished jobs are requested, with the cost; --no-refresh sends no request."""
    job_id = submit(shell)
    work(platform)
    logged = shell("jobs", "--no-refresh", "--json").json["jobs"]
    updated = shell("jobs", "--json", **PRICE).json["jobs"]

    assert [(job["job_id"], job["state"], job["cost"]) for job in logged] == [(job_id, "queued", None)]
    assert [(job["job_id"], job["state"]) for job in updated] == [(job_id, "succeeded")]
    assert updated[0]["cost"] in (0, 0.5)
    assert shell("jobs", "--no-refresh", "--json").json["jobs"][0]["state"] == "succeeded"


def test_jobs_that_the_provider_has_deleted_are_expired(shell: Shell, tmp_path: Path) -> None:
    """A job that is older than some seconds and unknown to RunPod is listed as expired."""
    log = JobLog(tmp_path / "state" / "jobs.sqlite3", clock=partial(float, 1_700_000_000))
    log.note("old-job", place="endpoint ep at RunPod", provider="comfyui")
    log.close()

    assert shell("jobs", "--json").json["jobs"][0]["state"] == "expired"


def test_jobs_without_a_provider_shows_the_log(shell: Shell) -> None:
    """If RunPod cannot be reached, or no provider is configured, the logged states are shown, with the reason."""
    submit(shell)
    unreachable = shell("jobs", RUNPOD_ENDPOINT_BASE_URL=f"http://127.0.0.1:{free_port()}")
    unconfigured = shell("jobs", RUNPOD_API_KEY="")
    elsewhere = shell("jobs", RUNPOD_ENDPOINT_ID="other")

    for ended, why in (
        (unreachable, "did not respond"),
        (unconfigured, "RUNPOD_API_KEY"),
        (elsewhere, "another provider than endpoint other at RunPod"),
    ):
        assert ended.status == 0
        assert "queued" in ended.out
        assert why in ended.err


def test_last_is_the_newest_job_of_the_provider(shell: Shell, platform: RunPodPlatform) -> None:
    """`--last` takes the newest job at the selected endpoint, and not that of another endpoint."""
    submit(shell)
    last = submit(shell)
    shell("txt2img", "x", "--wait-timeout=0", COMFY_CLIENT_JOB_LOG="off")
    log = JobLog(Path("state", "jobs.sqlite3"))
    log.note("elsewhere", place="endpoint other at RunPod")
    log.close()
    queued = shell("status", "--last")
    work(platform)
    waited = shell("wait", "--last", "-o", "x.png")

    assert queued.out == f"{last}  queued\n"
    assert waited.status == 0
    assert waited.err.splitlines()[0] == f"job {last}"
    assert Path("x.png").read_bytes() == png(8, 3)
    assert shell("cancel", "--last").out == f"{last}  succeeded\n"


@pytest.mark.parametrize("command", ["wait", "status", "cancel", "result", "logs"])
def test_a_job_is_selected_by_id_or_as_the_last(shell: Shell, command: str) -> None:
    """Neither or both is a usage error. Without a job at this endpoint the error names the log and the endpoint."""
    assert "give either a job id or --last" in shell(command).err
    assert shell(command).status == shell(command, "job-1", "--last").status == 2
    none = shell(command, "--last")
    assert none.status == 3
    assert "jobs.sqlite3 has no job at endpoint ep at RunPod" in none.err
    assert "COMFY_CLIENT_JOB_LOG" in shell(command, "--last", COMFY_CLIENT_JOB_LOG="off").err


def test_a_result_can_be_saved_again(shell: Shell, platform: RunPodPlatform) -> None:
    """`result` fetches a result again: to a new path, and if the saved file has changed. Without -o it shows the file.

    Nothing is fetched, and nothing is written, if the file is unchanged.
    """
    job_id = submit(shell)
    work(platform)
    shell("wait", job_id, "-o", "x.png")
    shown = shell("result", job_id)
    elsewhere = shell("result", job_id, "-o", "y.png")
    Path("y.png").write_bytes(b"changed")
    again = shell("result", "--last")
    as_json = shell("result", job_id, "--json")

    assert (shown.status, shown.out) == (0, f"{Path('x.png').absolute()}\n")
    assert "was saved there before" in shown.err
    assert elsewhere.out == "y.png  8 x 8  seed 3\n"
    assert again.out == "flux-dev-txt2img-3.png  8 x 8  seed 3\n"
    assert as_json.json["paths"] == [str(Path("flux-dev-txt2img-3.png").absolute())]
    assert as_json.err == ""
    assert platform.submissions == 1


def test_an_unfinished_job_has_no_result_yet(shell: Shell) -> None:
    """`result` does not wait: it exits with 5, and the message has the command that waits."""
    job_id = submit(shell)
    ended = shell("result", job_id)

    assert ended.status == 5
    assert f"comfy-client wait {job_id}" in ended.err


def test_an_expired_result_names_the_saved_file(shell: Shell, platform: RunPodPlatform) -> None:
    """After RunPod has deleted the result, the error has the file, as long as it is unchanged."""
    job_id = submit(shell)
    work(platform)
    shell("wait", job_id, "-o", "x.png")
    platform.retention_s = 0
    intact = shell("result", job_id, "-o", "y.png")
    Path("x.png").unlink()
    lost = shell("result", job_id)

    assert (intact.status, lost.status) == (1, 1)
    assert f"Its result was saved and is unchanged: {Path('x.png').absolute()}" in intact.err
    assert "x.png" not in lost.err
    assert "job_expired" in lost.err


def test_the_end_of_a_deleted_job_is_that_of_the_log(shell: Shell, platform: RunPodPlatform) -> None:
    """After RunPod has deleted a job, `status` and `cancel` show the state that the log has."""
    job_id = submit(shell)
    work(platform)
    shell("status", job_id)
    platform.retention_s = 0

    for command in ("status", "cancel"):
        ended = shell(command, job_id)
        assert (ended.status, ended.out) == (0, f"{job_id}  succeeded\n")
        assert "endpoint ep at RunPod does not have the job any more" in ended.err


def test_a_job_of_another_endpoint_is_explained(shell: Shell) -> None:
    """The error for an unknown job has the endpoint that it was sent to, if the log has it."""
    job_id = submit(shell)
    with RunPodPlatform(long_poll_s=0.1, endpoint_id="other") as other:
        ended = shell("status", job_id, **other.client_env())

    assert ended.status == 1
    assert "It was sent to endpoint ep at RunPod, and your settings select endpoint other at RunPod" in ended.err


def test_logs_shows_the_lines_of_a_failed_job(shell: Shell, platform: RunPodPlatform) -> None:
    """The lines come from the error at RunPod, and from the log of jobs after RunPod has deleted the job."""
    job_id = submit(shell, "fail")
    work(platform)
    unlogged = shell("logs", job_id, COMFY_CLIENT_JOB_LOG="off")
    shell("status", job_id)
    platform.retention_s = 0
    logged = shell("logs", job_id, "--json").json

    assert unlogged.status == 0
    assert unlogged.out.splitlines() == LOG_TAIL
    assert "comfyui_unavailable: ComfyUI died." in unlogged.err
    assert (logged["lines"], logged["code"], logged["state"]) == (LOG_TAIL, "comfyui_unavailable", "failed")


def test_logs_of_other_jobs_are_empty(shell: Shell) -> None:
    """A job that did not fail has no lines; the message says so."""
    job_id = submit(shell)
    ended = shell("logs", job_id)

    assert (ended.status, ended.out) == (0, "")
    assert "has the state queued: only the errors of failed jobs have log lines" in ended.err


def test_a_failed_job_costs_its_seconds(shell: Shell, platform: RunPodPlatform) -> None:
    """With a known price, `cost` has the execution time of a failed job."""
    submit(shell, "fail")
    work(platform)
    shell("wait", "--last", **PRICE)

    assert shell("cost", "--json").json["jobs_without_cost"] == 0
