"""A simulator with configurable faults, and a worker that uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from comfy_core.comfyui.server import ComfyServer
from comfy_core.errors import JobError
from comfy_core.workflows import Workflow
from simulators.comfyui import Simulator
from worker.jobs import Control, Worker, run_job
from worker.settings import Settings

SMALL_INPUT = {"prompt": "a knight", "width": 64, "height": 64, "steps": 4, "seed": 1}

RunJob = Callable[..., dict[str, Any]]


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """A new simulator, with 0.02 s per step."""
    with Simulator(step_s=0.02) as simulator:
        yield simulator


@pytest.fixture
def server(simulator: Simulator) -> Iterator[ComfyServer]:
    """A client of the simulator that has no access to the simulator's folders."""
    server = ComfyServer(simulator.url)
    yield server
    server.close()


@pytest.fixture
def run_input(server: ComfyServer, workflows: Mapping[str, Workflow]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that runs a job with the given input."""
    worker = Worker(server, workflows, Settings(job_timeout_s=60))
    return lambda job_input: run_job(worker, {"id": "test", "input": job_input}, Control())


@pytest.fixture
def run(server: ComfyServer, workflows: Mapping[str, Workflow]) -> RunJob:
    """Return a function that runs the small job with changed inputs."""

    def run_small(
        stop: Callable[[], JobError | None] = lambda: None,
        job_timeout_s: float = 60,
        **changes: Any,  # noqa: ANN401 - any input of the workflow
    ) -> dict[str, Any]:
        worker = Worker(server, workflows, Settings(job_timeout_s=job_timeout_s))
        return run_job(worker, {"id": "test", "input": {**SMALL_INPUT, **changes}}, Control(stop))

    return run_small
