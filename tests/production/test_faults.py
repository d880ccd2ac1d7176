"""Every row of the fault table, over real processes and sockets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from bench.faults import PROVEN_ELSEWHERE, ROWS, ProvenElsewhere, Row
from bench.stage import ROOT, Stage, code_of, staged
from simulators.runpod.queue_api import QueueJob, QueueJobState
from simulators.waiting import until

pytestmark = pytest.mark.slow


def outcome(job: QueueJob) -> str | None:
    """Return what the caller got: an error code, `no output`, CANCELLED, or None for a result."""
    if job.state == QueueJobState.CANCELLED:
        return "CANCELLED"
    if job.state == QueueJobState.COMPLETED and job.output is None:
        return "no output"
    return code_of(job)


@pytest.fixture(scope="module")
def shared() -> Iterator[Stage]:
    """A worker shared by several faults."""
    with staged() as stage:
        yield stage


@contextlib.contextmanager
def stage_for(row: Row, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Yield the shared worker if the row needs no special settings and leaves it alive; otherwise a new one."""
    if row.needs_own_stage:
        with staged(own_comfyui=row.own_comfyui, step_s=row.step_s, environment=row.environment) as stage:
            yield stage
        return
    stage = request.getfixturevalue("shared")
    yield stage
    stage.simulator.faults.clear()
    stage.platform.faults.clear()


@pytest.mark.parametrize("row", ROWS, ids=[row.fault for row in ROWS])
def test_a_fault_has_the_result_in_its_row(row: Row, request: pytest.FixtureRequest) -> None:
    """The caller gets the row's outcome in time; the next job runs or the worker has exited; nothing is left."""
    with stage_for(row, request) as stage:
        job = row.cause(stage)

        assert outcome(job) == row.code
        assert job.ended_at is not None
        assert job.ended_at - job.submitted_at < row.within_s
        if row.next_job_works:
            assert outcome(stage.run(width=64, height=64, seed=77)) is None
            assert stage.simulator is None or until(lambda: not stage.simulator or not stage.simulator.history_ids)
            assert stage.files_left() == []
        else:
            assert stage.worker.wait(30) == 1
            assert [ping.check for ping in stage.platform.pings if ping.is_unhealthy] == ["comfyui"]
            assert stage.comfyui_processes() == []


@pytest.mark.parametrize("other", PROVEN_ELSEWHERE, ids=[other.fault for other in PROVEN_ELSEWHERE])
def test_the_other_rows_have_their_tests(other: ProvenElsewhere) -> None:
    """A row that is proven elsewhere names an existing test."""
    file, _, name = other.test.partition("::")

    assert f"def {name}(" in (ROOT / file).read_text()
