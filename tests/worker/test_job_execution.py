"""One job with a full disk, consecutive failures, a hanging thread, or no free thread."""

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
from comfy_core.contract import ErrorCode, ErrorReport
from comfy_core.workflows import Workflow
from handler import make_handler
from simulators.comfyui import Simulator
from simulators.waiting import until
from worker.job_execution import MAX_FAILURES, Service, make_threads
from worker.jobs import Worker
from worker.lifecycle import Lifecycle
from worker.settings import Settings

SMALL = {"prompt": "a knight", "width": 64, "height": 64, "steps": 1}


def picture() -> str:
    """Return an image as base64."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


PICTURE = picture()


class JobSetup:
    """A service on a simulator, and the reason why the worker retired."""

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
        self.service = Service(Worker(server, workflows, Settings(job_timeout_s=30)), lifecycle)

    def run(self, **inputs: object) -> dict[str, Any]:
        """Return the result of a job."""
        job = {"id": "job", "input": {**SMALL, **inputs}}
        return asyncio.run(asyncio.wait_for(make_handler(self.service)(job), 30))

    def report(self, **inputs: object) -> ErrorReport:
        """Return the report of a job that fails."""
        return ErrorReport.from_json(self.run(**inputs)["error"])


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """A ComfyUI."""
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def bench(simulator: Simulator, workflows: Mapping[str, Workflow]) -> Iterator[JobSetup]:
    """A service on it."""
    bench = JobSetup(simulator, workflows)
    yield bench
    bench.service.worker.server.close()
    bench.service.threads.shutdown(wait=False)


# --- the disk


def test_a_comfyui_that_stores_no_picture_has_a_full_disk(simulator: Simulator, bench: JobSetup) -> None:
    """The error names the disk and its status; another worker may have space."""
    simulator.faults.answer_500("/upload/image")
    report = bench.report(image=PICTURE)

    assert report.code is ErrorCode.DISK_FULL
    assert report.retryable
    assert "500 to POST /upload/image" in report.message
    assert "disk" in report.message


def test_a_full_disk_of_the_worker_s_own_is_named_and_swept(simulator: Simulator, bench: JobSetup) -> None:
    """Files of earlier jobs are deleted, so that the next job may have space; other files are kept."""
    for name in ("input/run-0123/0.png", "output/run-4567/x_00001_.png", "temp/ComfyUI_temp_1.png", "output/mine.png"):
        (bench.directory / name).parent.mkdir(parents=True, exist_ok=True)
        (bench.directory / name).write_bytes(b"x")
    bench.service = replace(bench.service, full_disk=lambda: "The disk of /tmp/comfyui is full: 0.0 MB are left.")
    simulator.faults.answer_500("/upload/image")
    report = bench.report(image=PICTURE)

    assert report.code is ErrorCode.DISK_FULL
    assert "/tmp/comfyui is full" in report.message  # noqa: S108 - as above
    left = [str(path.relative_to(bench.directory)) for path in bench.directory.rglob("*") if path.is_file()]
    assert left == ["output/mine.png"]


def test_a_node_that_finds_the_disk_full_does_not_fail_as_if_the_graph_were_wrong(
    simulator: Simulator, bench: JobSetup
) -> None:
    """A node's `No space left on device` is the worker's fault: the error is disk_full, which may be sent again."""
    bench.service = replace(bench.service, full_disk=lambda: "The disk of /x is full: 0.0 MB are left.")
    simulator.faults.fail_node("KSampler", "OSError", "[Errno 28] No space left on device")

    assert bench.report().code is ErrorCode.DISK_FULL


def test_failures_of_the_disk_in_a_row_retire_the_worker(simulator: Simulator, bench: JobSetup) -> None:
    """A success in between resets the count; the reason is reported to the platform."""
    simulator.faults.answer_500("/upload/image", times=MAX_FAILURES - 1)
    for _ in range(MAX_FAILURES - 1):
        bench.report(image=PICTURE)
    assert bench.run()["images"]
    simulator.faults.answer_500("/upload/image", times=MAX_FAILURES)
    for _ in range(MAX_FAILURES - 1):
        bench.report(image=PICTURE)
    assert not bench.service.lifecycle.is_ending
    bench.report(image=PICTURE)

    assert until(lambda: len(bench.ended) == 2)
    assert bench.ended[0].startswith(f"{MAX_FAILURES} jobs in a row failed: ComfyUI answered 500")


def test_a_graph_that_comfyui_answers_with_500_retires_nobody(simulator: Simulator, bench: JobSetup) -> None:
    """ComfyUI is alive and rejected only this job, so a caller cannot retire workers with such jobs."""
    simulator.faults.answer_500("POST /prompt", times=MAX_FAILURES + 1)
    for _ in range(MAX_FAILURES + 1):
        assert bench.report().code is ErrorCode.COMFYUI_UNAVAILABLE

    assert not bench.service.lifecycle.is_ending


# --- threads


class Stuck(dict[str, Any]):
    """A job whose input never arrives, as an image in a library that hangs."""

    def __init__(self) -> None:
        super().__init__(id="stuck", input={})
        self.released = threading.Event()

    def get(self, key: str, default: object = None) -> Any:  # noqa: ANN401 - a job's value
        """Return the id immediately, and the input never."""
        if key == "input":
            self.released.wait(30)
        return super().get(key, default)


def test_a_job_whose_thread_does_not_end_is_answered_and_retires_the_worker(bench: JobSetup) -> None:
    """It gets `internal` after its limit; a job that waits for the thread gets `interrupted`."""
    stuck = Stuck()
    bench.service = replace(bench.service, threads=make_threads(1), longest_s=0.5)
    handler = make_handler(bench.service)

    async def both() -> list[dict[str, Any]]:
        jobs = [handler(stuck), handler({"id": "waiting", "input": SMALL})]
        return list(await asyncio.wait_for(asyncio.gather(*jobs), 30))

    codes = [ErrorReport.from_json(answer["error"]).code for answer in asyncio.run(both())]
    stuck.released.set()

    assert codes == [ErrorCode.INTERNAL, ErrorCode.INTERRUPTED]
    assert until(lambda: bench.ended)
    assert bench.ended[0] == "a job's thread does not end"


def test_a_job_is_cancelled_at_once_while_it_waits_for_a_thread(bench: JobSetup) -> None:
    """A job is cancelled although another job's thread is still busy; the next job runs."""
    with ThreadPoolExecutor(1) as threads:
        bench.service = replace(bench.service, threads=threads)
        busy = threading.Event()
        threads.submit(busy.wait, 30)
        handler = make_handler(bench.service)

        async def cancelled_then_run() -> dict[str, Any]:
            waiting = asyncio.ensure_future(handler({"id": "waiting", "input": SMALL}))
            await asyncio.wait({waiting}, timeout=0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(waiting, 2)
            busy.set()
            return await asyncio.wait_for(handler({"id": "next", "input": SMALL}), 30)

        assert asyncio.run(cancelled_then_run())["images"]
