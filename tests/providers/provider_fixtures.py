"""How the tests start each provider: its environment, its backend, and its abilities beyond the contract."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bench.worker_setup import WorkerSetup
from comfy_client.client import Client, client_from_env
from simulators.comfyui import Simulator
from simulators.scenario import ScenarioSimulator


class Ability(enum.Enum):
    """Something that only some providers can do. For the others it is an error, or has no meaning."""

    GRAPHS = "runs a caller's graph, and names a failing node"
    FILES = "loads files of the worker by name"
    PIXELS = "generates the same pixels from a seed as this project's worker"
    WORKERS = "reports the number of workers"


COMFYUI = frozenset(Ability)
"""The abilities of every provider that uses ComfyUI."""


class ProviderBackend(Protocol):
    """The system behind a provider, which generates the images, and which a test can hold halfway through a job."""

    def hold(self) -> None:
        """Make the next job stop halfway."""
        ...

    def is_held(self) -> bool:
        """Return whether a job has stopped halfway."""
        ...

    def resume(self) -> None:
        """Let the stopped job continue."""
        ...

    def is_idle(self) -> bool:
        """Return whether no job is queued or running."""
        ...

    def counts(self) -> tuple[int, ...]:
        """Return counters that grow with every job, uploaded image or prompt."""
        ...

    def clear(self) -> None:
        """Remove every fault."""
        ...


@dataclass(frozen=True)
class ComfyBackend:
    """The simulator of the worker's ComfyUI, which the direct provider uses too."""

    worker_setup: WorkerSetup
    simulator: Simulator

    def hold(self) -> None:
        """Make the next job hang in its second step."""
        self.simulator.faults.hang_sampling(at_step=2)

    def is_held(self) -> bool:
        """Return whether a job hangs."""
        return bool(self.simulator.hanging_step)

    def resume(self) -> None:
        """Continue sampling."""
        self.simulator.faults.release()

    def is_idle(self) -> bool:
        """Return whether ComfyUI's queue is empty."""
        return not self.simulator.queue_ids

    def counts(self) -> tuple[int, ...]:
        """Return the numbers of the platform's jobs and of ComfyUI's prompts."""
        return self.worker_setup.platform.submissions, len(self.simulator.executed_prompts)

    def clear(self) -> None:
        """Remove every fault."""
        self.simulator.faults.clear()


@dataclass(frozen=True)
class ScenarioBackend:
    """The simulator of Scenario's API."""

    scenario: ScenarioSimulator

    def hold(self) -> None:
        """Make the next job stop at 40 %."""
        self.scenario.faults.hold_job()

    def is_held(self) -> bool:
        """Return whether a job has stopped at 40 %."""
        return bool(self.scenario.held_jobs())

    def resume(self) -> None:
        """Let the stopped job continue."""
        self.scenario.faults.release()

    def is_idle(self) -> bool:
        """Return whether every job has ended."""
        return not self.scenario.unfinished_jobs()

    def counts(self) -> tuple[int, ...]:
        """Return the numbers of Scenario's jobs and assets."""
        return self.scenario.submissions, len(self.scenario.assets)

    def clear(self) -> None:
        """Remove every fault."""
        self.scenario.faults.clear()


@dataclass(frozen=True)
class Backends:
    """All systems that providers use: the worker on its platform, and Scenario."""

    worker_setup: WorkerSetup
    simulator: Simulator
    scenario: ScenarioSimulator


def _comfy(backends: Backends) -> ProviderBackend:
    return ComfyBackend(backends.worker_setup, backends.simulator)


@dataclass(frozen=True)
class ProviderSetup:
    """How one provider is tested.

    Attributes:
        provider: the value of IMAGE_GENERATION_PROVIDER.
        variables: returns the other variables of the environment.
        backend: returns the system behind the provider.
        abilities: what the provider can do beyond the contract.
    """

    provider: str
    variables: Callable[[Backends], dict[str, str]]
    backend: Callable[[Backends], ProviderBackend]
    abilities: frozenset[Ability]


PROVIDER_SETUPS: dict[str, ProviderSetup] = {
    "comfyui": ProviderSetup("comfyui", lambda backends: backends.worker_setup.platform.client_env(), _comfy, COMFYUI),
    "comfyui, directly": ProviderSetup(
        "comfyui", lambda backends: {"COMFYUI_ENDPOINT": backends.simulator.url}, _comfy, COMFYUI
    ),
    "runpod": ProviderSetup("runpod", lambda backends: backends.worker_setup.platform.client_env(), _comfy, COMFYUI),
    "scenario": ProviderSetup(
        "scenario",
        lambda backends: backends.scenario.client_env(),
        lambda backends: ScenarioBackend(backends.scenario),
        frozenset(),
    ),
}


def setups_with(ability: Ability) -> list[str]:
    """Return the names of the setups whose provider has the ability."""
    return [name for name, setup in PROVIDER_SETUPS.items() if ability in setup.abilities]


def setups_without(*abilities: Ability) -> list[tuple[str, Ability]]:
    """Return a pair of setup and ability for each of `abilities` that a setup's provider does not have."""
    return [
        (name, each) for name, setup in PROVIDER_SETUPS.items() for each in abilities if each not in setup.abilities
    ]


@dataclass(frozen=True)
class ProviderUnderTest:
    """A client of one provider, and its backend."""

    client: Client
    backends: Backends
    backend: ProviderBackend
    abilities: frozenset[Ability]

    @property
    def simulator(self) -> Simulator:
        """The simulated ComfyUI. Only for providers that use it."""
        return self.backends.simulator


def scenario_client(scenario: ScenarioSimulator, **changes: str) -> Client:
    """Return a client of the simulated Scenario, with one LoRA. `changes` are variables that are added or replaced."""
    loras = {"SCENARIO_LORAS": '{"knight.safetensors": "model_knight"}'}
    environment = {"IMAGE_GENERATION_PROVIDER": "scenario", **scenario.client_env(), **loras, **changes}
    return client_from_env(environment, timeout_s=60)
