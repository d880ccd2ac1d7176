"""Fixtures: shims as processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.shim_process import ShimProcess
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import ScriptedWorker, image_result


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
