"""Fixtures: a simulated ComfyUI, and a worker that uses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from comfy_core.comfyui.server import ComfyServer
from comfy_core.workflows import Workflow
from simulators.comfyui import Simulator
from worker.jobs import Worker
from worker.settings import Settings


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    """A simulated ComfyUI whose folders are in `tmp_path`."""
    with Simulator(base_directory=tmp_path) as simulator:
        yield simulator


@pytest.fixture
def worker(simulator: Simulator, tmp_path: Path, workflows: Mapping[str, Workflow]) -> Iterator[Worker]:
    """A worker with access to its ComfyUI's folders, as in the container."""
    server = ComfyServer(simulator.url, directory=tmp_path)
    yield Worker(server, workflows, Settings(job_timeout_s=60))
    server.close()
