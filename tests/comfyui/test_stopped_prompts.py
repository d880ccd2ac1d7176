"""Stopping prompts by id, on the simulator or a real ComfyUI, while they wait, run, are ending, or have ended."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest

from comfy_core.comfyui.responses import Interrupted, Succeeded, read_history
from comfy_core.comfyui.server import ComfyServer
from comfy_core.graphs import Graph
from comfy_core.workflows import Workflow
from simulators.waiting import until
from tests.comfyui.test_jobs import graph_with

RACES = 12
Queue = Callable[[Graph], str]


@pytest.fixture
def queue(server: ComfyServer) -> Iterator[Queue]:
    """Return a function that queues a graph and returns the prompt's id. At the end all prompts are removed."""
    prompt_ids: list[str] = []

    def queue_graph(graph: Graph) -> str:
        prompt_ids.append(str(uuid.uuid4()))
        server.queue_prompt(graph, prompt_ids[-1])
        return prompt_ids[-1]

    yield queue_graph
    server.stop_prompts(prompt_ids)
    server.delete_history(prompt_ids)


def long_graph(workflows: Mapping[str, Workflow]) -> Graph:
    """Return a graph that samples until it is interrupted."""
    graph = graph_with(workflows)
    graph["8"]["inputs"] |= {"steps": 1000, "seed": uuid.uuid4().int % 2**32}
    return graph


def short_graph(colour: int) -> Graph:
    """Return a graph that needs no model. It takes a fraction of a second."""
    image = {"width": 512, "height": 512, "batch_size": 1, "color": colour}
    return {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}},
    }


def test_only_the_stopped_prompts_end(server: ComfyServer, workflows: Mapping[str, Workflow], queue: Queue) -> None:
    """A running prompt is interrupted, a waiting one never runs, and the prompt after them succeeds."""
    running, waiting, last = queue(long_graph(workflows)), queue(short_graph(1)), queue(short_graph(2))
    assert until(lambda: server.queue_state()[0] == {running})

    server.stop_prompts([running, waiting])

    assert is_idle(server)
    assert isinstance(outcome(server, running), Interrupted)
    assert server.history(waiting) == {}
    assert isinstance(outcome(server, last), Succeeded)


def test_a_prompt_that_has_ended_is_not_touched(
    server: ComfyServer, workflows: Mapping[str, Workflow], queue: Queue
) -> None:
    """Stopping a prompt that has ended changes neither its history nor the prompt that runs."""
    ended = queue(short_graph(3))
    assert is_idle(server)
    running = queue(long_graph(workflows))
    assert until(lambda: server.queue_state()[0] == {running})

    assert server.stop_prompts([ended, str(uuid.uuid4())]) == frozenset()

    assert server.queue_state()[0] == {running}
    assert isinstance(outcome(server, ended), Succeeded)


def test_the_prompt_after_one_that_ends_is_never_touched(server: ComfyServer, queue: Queue) -> None:
    """Prompts are stopped around the moment when they end and the next one starts. The next one always succeeds."""
    others = []
    for race in range(RACES):
        ending = queue(short_graph(2 * race))
        others.append(queue(short_graph(2 * race + 1)))
        if race % 2:
            assert until(partial(has_started, server, ending))
        server.stop_prompts([ending])

    assert is_idle(server)
    assert [type(outcome(server, prompt_id)) for prompt_id in others] == [Succeeded] * RACES


def has_started(server: ComfyServer, prompt_id: str) -> bool:
    """Return whether a queued prompt runs or has ended."""
    return prompt_id not in server.queue_state()[1]


def is_idle(server: ComfyServer) -> bool:
    """Wait until no prompt waits or runs, longer than a model takes to load; return whether that happened in time."""
    return until(lambda: server.queue_state() == (frozenset(), frozenset()), timeout_s=250)


def outcome(server: ComfyServer, prompt_id: str) -> Any:  # noqa: ANN401 - one of several outcomes, or None
    """Return the outcome of a prompt, or None while it waits or runs."""
    return read_history(server.history(prompt_id), prompt_id)
