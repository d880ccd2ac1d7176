"""The handler with a full disk, with consecutive failures, with a hanging thread, and without a free thread."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.workflows import Workflow
from handler import make_handler
from simulators.comfyui import Simulator
from simulators.waiting import until
from worker.job_execution import MAX_FAILURES, Service, make_threads
from worker.jobs import Worker
from worker.lifecycle import Lifecycle
from worker.settings import Settings

SMALL = {"prompt": "a knight", "width": 64, "height": 64, "steps": 1}


def image_base64() -> str:
    """Return a small PNG as base64 text."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


IMAGE = image_base64()


class JobSetup:
    """A service with a simulated ComfyUI. `ended` has the reason and the exit status if the worker retired."""

    def __init__(self, simulator: Simulator, workflows: Mapping[str, Workflow]) -> None:
        self.ended: list[str] = []
        self.directory = simulator.input_dir.parent
        lifecycle = Lifecycle(
            stop_comfyui=lambda: None,
            report_unhealthy=self.ended.append,
            grace_s=0,
            end=lambda status: self.ended.append(str(status)),
        )
        server = ComfyServer(simulator.url, directory=self.directory)
        self.service = Service(Worker(server, workflows, Settings(job_timeout_s=60)), lifecycle)

    def run(self, **inputs: object) -> dict[str, Any]:
        """Run a job; return its result, or its error."""
        job = {"id": "job", "input": {**SMALL, **inputs}}
        return asyncio.run(asyncio.wait_for(make_handler(self.service)(job), 60))

    def report(self, **inputs: object) -> ErrorReport:
        """Run a job that must fail; return its error report."""
        return ErrorReport.from_json(self.run(**inputs)["error"])


@pytest.fixture
def job_setup(simulator: Simulator, workflows: Mapping[str, Workflow]) -> Iterator[JobSetup]:
    """A service that uses the simulated ComfyUI."""
    job_setup = JobSetup(simulator, workflows)
    yield job_setup
    job_setup.service.worker.server.close()
    job_setup.service.threads.shutdown(wait=False)


# --- the disk


def test_a_comfyui_that_cannot_store_uploads_has_a_full_disk(simulator: Simulator, job_setup: JobSetup) -> None:
    """The error is disk_full and retryable, and names ComfyUI's status and the disk. Another worker may have space."""
    simulator.faults.respond_500("/upload/image")
    report = job_setup.report(image=IMAGE)

    assert report.code is ErrorCode.DISK_FULL
    assert report.retryable
    assert "500 for POST /upload/image" in report.message
    assert "disk" in report.message


def test_a_full_disk_is_named_and_old_files_are_deleted(simulator: Simulator, job_setup: JobSetup) -> None:
    """The error names the folder. Files of earlier jobs are deleted to free space, and other files are kept."""
    for name in ("input/run-0123/0.png", "output/run-4567/x_00001_.png", "temp/ComfyUI_temp_1.png", "output/mine.png"):
        (job_setup.directory / name).parent.mkdir(parents=True, exist_ok=True)
        (job_setup.directory / name).write_bytes(b"x")
    job_setup.service = replace(
        job_setup.service, full_disk_problem=lambda: "The disk of /tmp/comfyui is full: 0.0 MB are left."
    )
    simulator.faults.respond_500("/upload/image")
    report = job_setup.report(image=IMAGE)

    assert report.code is ErrorCode.DISK_FULL
    assert "/tmp/comfyui is full" in report.message  # noqa: S108 - as above
    left = [str(path.relative_to(job_setup.directory)) for path in job_setup.directory.rglob("*") if path.is_file()]
    assert left == ["output/mine.png"]


def test_a_node_s_full_disk_is_not_a_fault_of_the_graph(simulator: Simulator, job_setup: JobSetup) -> None:
    """If a node fails with `No space left on device`, the error is disk_full and not execution_failed."""
    job_setup.service = replace(job_setup.service, full_disk_problem=lambda: "The disk of /x is full: 0.0 MB are left.")
    simulator.faults.fail_node("KSampler", "OSError", "[Errno 28] No space left on device")

    assert job_setup.report().code is ErrorCode.DISK_FULL


