"""The warm-up runs while the worker has no job, is interrupted by a job, and retires the worker if it fails."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import requests

from comfy_core.contract import ErrorReport
from handler import make_handler, worker_from_settings
from simulators.comfyui import Simulator
from simulators.waiting import until
from worker.job_execution import Service
from worker.lifecycle import Lifecycle
from worker.settings import Settings
from worker.supervision import RemoteComfyUI
from worker.warm_up import STEPS, WarmUp

pytestmark = pytest.mark.slow
SMALL_INPUT = {"prompt": "a knight", "width": 64, "height": 64, "steps": 3}


class WarmingWorker:
    """A worker on a simulated ComfyUI. `ended` has the reason and the exit status if the worker retired."""

    def __init__(self, simulator: Simulator, workflow: str = "", timeout_s: float = 30, **environment: str) -> None:
        self.ended: list[str] = []
        self.lifecycle = Lifecycle(
            stop_comfyui=lambda: None,
            report_unhealthy=self.ended.append,
            grace_s=0,
            end=lambda status: self.ended.append(str(status)),
        )
        worker = worker_from_settings(Settings.from_env({"COMFYUI_URL": simulator.url, **environment}))
        self.worker = replace(worker, workflows={workflow: worker.workflows[workflow]}) if workflow else worker
        self.comfyui = RemoteComfyUI(simulator.url)
        self._warm_up = WarmUp(self.worker, self.lifecycle, idle_before_s=0.2, timeout_s=timeout_s)
        self.handler = make_handler(Service(self.worker, self.lifecycle, self.comfyui))

    def begin(self) -> None:
        """Begin the warm-up, as the worker does before each poll for jobs."""
        self._warm_up.begin(self.comfyui)

    def run(self, **changes: object) -> dict[str, Any]:
        """Run a small job; return its result or error."""
        return asyncio.run(self.handler({"id": "job-1", "input": {**SMALL_INPUT, **changes}}))

    @property
    def is_over(self) -> bool:
        """Whether no warm-up runs or waits."""
        return not [thread for thread in threading.enumerate() if thread.name == "warm-up"]


@pytest.fixture
def make_warming(simulator: Simulator) -> Iterator[Callable[..., WarmingWorker]]:
    """Yield a function that creates a worker whose warm-up has not begun. Each warm-up ends before the test's end."""
    made: list[WarmingWorker] = []

    def make(**arguments: Any) -> WarmingWorker:  # noqa: ANN401 - those of WarmingWorker
        made.append(WarmingWorker(simulator, **arguments))
        return made[-1]

    yield make
    for warming in made:
        assert until(lambda: warming.is_over)  # noqa: B023 - called at once
        warming.worker.server.close()


@pytest.fixture
def warming(make_warming: Callable[..., WarmingWorker]) -> WarmingWorker:
    """A worker with the default settings, whose warm-up has not begun."""
    return make_warming()


