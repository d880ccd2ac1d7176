"""Jobs of the task `models` on the real SDK: list, download and delete while another job renders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from bench.worker_setup import ROOT, WorkerSetup, code_of, running_worker
from comfy_core.contract import ErrorReport
from simulators.hugging_face import ModelServer
from simulators.runpod.queue_api import QueueJobState
from simulators.waiting import until
from tests.core.models.addresses import HF, HF_PATH, LORA

pytestmark = pytest.mark.slow
SCRIPT = ROOT / "tests/production/local_models_worker.py"
FILES = 2_000


@pytest.fixture
def setup(lora_server: ModelServer) -> Iterator[WorkerSetup]:
    """A worker that downloads from the server and shares the folders of its ComfyUI."""
    with running_worker(shares_files=True, script=SCRIPT, environment={"MODEL_SERVER": lora_server.url}) as setup:
        yield setup


def run_task(setup: WorkerSetup, **request: object) -> dict[str, Any]:
    """Run a job of the task, and return its result or its error report."""
    job = setup.platform.wait_for(setup.platform.submit({"task": "models", **request}), 60)
    if job.state != QueueJobState.COMPLETED:
        return {"error": json.loads(ErrorReport.from_json(str(job.error)).to_json())}
    assert isinstance(job.output, dict)
    return job.output


def test_models_are_managed_while_a_job_renders(setup: WorkerSetup) -> None:
    """Download, list and delete end while a job renders. Its LoRA is kept until it ends."""
    assert setup.simulator is not None
    downloaded = run_task(setup, action="download", hf="studio/loras/knight.safetensors@v1", folder="loras")
    assert downloaded["downloaded"], downloaded
    setup.simulator.faults.hang_sampling(at_step=1)
    rendering = setup.submit(loras=["knight.safetensors"])
    assert until(lambda: bool(setup.simulator and setup.simulator.hanging_step))
    knight = {"folder": "loras", "name": "knight.safetensors"}
    refused = run_task(setup, action="delete", **knight)
    [used] = [each for each in run_task(setup, action="list", folder="loras")["models"] if each["in_use"]]
    setup.simulator.faults.release()

    assert refused["error"]["code"] == "model_in_use"
    assert used["name"] == "knight.safetensors"
    assert code_of(setup.platform.wait_for(rendering, 60)) is None
    assert run_task(setup, action="delete", **knight)["model"]["bytes"] == len(LORA)
    assert run_task(setup, action="list", folder="loras")["models"] == []


def test_a_list_of_many_files(setup: WorkerSetup) -> None:
    """All of 2,000 files are in the list."""
    folder = setup.comfyui_directory / "models/loras/many"
    folder.mkdir(parents=True)
    for number in range(FILES):
        (folder / f"{number}.safetensors").write_bytes(b"x")
    result = run_task(setup, action="list")

    assert len(result["models"]) == FILES
    assert {each["bytes"] for each in result["models"]} == {1}


def test_ctrl_c_cancels_a_download_which_is_then_resumed(setup: WorkerSetup, lora_server: ModelServer) -> None:
    """Ctrl-C in the command cancels its job. The next command downloads only the rest."""
    hold = lora_server.hold(HF_PATH, after=50_000)
    command = [sys.executable, "-m", "comfy_client.cli.main", "models", "download", HF, "--folder=loras"]
    environment = {**os.environ, **setup.platform.client_env(), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert hold.reached.wait(60)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    [job] = setup.platform.jobs.values()
    assert until(lambda: "cancelled after" in setup.worker.log)
    hold.release()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)

    assert process.returncode == 130
    assert f"job {job.id} was cancelled" in err
    assert job.state == QueueJobState.CANCELLED
    assert done.stdout.startswith("downloaded loras/knight.safetensors")
    assert lora_server.requests(HF_PATH)[-1].offset > 0
