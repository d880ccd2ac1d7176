"""Fixtures: a simulated RunPod for each test, a simulated Scenario for each module, and a client of each."""

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
    """A client of the platform, with a timeout of 60 s."""
    with client_from_env(platform.client_env(), timeout_s=60) as client:
        yield client


@pytest.fixture(scope="module")
def shared_scenario() -> Iterator[ScenarioSimulator]:
    """One simulated Scenario for all tests of a module."""
    with ScenarioSimulator(run_s=0.05) as scenario:
        yield scenario


@pytest.fixture
def scenario(shared_scenario: ScenarioSimulator) -> Iterator[ScenarioSimulator]:
    """The module's simulated Scenario, without faults, unfinished jobs or recorded calls of other tests."""
    yield shared_scenario
    shared_scenario.faults.clear()
    assert until(lambda: not shared_scenario.unfinished_jobs())
    shared_scenario.calls.clear()


@pytest.fixture
def client_of_scenario(scenario: ScenarioSimulator) -> Iterator[Client]:
    """A client of the simulated Scenario."""
    with scenario_client(scenario) as client:
        yield client
