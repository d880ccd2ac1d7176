"""Fixtures: a simulated Scenario, and a shim process that has its key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.shim_process import ShimProcess
from simulators.runpod.queue_api import RunPodPlatform
from simulators.scenario.api import KEY, SECRET, ScenarioSimulator
from tests.gateway.scenario.bridge.caller import Caller


def upstream_variables(scenario: ScenarioSimulator) -> dict[str, str]:
    """Return the variables with which a shim forwards to this simulator."""
    return {
        "SCENARIO_SHIM_UPSTREAM_API_KEY": KEY,
        "SCENARIO_SHIM_UPSTREAM_API_SECRET": SECRET,
        "SCENARIO_SHIM_UPSTREAM_URL": scenario.url,
    }


@pytest.fixture
def scenario() -> Iterator[ScenarioSimulator]:
    """A simulated Scenario.com."""
    with ScenarioSimulator() as scenario:
        yield scenario


@pytest.fixture
def shim(
    platform: RunPodPlatform, scenario: ScenarioSimulator, tmp_path: Path, released: object
) -> Iterator[ShimProcess]:
    """A shim of an endpoint whose worker responds at once, with the key of the simulated Scenario."""
    released.set()  # type: ignore[attr-defined]
    with ShimProcess({**platform.client_env(), **upstream_variables(scenario)}, tmp_path / "shim") as shim:
        yield shim


@pytest.fixture
def caller(shim: ShimProcess) -> Caller:
    """A caller of the shim."""
    return Caller(shim.base_url)