def test_an_idle_worker_warms_up_once(
    simulator: Simulator, warming: WarmingWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """The warm-up samples two steps and leaves nothing in ComfyUI. It does not run again."""
    with caplog.at_level(logging.INFO, "worker.warm_up"):
        warming.begin()
        assert until(lambda: warming.is_over)
        warming.begin()

    assert warming.is_over
    assert simulator.sampled_steps == STEPS
    assert len(simulator.executed_prompts) == 1
    assert [*simulator.queue_ids, *simulator.history_ids] == []
    assert [record.message.partition(" in ")[0] for record in caplog.records] == ["warming up", "warmed up"]


@pytest.mark.parametrize(("environment", "size"), [({}, (1024, 1024)), ({"WORKER_WARMUP_SIZE": "512x768"}, (512, 768))])
def test_the_size_is_a_setting(
    simulator: Simulator,
    make_warming: Callable[..., WarmingWorker],
    environment: dict[str, str],
    size: tuple[int, int],
) -> None:
    """The warm-up's image has the size of WORKER_WARMUP_SIZE, by default 1024 x 1024."""
    simulator.faults.hang_sampling()
    warming = make_warming(**environment)
    warming.begin()
    assert until(lambda: simulator.hanging_step)
    [[_, _, graph, *_]] = requests.get(f"{simulator.url}/queue", timeout=60).json()["queue_running"]
    simulator.faults.release()

    [latent] = [node["inputs"] for node in graph.values() if node["class_type"] == "EmptySD3LatentImage"]
    assert (latent["width"], latent["height"]) == size


@pytest.mark.parametrize(
    ("workflow", "environment"), [("", {"WORKER_WARMUP": "false"}), ("flux-dev-img2img", {})], ids=["off", "no txt2img"]
)
def test_a_warm_up_can_be_disabled(
    simulator: Simulator, make_warming: Callable[..., WarmingWorker], workflow: str, environment: dict[str, str]
) -> None:
    """There is no warm-up with WORKER_WARMUP=false, or if the txt2img workflow does not exist."""
    warming = make_warming(workflow=workflow, **environment)
    warming.begin()

    assert warming.is_over
    assert simulator.executed_prompts == []


def test_a_job_at_the_start_makes_the_warm_up_unnecessary(simulator: Simulator, warming: WarmingWorker) -> None:
    """A job that arrives at once is ComfyUI's first prompt, and after its success there is no warm-up."""
    warming.begin()
    result = warming.run()

    assert until(lambda: warming.is_over)
    assert simulator.executed_prompts == result["prompt_ids"]


def test_a_job_interrupts_the_warm_up(simulator: Simulator, warming: WarmingWorker) -> None:
    """A job that arrives during the warm-up has its result. The warm-up is no error and does not run again."""
    simulator.faults.hang_sampling()  # until it is interrupted
    warming.begin()
    assert until(lambda: simulator.hanging_step)
    result = warming.run()

    assert until(lambda: warming.is_over)
    assert simulator.executed_prompts[1:] == result["prompt_ids"]
    assert simulator.sampled_steps == SMALL_INPUT["steps"]
    assert warming.ended == []
    assert [*simulator.queue_ids, *simulator.history_ids] == []


def test_a_rejected_job_only_delays_the_warm_up(simulator: Simulator, warming: WarmingWorker) -> None:
    """A job that is rejected may end before the warm-up that it interrupts. The warm-up is no error and runs again."""
    simulator.faults.hang_sampling()
    simulator.faults.respond_slowly("/object_info/NoSuchNode", 0.5)
    warming.begin()
    assert until(lambda: simulator.hanging_step)
    error = asyncio.run(warming.handler({"id": "job-1", "input": {"1": {"class_type": "NoSuchNode", "inputs": {}}}}))

    assert ErrorReport.from_json(error["error"]).code.value == "workflow_rejected"
    assert until(lambda: warming.is_over)
    assert len(simulator.executed_prompts) == 2
    assert simulator.sampled_steps == STEPS
    assert warming.ended == []


def test_a_warm_up_follows_a_job_that_failed(simulator: Simulator, warming: WarmingWorker) -> None:
    """If the first job fails, it does not show that the models can be loaded: the idle worker warms up."""
    simulator.faults.run_out_of_memory(times=2)
    warming.begin()
    error = warming.run()["error"]

    assert ErrorReport.from_json(error).code.value == "out_of_memory"
    assert until(lambda: warming.is_over)
    assert simulator.sampled_steps == STEPS
    assert warming.ended == []


def test_a_failed_warm_up_retires_the_worker(
    simulator: Simulator, warming: WarmingWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """If the GPU has too little memory for the warm-up, the worker reports out_of_memory and exits with 1."""
    simulator.faults.run_out_of_memory(times=2)
    warming.begin()

    assert until(lambda: len(warming.ended) == 2)
    assert warming.ended[0].startswith("the warm-up failed: The GPU ran out of memory")
    assert warming.ended[1] == "1"
    assert "the warm-up failed" in caplog.text


def test_a_late_warm_up_is_only_logged(
    simulator: Simulator, make_warming: Callable[..., WarmingWorker], caplog: pytest.LogCaptureFixture
) -> None:
    """A warm-up that exceeds its time is interrupted and logged. RunPod may have suspended the worker meanwhile."""
    simulator.faults.hang_sampling()
    warming = make_warming(timeout_s=0.3)
    warming.begin()

    assert until(lambda: warming.is_over)
    assert "the warm-up failed: deadline_exceeded" in caplog.text
    assert warming.ended == []
    assert simulator.queue_ids == []
