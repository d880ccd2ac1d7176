"""Stopping prompts never touches another prompt, on a ComfyUI with /api/jobs/{id}/cancel and on an older one."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping

import pytest

from comfy_core.comfyui.responses import Succeeded, read_history
from comfy_core.comfyui.server import ComfyServer
from comfy_core.workflows import Workflow
from simulators.comfyui import Simulator
from simulators.waiting import until
from tests.comfyui.test_jobs import graph_with


@pytest.fixture(params=["cancel", "interrupt"])
def path(simulator: Simulator, request: pytest.FixtureRequest) -> str:
    """The last part of the path of the request that interrupts a prompt."""
    if request.param == "interrupt":
        simulator.faults.lack_cancel()
    return str(request.param)


def queue_prompts(server: ComfyServer, workflows: Mapping[str, Workflow], count: int) -> list[str]:
    """Queue different prompts, and return their ids."""
    prompt_ids = [str(uuid.uuid4()) for _ in range(count)]
    for seed, prompt_id in enumerate(prompt_ids):
        graph = graph_with(workflows)
        graph["8"]["inputs"]["seed"] = seed
        server.queue_prompt(graph, prompt_id)
    return prompt_ids


def test_a_running_and_a_waiting_prompt_are_stopped_and_another_runs(
    simulator: Simulator, server: ComfyServer, workflows: Mapping[str, Workflow], path: str
) -> None:
    """The first two of three prompts are stopped, and the third succeeds. A prompt that has ended is not touched."""
    simulator.faults.hang_sampling()
    *stopped, last = queue_prompts(server, workflows, 3)
    assert until(lambda: simulator.hanging_step)

    assert server.stop_prompts(stopped) == frozenset()

    assert until(lambda: last in simulator.history_ids)
    assert isinstance(read_history(server.history(last), last), Succeeded)
    assert simulator.executed_prompts == [stopped[0], last]
    assert server.stop_prompts([last]) == frozenset()
    assert [each for _, each in simulator.requests if each.endswith(f"/{path}")]


def test_a_comfyui_without_cancel_is_detected_once(
    simulator: Simulator, server: ComfyServer, workflows: Mapping[str, Workflow]
) -> None:
    """After the first 405, prompts are interrupted without another request for a cancel."""
    simulator.faults.lack_cancel()
    for _ in range(2):
        simulator.faults.hang_sampling()
        [prompt_id] = queue_prompts(server, workflows, 1)
        assert until(lambda: simulator.hanging_step)
        assert server.stop_prompts([prompt_id]) == frozenset()

    paths = [path for _, path in simulator.requests]
    assert [sum(path.endswith(end) for path in paths) for end in ("/cancel", "/interrupt")] == [1, 2]


def test_a_prompt_that_starts_during_a_cancel_is_not_interrupted(
    simulator: Simulator, server: ComfyServer, workflows: Mapping[str, Workflow], path: str
) -> None:
    """If a prompt ends while its cancel is sent, the cancel does nothing to the prompt that has started meanwhile."""
    simulator.faults.hang_sampling(times=2)
    ending, starting = queue_prompts(server, workflows, 2)
    assert until(lambda: simulator.hanging_step)
    simulator.faults.respond_slowly("POST /interrupt" if path == "interrupt" else "POST /jobs", 0.5)
    stop = threading.Thread(target=server.stop_prompts, args=([ending],))
    stop.start()
    assert until(lambda: any(each.endswith(f"/{path}") for _, each in simulator.requests))

    simulator.faults.release()
    assert until(lambda: simulator.executed_prompts == [ending, starting] and simulator.hanging_step)
    stop.join()
    assert simulator.queue_ids == [starting]
    simulator.faults.release()

    assert until(lambda: starting in simulator.history_ids)
    assert isinstance(read_history(server.history(starting), starting), Succeeded)
