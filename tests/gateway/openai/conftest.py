"""Fixtures: a server with OpenAI's API in front of a simulated ComfyUI, and the official SDK as its caller."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from bench.shim_process import KEY, SECRET, ShimProcess
from simulators.comfyui import Simulator


def caller(server: ShimProcess, *, max_retries: int = 0) -> openai.OpenAI:
    """Return the official SDK, unmodified, as a caller of a server. It has to be closed."""
    return openai.OpenAI(base_url=server.base_url, api_key=f"{KEY}:{SECRET}", max_retries=max_retries)


@pytest.fixture(scope="module")
def comfyui() -> Iterator[Simulator]:
    """A simulated ComfyUI that sends previews."""
    with Simulator(previews=True) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def server(comfyui: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShimProcess]:
    """A server with both APIs, whose provider is that ComfyUI."""
    folder = tmp_path_factory.mktemp("serve")
    with ShimProcess({"COMFYUI_ENDPOINT": comfyui.url}, folder, command=("serve",)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ShimProcess) -> Iterator[openai.OpenAI]:
    """The official SDK. It repeats no call."""
    with caller(server) as client:
        yield client
