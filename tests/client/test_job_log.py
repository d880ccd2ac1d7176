"""The log of jobs: what it records, what it leaves out, and that its problems never fail a job."""

from __future__ import annotations

import base64
import logging
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from comfy_client.client import Client, client_from_env
from comfy_client.job_log import JobLog, job_log_from_env
from comfy_client.logged_provider import request_inputs
from comfy_client.providers.interface import JobState
from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, JobError
from comfy_core.workflows import Workflow
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_result, png
from tests.needs import small_disk

INPUTS = {
    "prompt": "a knight",
    "seed": 7,
    "loras": [{"url": "https://user:s3cret@host.example/a.safetensors?token=s3cret#sha256=1f", "strength": 0.5}],
    "overrides": {"1.key": "s3cret"},
}


def result(job: Body) -> Body:
    """Return an image with the inputs, GPU and cost of a worker, or an error for the prompt `fail`."""
    if job["input"].get("prompt") == "fail":
        return {"error": '{"code": "out_of_memory", "message": "no memory", "retryable": true, "details": {}}'}
    output = {**image_result(job)["output"], "inputs": INPUTS, "gpu": "NVIDIA L4", "cost": 0.0019}
    return {"output": output}


@pytest.fixture(scope="module")
def platform() -> Iterator[RunPodPlatform]:
    """An endpoint with a worker that responds at once."""
    with RunPodPlatform(long_poll_s=0.1) as platform, ScriptedWorker(platform, result, threads=2):
        yield platform


@pytest.fixture
def log(tmp_path: Path) -> Iterator[JobLog]:
    """A log in a folder that does not exist yet."""
    log = JobLog(tmp_path / "state" / "jobs.sqlite3")
    yield log
    log.close()


def client_with(log: JobLog, platform: RunPodPlatform) -> Client:
    """Return a client of the endpoint that writes the log."""
    return client_from_env(platform.client_env(), timeout_s=60, job_log=log)


def test_a_job_is_logged_from_submit_to_file(log: JobLog, platform: RunPodPlatform, tmp_path: Path) -> None:
    """A row exists after the submit, and gets the state, the cost and the used inputs of the result, and the files."""
    with client_with(log, platform) as client:
        job = client.submit("txt2img", prompt="a knight", seed=7)
        [before] = log.jobs()
        job.wait()
        client.note_files(job.id, [tmp_path / "knight.png"])
    [after] = log.jobs()

    assert (before.job_id, before.state, before.workflow) == (job.id, JobState.QUEUED, "txt2img")
    assert (before.inputs, before.cost) == ({"prompt": "a knight", "seed": 7}, None)
    assert (after.job_id, after.state, after.error_code) == (job.id, JobState.SUCCEEDED, "")
    assert (after.provider, after.place) == ("comfyui", str(client.provider))
    assert (after.workflow, after.gpu, after.cost) == ("flux-dev-txt2img", "NVIDIA L4", 0.0019)
    assert after.inputs["seed"] == 7
    assert after.files == (str(tmp_path / "knight.png"),)
    assert after.error is None
    assert after.submitted_at == before.submitted_at <= after.updated_at
    assert after.execution_s is not None


def test_a_failed_job_has_its_error_code(log: JobLog, platform: RunPodPlatform) -> None:
    """The row of a failed job has its state, its error, and no cost if the price is not known."""
    with client_with(log, platform) as client, pytest.raises(JobError):
        client.txt2img("fail")
    [job] = log.jobs()

    assert (job.state, job.error_code, job.cost) == (JobState.FAILED, "out_of_memory", None)
    assert job.error == ErrorReport(ErrorCode.OUT_OF_MEMORY, "no memory")


def test_saved_files_are_those_that_have_not_changed(log: JobLog, platform: RunPodPlatform, tmp_path: Path) -> None:
    """The files of a result are known until one of them is changed, deleted or replaced by a folder."""
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(png(8))
    with client_with(log, platform) as client:
        client.note_files("job-1", paths)
    [job] = log.jobs()
    intact = job.saved_files
    paths[1].write_bytes(b"changed")
    changed = job.saved_files
    paths[1].unlink()
    deleted = job.saved_files
    paths[1].mkdir()

    assert intact == tuple(paths)
    assert (changed, deleted, job.saved_files) == ((), (), ())
    assert log.job("job-1") == job
    assert log.job("job-2") is None