def test_consecutive_disk_failures_retire_the_worker(simulator: Simulator, job_setup: JobSetup) -> None:
    """MAX_FAILURES failures in a row retire the worker with the reason; a success in between resets the count."""
    simulator.faults.respond_500("/upload/image", times=MAX_FAILURES - 1)
    for _ in range(MAX_FAILURES - 1):
        job_setup.report(image=IMAGE)
    assert job_setup.run()["images"]
    simulator.faults.respond_500("/upload/image", times=MAX_FAILURES)
    for _ in range(MAX_FAILURES - 1):
        job_setup.report(image=IMAGE)
    assert not job_setup.service.lifecycle.is_ending
    job_setup.report(image=IMAGE)

    assert until(lambda: len(job_setup.ended) == 2)
    assert job_setup.ended[0].startswith(f"{MAX_FAILURES} jobs in a row failed: ComfyUI returned 500")


def test_a_graph_that_gets_a_500_does_not_retire_the_worker(simulator: Simulator, job_setup: JobSetup) -> None:
    """A 500 for POST /prompt concerns only that job, so a caller cannot retire workers with such jobs."""
    simulator.faults.respond_500("POST /prompt", times=MAX_FAILURES + 1)
    for _ in range(MAX_FAILURES + 1):
        assert job_setup.report().code is ErrorCode.COMFYUI_UNAVAILABLE

    assert not job_setup.service.lifecycle.is_ending


# --- threads


class StuckJob(dict[str, Any]):
    """A job whose thread gets its input only once `released` is set, or after 30 s, like a library that hangs."""

    def __init__(self) -> None:
        super().__init__(id="stuck", input={})
        self.released = threading.Event()

    def get(self, key: str, default: object = None) -> Any:  # noqa: ANN401 - a job's value
        """Return the value of `key`; in the job's thread, wait first if it is the input."""
        if key == "input" and threading.current_thread() is not threading.main_thread():
            self.released.wait(60)
        return super().get(key, default)


def test_a_job_whose_thread_hangs_gets_an_error_and_retires_the_worker(job_setup: JobSetup) -> None:
    """The job fails with `internal` after `max_job_s`, and a job that waits for the thread with `interrupted`."""
    stuck_job = StuckJob()
    job_setup.service = replace(job_setup.service, threads=make_threads(1), max_job_s=0.5)
    handler = make_handler(job_setup.service)

    async def run_both() -> list[dict[str, Any]]:
        jobs = [handler(stuck_job), handler({"id": "waiting", "input": SMALL})]
        return list(await asyncio.wait_for(asyncio.gather(*jobs), 60))

    codes = [ErrorReport.from_json(response["error"]).code for response in asyncio.run(run_both())]
    stuck_job.released.set()

    assert codes == [ErrorCode.INTERNAL, ErrorCode.INTERRUPTED]
    assert until(lambda: job_setup.ended)
    assert job_setup.ended[0] == "a job's thread does not end"


def test_a_job_that_waits_for_a_thread_is_cancelled_at_once(job_setup: JobSetup) -> None:
    """A job that waits for the only thread can be cancelled; the next job runs when the thread is free."""
    with ThreadPoolExecutor(1) as threads:
        job_setup.service = replace(job_setup.service, threads=threads)
        busy = threading.Event()
        threads.submit(busy.wait, 120)
        handler = make_handler(job_setup.service)

        async def cancelled_then_run() -> dict[str, Any]:
            waiting = asyncio.ensure_future(handler({"id": "waiting", "input": SMALL}))
            await asyncio.wait({waiting}, timeout=0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(waiting, 60)
            busy.set()
            return await asyncio.wait_for(handler({"id": "next", "input": SMALL}), 60)

        assert asyncio.run(cancelled_then_run())["images"]
