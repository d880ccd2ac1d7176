"""A ComfyUI for the tests of this folder: the simulator, or the real one at COMFYUI_URL; no test knows which."""

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

PATIENT = WaitLimits(timeout_s=110, queue_timeout_s=110)


@pytest.fixture(scope="session")
def comfyui_url() -> Iterator[str]:
    """The address of a ComfyUI with the models of the shipped workflows."""
    if COMFYUI_URL:
        yield COMFYUI_URL
        return
    with Simulator(step_s=0.02) as simulator:
        yield simulator.url


@pytest.fixture
def server(comfyui_url: str) -> Iterator[ComfyServer]:
    """A ComfyServer on it."""
    server = ComfyServer(comfyui_url)
    yield server
    server.close()


@pytest.fixture
def ask(comfyui_url: str) -> Callable[[str], Any]:
    """GET a path of ComfyUI past our own code, and return the answer's JSON."""

    def get(path: str) -> Any:  # noqa: ANN401 - any JSON value
        return requests.get(comfyui_url + path, timeout=30).json()

    return get


@pytest.fixture
def job(server: ComfyServer, workflows: Mapping[str, Workflow]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Run a job's input on it, small unless the test says otherwise."""
    worker = Worker(server, workflows, Settings(job_timeout_s=110))

    def run(job_input: dict[str, Any]) -> dict[str, Any]:
        small = {} if isinstance(job_input.get("workflow"), dict) else {"steps": 2}
        if "image" not in job_input and not isinstance(job_input.get("workflow"), dict):
            small |= {"width": 64, "height": 64}
        return run_job(worker, {"id": "test", "input": {**small, **job_input}}, Control())

    return run


def never() -> JobError | None:
    """Stop nothing."""
    return None


def png(width: int, height: int, colour: str = "red") -> bytes:
    """Return a PNG of one colour."""
    encoded = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(encoded, "PNG")
    return encoded.getvalue()
