"""A ComfyUI for the tests of this folder: the simulator, or a real one at COMFYUI_URL. The tests are the same for each.

Also the function that runs a job on it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import requests
from PIL import Image

from comfy_core.comfyui.prompt_monitor import WaitLimits
from comfy_core.comfyui.server import ComfyServer
from comfy_core.errors import JobError
from comfy_core.workflows import Workflow
from simulators.comfyui import Simulator
from tests.conftest import COMFYUI_URL
from worker.jobs import Control, Worker, run_job
from worker.settings import Settings

PATIENT_LIMITS = WaitLimits(timeout_s=250, queue_timeout_s=250)


@pytest.fixture(scope="session")
def comfyui_url() -> Iterator[str]:
    """The URL of a ComfyUI that has the models of the shipped workflows."""
    if COMFYUI_URL:
        yield COMFYUI_URL
        return
    with Simulator(step_s=0.02) as simulator:
        yield simulator.url


@pytest.fixture
def server(comfyui_url: str) -> Iterator[ComfyServer]:
    """A client of that ComfyUI."""
    server = ComfyServer(comfyui_url)
    yield server
    server.close()


@pytest.fixture
def get_json(comfyui_url: str) -> Callable[[str], Any]:
    """Return a function that sends a GET request for a path to ComfyUI, without our client, and returns the JSON."""

    def get(path: str) -> Any:  # noqa: ANN401 - any JSON value
        return requests.get(comfyui_url + path, timeout=60).json()

    return get


@pytest.fixture
def run(server: ComfyServer, workflows: Mapping[str, Workflow]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that runs a job. For a template the defaults are two steps and, without an image, 64 x 64."""
    worker = Worker(server, workflows, Settings(job_timeout_s=250))

    def run_input(job_input: dict[str, Any]) -> dict[str, Any]:
        small = {} if isinstance(job_input.get("workflow"), dict) else {"steps": 2}
        if "image" not in job_input and not isinstance(job_input.get("workflow"), dict):
            small |= {"width": 64, "height": 64}
        return run_job(worker, {"id": "test", "input": {**small, **job_input}}, Control())

    return run_input


def no_reason_to_stop() -> JobError | None:
    """Return None: the run continues."""
    return None


def png(width: int, height: int, colour: str = "red") -> bytes:
    """Return a PNG of one colour."""
    encoded = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(encoded, "PNG")
    return encoded.getvalue()