def test_a_log_of_an_earlier_version_is_updated(log: JobLog) -> None:
    """The rows of a file of the first version have no error and no hashes, and new rows have both."""
    log.note("job-1", state="succeeded", files=["/a.png"])
    log.close()
    with sqlite3.connect(log.path) as connection:
        for column in ("hashes", "error"):
            connection.execute(f"ALTER TABLE jobs DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    log.note("job-2", hashes=["00"])
    old, new = log.jobs()

    assert (old.files, old.hashes, old.error) == (("/a.png",), (), None)
    assert old.saved_files == ()
    assert new.hashes == ("00",)


def test_a_client_without_a_log_writes_none(platform: RunPodPlatform, tmp_path: Path) -> None:
    """`client_from_env` ignores the variables of the log, which are those of `comfy-client`."""
    log = tmp_path / "jobs.sqlite3"
    with client_from_env({**platform.client_env(), "COMFY_CLIENT_JOB_LOG": str(log)}, timeout_s=60) as client:
        client.txt2img("a knight")

    assert not log.exists()


def test_images_and_secrets_are_not_logged(
    log: JobLog, platform: RunPodPlatform, workflows: dict[str, Workflow]
) -> None:
    """The file has neither images nor keys, overrides or signatures of URLs. Only its owner can read it."""
    graph = workflows["flux-dev-img2img"].graph
    with client_with(log, platform) as client:
        client.img2img(png(64), "a knight")
        client.run(graph, images={"example.png": png(64)}, overrides=INPUTS["overrides"], comfy_org_api_key="s3cret")
        content = b"".join(path.read_bytes() for path in log.path.parent.iterdir())
    logged = log.jobs()

    assert b"s3cret" not in content
    assert base64.b64encode(png(64))[:40] not in content
    assert logged[0].inputs["loras"] == [{"url": "https://host.example/a.safetensors#sha256=1f", "strength": 0.5}]
    assert (log.path.stat().st_mode & 0o777, log.path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_request_that_is_a_graph_has_no_logged_inputs() -> None:
    """A graph as the whole input, as `prompt` or as text may contain anything."""
    graph = {"3": {"class_type": "LoadImage", "inputs": {"key": "s3cret"}}}

    assert request_inputs(graph) == {}
    assert request_inputs({"prompt": graph}) == {}
    assert request_inputs({"prompt": ' {"3": {"key": "s3cret"}}'}) == {}


def _make_folder(path: Path) -> None:
    path.mkdir()


def _make_damaged_file(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def _make_newer_file(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.mark.parametrize(
    "values", [{"updated_at": 1e300}, {"updated_at": "now"}, {"state": "no state"}, {"files": "5"}, {"inputs": "[1]"}]
)
def test_a_damaged_row_is_an_error_with_a_remedy(tmp_path: Path, values: dict[str, object]) -> None:
    """A value that no client has written raises ConfigError, which names the file and what to do."""
    log = JobLog(tmp_path / "log")
    log.note("job-1", **values)
    with pytest.raises(ConfigError, match=f"{log.path} cannot be read: .* move it away"):
        log.jobs()
    log.close()


@pytest.mark.parametrize("make", [_make_folder, _make_damaged_file, _make_newer_file])
def test_an_unusable_log_fails_no_job(
    make: Callable[[Path], None], platform: RunPodPlatform, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Jobs succeed, one warning names the file and the variable, and reading the log raises ConfigError."""
    log = JobLog(tmp_path / "log")
    make(log.path)
    with client_with(log, platform) as client, caplog.at_level(logging.WARNING):
        client.txt2img("a knight")
        client.txt2img("a knight")

    [warning] = [record.message for record in caplog.records if record.name == "comfy_client.job_log"]
    assert str(log.path) in warning
    assert "COMFY_CLIENT_JOB_LOG" in warning
    with pytest.raises(ConfigError, match=str(log.path)):
        log.jobs()


def test_a_full_disk_fails_no_job(platform: RunPodPlatform, tmp_path: Path) -> None:
    """Jobs succeed while the disk of the log is full; when it has space again, they are logged again."""
    with small_disk(tmp_path / "small", "256k") as disk:
        log = JobLog(disk / "jobs.sqlite3")
        filler = disk / "filler"
        with client_with(log, platform) as client:
            filler.write_bytes(b"x" * 200_000)
            client.txt2img("a knight")
            filler.unlink()
            client.txt2img("a knight")
        logged = len(log.jobs())
        log.close()

    assert logged == 1


def test_the_last_job_is_last_after_the_clock_was_set_back(tmp_path: Path) -> None:
    """Jobs are in the order in which they were logged, so that `--last` is the newest one."""
    times = iter([2000.0, 1000.0, 1500.0])
    log = JobLog(tmp_path / "log", clock=lambda: next(times))
    for job_id in ("first", "second", "third"):
        log.note(job_id)

    assert [job.job_id for job in log.jobs()] == ["first", "second", "third"]
    log.close()


def test_many_writers_share_a_file(tmp_path: Path) -> None:
    """Eight connections create the file and write 400 jobs at a time, and each job has a row."""

    def write(writer: int) -> None:
        log = JobLog(tmp_path / "jobs.sqlite3")
        for number in range(50):
            log.note(f"job-{writer}-{number}", cost=0.001)
        log.close()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))

    assert len(JobLog(tmp_path / "jobs.sqlite3").jobs()) == 400


def test_old_jobs_are_removed(tmp_path: Path) -> None:
    """When a log is opened, the oldest jobs over its limit are removed."""
    path = tmp_path / "jobs.sqlite3"
    for number in range(5):
        log = JobLog(path, max_jobs=3)
        log.note(f"job-{number}")
        log.close()

    assert [job.job_id for job in JobLog(path, max_jobs=3).jobs()] == ["job-2", "job-3", "job-4"]


@pytest.mark.parametrize(
    ("environment", "path"),
    [
        ({"HOME": "/home/me"}, "/home/me/.local/state/comfy-client/jobs.sqlite3"),
        ({"USERPROFILE": "/Users/me"}, "/Users/me/.local/state/comfy-client/jobs.sqlite3"),
        ({"HOME": "/home/me", "XDG_STATE_HOME": "/state"}, "/state/comfy-client/jobs.sqlite3"),
        ({"HOME": "/home/me", "COMFY_CLIENT_JOB_LOG": "/log"}, "/log"),
        ({"HOME": "/home/me", "COMFY_CLIENT_JOB_LOG": "off"}, None),
        ({}, None),
    ],
)
def test_the_environment_selects_the_file(environment: dict[str, str], path: str | None) -> None:
    """The log is in the user's state folder, at COMFY_CLIENT_JOB_LOG, or nowhere."""
    log = job_log_from_env(environment)

    assert (str(log.path) if log else None) == path
