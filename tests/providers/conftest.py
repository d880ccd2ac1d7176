"""A platform of the test's own, or a Scenario of the file's, and the client that its variables make."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from comfy_client.client import Client, client_from_env
from simulators.runpod.queue_api import RunPodPlatform
from simulators.scenario import ScenarioStandIn
from simulators.waiting import until
from tests.providers.provider_fixtures import scenario_client


@pytest.fixture
def platform() -> Iterator[RunPodPlatform]:
    """An endpoint without a worker, which holds polls for a tenth of a second."""
    with RunPodPlatform(long_poll_s=0.1) as platform:
        yield platform


@pytest.fixture
def client(platform: RunPodPlatform) -> Iterator[Client]:
    """The client of it; it waits for a few seconds."""
    with client_from_env(platform.client_env(), timeout_s=20.0) as client:
        yield client


@pytest.fixture(scope="module")
def scenario_world() -> Iterator[ScenarioStandIn]:
    """One Scenario for all tests of a file."""
    with ScenarioStandIn(run_s=0.05) as scenario:
        yield scenario


@pytest.fixture
def scenario(scenario_world: ScenarioStandIn) -> Iterator[ScenarioStandIn]:
    """Scenario, well, with nothing under way and no call yet."""
    yield scenario_world
    scenario_world.faults.clear()
    assert until(lambda: not scenario_world.under_way())
    scenario_world.calls.clear()


@pytest.fixture
def at_scenario(scenario: ScenarioStandIn) -> Iterator[Client]:
    """The client of it."""
    with scenario_client(scenario) as client:
        yield client
