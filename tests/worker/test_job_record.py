"""The record of a job in the worker's log."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.models.folders import search_paths
from comfy_core.models.store import ModelStore
from comfy_core.workflows import Workflow
from handler import make_handler
from simulators.comfyui import Simulator
from worker.job_execution import Service
from worker.job_record import FIELDS, MESSAGE, JobNotes, job_record
from worker.jobs import Worker
from worker.lifecycle import Lifecycle
from worker.settings import Settings

SMALL = {"prompt": "a secret knight", "width": 64, "height": 64, "steps": 1}
ENTRY = {"type": "base64", "data": "SECRET", "bytes": 1_000}


@pytest.fixture
def service(simulator: Simulator, workflows: Mapping[str, Workflow], tmp_path: Path) -> Iterator[Service]:
    """A service with a simulated ComfyUI, and the VAE and a LoRA as its model files."""
    root = tmp_path / "store"
    for name in ("vae/ae.safetensors", "loras/unused.safetensors"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(b"x")
    store = ModelStore(partial(search_paths, (root,)), root, root / "cache")
    lifecycle = Lifecycle(stop_comfyui=lambda: None, report_unhealthy=lambda _: None, grace_s=0, end=lambda _: None)
    server = ComfyServer(simulator.url, directory=simulator.input_dir.parent)
    service = Service(Worker(server, workflows, Settings(gpu_usd_per_s=0.5), store=store), lifecycle)
    yield service
    server.close()
    service.threads.shutdown(wait=False)


def records(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return the logged records."""
    return [record.__dict__["job"] for record in caplog.records if record.getMessage() == MESSAGE]


def test_a_job_logs_one_record_of_its_result(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """A successful job logs one record with all fields: the result's timings, GPU, cost and sizes, and the models."""
    with caplog.at_level(logging.INFO):
        result = asyncio.run(make_handler(service)({"id": "job", "input": {**SMALL, "num_images": 2}}))
    [record] = records(caplog)

    assert list(record) == list(FIELDS)
    assert (record["state"], record["code"], record["workflow"]) == ("COMPLETED", None, "flux-dev-txt2img")
    assert record["models"] == ["vae/ae.safetensors"]
    assert (record["images"], record["bytes"]) == (2, sum(image["bytes"] for image in result["images"]))
    assert {name: record[name] for name in ("timings", "gpu", "cost")} == {
        name: result[name] for name in ("timings", "gpu", "cost")
    }
    assert record["worker_s"] >= record["timings"]["total_s"]
    assert record["retries"] == 0


def test_a_cancelled_job_logs_one_record(
    service: Service, simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that is cancelled while it runs logs one record with the state CANCELLED and its workflow."""
    simulator.faults.hang_sampling()

    async def cancelled() -> None:
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def note(_job: object, _progress: object) -> None:
            loop.call_soon_threadsafe(started.set)

        task = asyncio.ensure_future(make_handler(service, note)({"id": "job", "input": SMALL}))
        await asyncio.wait_for(started.wait(), 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with caplog.at_level(logging.INFO):
        asyncio.run(cancelled())
    [record] = records(caplog)

    assert (record["state"], record["code"], record["workflow"]) == ("CANCELLED", None, "flux-dev-txt2img")


def test_a_failed_job_has_its_code_and_no_message() -> None:
    """The record of a failed job has its error code but not the message, which may quote the request."""
    outcome = {"error": ErrorReport.because(ErrorCode.OUT_OF_MEMORY, "SECRET").to_json()}
    record = job_record({"input": {}}, outcome, JobNotes("custom", runs=3), 1.5)

    assert list(record) == list(FIELDS)
    assert (record["state"], record["code"], record["workflow"]) == ("FAILED", "out_of_memory", "custom")
    assert (record["retries"], record["worker_s"], record["timings"], record["cost"]) == (2, 1.5, {}, None)
    assert "SECRET" not in json.dumps(record)


def test_a_record_has_no_image_and_no_whole_hash() -> None:
    """The record counts images and files together but has no data of them, and cuts the hash of a model by address."""
    notes = JobNotes("custom", (f"loras/by-address/{'ab' * 32}.safetensors",))
    record = job_record({"input": {}}, {"images": [ENTRY], "files": [ENTRY]}, notes, 1)

    assert (record["images"], record["bytes"]) == (1, 2_000)
    assert record["models"] == ["loras/by-address/abababababab.safetensors"]
    assert "SECRET" not in json.dumps(record)
