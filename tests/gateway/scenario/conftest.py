"""Fixtures: shims as processes, and an endpoint with a scripted worker, which a test can hold."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.shim_process import ShimProcess
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_result


@pytest.fixture
def released() -> threading.Event:
    """The event that lets the endpoint's worker finish its jobs."""
    return threading.Event()


@pytest.fixture
def platform(released: threading.Event) -> Iterator[RunPodPlatform]:
    """An endpoint whose worker holds its jobs until `released` is set."""

    def respond(job: Body) -> Body:
        assert released.wait(60)
        return image_result(job)

    with RunPodPlatform(long_poll_s=0.5) as platform, ScriptedWorker(platform, respond, threads=4):
        yield platform
        released.set()


@pytest.fixture
def shim(platform: RunPodPlatform, tmp_path: Path) -> Iterator[ShimProcess]:
    """A shim of that endpoint, with an empty folder."""
    with ShimProcess(platform.client_env(), tmp_path / "shim") as shim:
        yield shim


@pytest.fixture(scope="module")
def shared_shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShimProcess]:
    """A shim for all tests of a module. Its endpoint responds at once, and it trusts a proxy on this machine."""
    folder = tmp_path_factory.mktemp("shim")
    with (
        RunPodPlatform(long_poll_s=0.5) as platform,
        ScriptedWorker(platform, image_result, threads=2),
        ShimProcess({**platform.client_env(), "SCENARIO_SHIM_TRUSTED_PROXIES": "127.0.0.1"}, folder) as shim,
    ):
        yield shim
