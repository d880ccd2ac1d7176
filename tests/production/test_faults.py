"""Every row of the fault table, over real processes and sockets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from bench.faults import FAULT_ROWS, FAULTS_TESTED_ELSEWHERE, FaultRow, FaultTestedElsewhere
from bench.worker_setup import ROOT, WorkerSetup, code_of, running_worker
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


NOISE_S = 45.0
"""How much longer than a row's `within_s`, which is that of an idle machine, a loaded machine may need."""


@pytest.fixture(scope="module")
def shared_setup() -> Iterator[WorkerSetup]:
    """A worker that several faults share."""
    with running_worker() as setup:
        yield setup


@contextlib.contextmanager
def worker_for(row: FaultRow, request: pytest.FixtureRequest) -> Iterator[WorkerSetup]:
    """Yield the shared worker, or a new one if the row needs special settings or makes its worker unusable."""
    if row.needs_own_worker:
        with running_worker(own_comfyui=row.own_comfyui, step_s=row.step_s, environment=row.environment) as setup:
            yield setup
        return
    setup = request.getfixturevalue("shared_setup")
    yield setup
    setup.simulator.faults.clear()
    setup.platform.faults.clear()


@pytest.mark.parametrize("row", FAULT_ROWS, ids=[row.fault for row in FAULT_ROWS])
def test_a_fault_has_the_result_in_its_row(row: FaultRow, request: pytest.FixtureRequest) -> None:
    """The caller gets the row's outcome in time.

    Then the next job succeeds and no file is left, or the worker has reported itself unhealthy and exited with 1.
    """
    with worker_for(row, request) as setup:
        job = row.cause(setup)

        assert outcome(job) == row.code
        assert job.ended_at is not None
        assert job.ended_at - job.submitted_at < row.within_s + NOISE_S
        if row.next_job_works:
            assert outcome(setup.run(width=64, height=64, seed=77)) is None
            assert setup.simulator is None or until(lambda: not setup.simulator or not setup.simulator.history_ids)
            assert setup.files_left() == []
        else:
            assert setup.worker.wait(60) == 1
            assert [ping.check for ping in setup.platform.pings if ping.is_unhealthy] == ["comfyui"]
            assert setup.comfyui_processes() == []


@pytest.mark.parametrize("other", FAULTS_TESTED_ELSEWHERE, ids=[other.fault for other in FAULTS_TESTED_ELSEWHERE])
def test_a_fault_tested_elsewhere_has_its_test(other: FaultTestedElsewhere) -> None:
    """Each fault that is tested elsewhere names an existing test."""
    file, _, name = other.test.partition("::")

    assert f"def {name}(" in (ROOT / file).read_text()
