"""A misbehaving platform, with the real SDK: jobs that were taken get a result, and the worker continues."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from bench.worker_setup import SMALL_JOB, WorkerSetup, code_of, running_worker
from comfy_core.contract import ErrorReport
from simulators.runpod.queue_api import QueueJob, QueueJobState, RunPodPlatform
from simulators.waiting import until
from worker.runpod_api import LOG_EVERY_S, MAX_WAIT_S, POST_TIMEOUT_S

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def setup() -> Iterator[WorkerSetup]:
    """A worker shared by several tests."""
    with running_worker(platform=RunPodPlatform(long_poll_s=1.0, poll_error_delay_s=0.0)) as setup:
        yield setup
        assert setup.worker.exit_code is None


def job_text(job_id: object, **inputs: object) -> str:
    """Return a job as JSON, as job-take returns it."""
    return json.dumps({"id": job_id, "input": {**SMALL_JOB, **inputs}})


def jobs_after_batch(setup: WorkerSetup, *items: str, ids: tuple[str, ...]) -> list[QueueJob]:
    """Hand out the items in one batch; wait until the jobs of `ids` have ended, and return these jobs.

    Asserts that the worker also runs a later job.
    """
    for job_id in ids:
        setup.platform.adopt(job_id)
    setup.platform.faults.hand_out(f"[{', '.join(items)}]")
    jobs = [setup.platform.wait_for(job_id) for job_id in ids]
    assert code_of(setup.run()) is None
    return jobs


@pytest.mark.parametrize(
    "item",
    ["null", "5", "[]", '{"input": {}}', '{"id": null, "input": {}}', job_text("x" * 200_000), job_text(["a"])],
    ids=["null", "number", "list", "no id", "null as id", "200 kB of id", "list as id"],
)
def test_an_invalid_item_does_not_affect_other_jobs(setup: WorkerSetup, item: str) -> None:
    """An invalid item is dropped with one log line, and the other job of the batch runs."""
    drops_before = setup.worker.log.count("dropped a job whose result")
    [good] = jobs_after_batch(setup, item, job_text("beside"), ids=("beside",))

    assert code_of(good) is None
    assert setup.worker.log.count("dropped a job whose result") == drops_before + 1


@pytest.mark.parametrize(("given", "posted"), [(5, "5"), ("a\r\nb", "a\r\nb"), ("ü/?#%20", "ü/?#%20")])
def test_a_result_is_posted_under_an_unusual_id(setup: WorkerSetup, given: object, posted: str) -> None:
    """The result of a job is posted if the job's id is an integer, or has a line break or URL characters."""
    [job] = jobs_after_batch(setup, job_text(given), ids=(posted,))

    assert code_of(job) is None


def test_a_job_without_input_gets_an_error(setup: WorkerSetup) -> None:
    """RunPod strips an empty input, and the job fails with invalid_input."""
    [job] = jobs_after_batch(setup, '{"id": "no-input"}', ids=("no-input",))

    assert code_of(job) == "invalid_input"


def test_a_batch_with_extreme_json_does_not_affect_other_jobs(setup: WorkerSetup) -> None:
    """Jobs with 990 levels of nesting or an integer of 5,000 digits get an error; the third job gets a result."""
    deep = f'{{"id": "deep", "input": {{"workflow": {"[" * 990}{"]" * 990}}}}}'
    long = f'{{"id": "long", "input": {{"prompt": "x", "seed": {"9" * 5000}}}}}'
    jobs = jobs_after_batch(setup, deep, long, job_text("beside-both"), ids=("deep", "long", "beside-both"))

    assert [code_of(job) for job in jobs] == ["invalid_input", "invalid_input", None]
    assert "levels deep" in str(jobs[0].error)
    assert "seed" in ErrorReport.from_json(str(jobs[1].error)).message


def test_the_same_id_twice_runs_once_and_is_posted_once(setup: WorkerSetup) -> None:
    """A job that is twice in a batch runs once, and its result is posted once."""
    assert setup.simulator is not None
    before = len(setup.simulator.executed_prompts)
    duplicated = job_text("twin", seed=4711)
    [job] = jobs_after_batch(setup, duplicated, duplicated, ids=("twin",))

    assert code_of(job) is None
    assert job.final_posts == 1
    assert len(setup.simulator.executed_prompts) == before + 2  # the duplicated job and the one after it


@pytest.mark.parametrize(
    ("status", "body"),
    [(400, ""), (404, "{}"), (200, "<html>"), (200, "[1, 2"), (200, "[]"), (200, "{}"), (302, "")],
)
def test_after_any_response_to_job_take_the_next_job_is_taken(setup: WorkerSetup, status: int, body: str) -> None:
    """After an invalid response the worker polls again, and runs the next job."""
    headers = {"Location": "http://127.0.0.1:1/"} if status == 302 else {"Content-Type": "application/json"}
    setup.platform.faults.respond("take", status, body=body, headers=headers)
    taken = len(setup.platform.takes)
    setup.platform.wait_until(lambda: len(setup.platform.takes) > taken)

    assert code_of(setup.run()) is None


def test_repeated_errors_are_polled_with_backoff_and_logged_once() -> None:
    """While job-take and job-stop return 500 for ten seconds, the worker polls rarely and logs one line.

    After that it runs the next job.
    """
    with running_worker(platform=RunPodPlatform(long_poll_s=1.0, poll_error_delay_s=0.0)) as setup:
        setup.platform.faults.respond("job-take-batch", 500, times=100_000)
        setup.platform.faults.respond("job-stop", 500, times=100_000)
        log_length, takes = len(setup.worker.log), len(setup.platform.takes)
        assert not until(lambda: setup.worker.exit_code is not None, 10)

        assert 2 <= len(setup.platform.takes) - takes <= 6
        assert setup.worker.log[log_length:].count("job-take failed") == 1
        assert len(setup.worker.log) - log_length < 3000
        assert LOG_EVERY_S >= 60
        setup.platform.faults.clear()
        job = setup.platform.wait_for(setup.submit(), MAX_WAIT_S + 60)
        assert code_of(job) is None


def test_hanging_posts_are_retried_while_jobs_continue() -> None:
    """While the posts of two results hang, further jobs run at once. After the timeout the two results are posted."""
    with running_worker() as setup:
        setup.platform.faults.hang("final", times=2)
        first, second = setup.submit(seed=1), setup.submit(seed=2)
        assert until(lambda: len([post for post in setup.platform.posts if post.kind == "final"]) == 2)
        third, fourth = setup.run(seed=3), setup.run(seed=4)
        assert [code_of(third), code_of(fourth)] == [None, None]
        assert setup.platform.jobs[first].state == QueueJobState.IN_PROGRESS

        jobs = [setup.platform.wait_for(job_id, POST_TIMEOUT_S + 60) for job_id in (first, second)]
        assert [code_of(job) for job in jobs] == [None, None]
        assert {job_id for ping in setup.platform.pings[-40:] for job_id in ping.job_ids} >= {first, second}


def test_a_result_is_posted_again_after_a_broken_connection(setup: WorkerSetup) -> None:
    """A result whose post lost its connection is posted again. The SDK would give up; a second post is harmless."""
    setup.platform.faults.drop_connection("final", times=2)

    assert code_of(setup.run()) is None
