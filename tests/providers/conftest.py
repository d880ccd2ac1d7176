"""Fixtures: a RunPod platform for each test, a Scenario for each file, and their clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from comfy_client.client import Client, client_from_env
from simulators.runpod.queue_api import RunPodPlatform
from simulators.scenario import ScenarioSimulator
from simulators.waiting import until
from tests.providers.provider_fixtures import scenario_client


@pytest.fixture
def platform() -> Iterator[RunPodPlatform]:
    """An endpoint without a worker, which holds polls for 0.1 s."""
    with RunPodPlatform(long_poll_s=0.1) as platform:
        yield platform


@pytest.fixture
def client(platform: RunPodPlatform) -> Iterator[Client]:
    """A client of the platform, with a timeout of a few seconds."""
    with client_from_env(platform.client_env(), timeout_s=20.0) as client:
        yield client


@pytest.fixture(scope="module")
def shared_scenario() -> Iterator[ScenarioSimulator]:
    """One Scenario for all tests of a file."""
    with ScenarioSimulator(run_s=0.05) as scenario:
        yield scenario


@pytest.fixture
def scenario(shared_scenario: ScenarioSimulator) -> Iterator[ScenarioSimulator]:
    """Scenario without faults, active jobs or recorded calls."""
    yield shared_scenario
    shared_scenario.faults.clear()
    assert until(lambda: not shared_scenario.unfinished_jobs())
    shared_scenario.calls.clear()


@pytest.fixture
def client_of_scenario(scenario: ScenarioSimulator) -> Iterator[Client]:
    """A client of the simulated Scenario."""
    with scenario_client(scenario) as client:
        yield client
