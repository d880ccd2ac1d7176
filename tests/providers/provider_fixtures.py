"""How each provider is put on a stage, what stands behind it there, and what it can do beyond what all can."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bench.stage import Stage
from comfy_client.client import Client, client_from_env
from simulators.comfyui import Simulator
from simulators.scenario import ScenarioStandIn


class Ability(enum.Enum):
    """What some providers can do. The others refuse it, or it means nothing there."""

    GRAPHS = "runs graphs of one's own, and names a node that fails"
    FILES = "loads files of the worker by their names"
    PIXELS = "makes the pixels that this project's worker makes of a seed"
    WORKERS = "tells how many workers there are"


COMFYUI = frozenset(Ability)
"""Wherever a ComfyUI makes the pictures."""


class Behind(Protocol):
    """What makes the pictures on a stage."""

    def hold(self) -> None:
        """Let the next job stay in the middle."""
        ...

    def is_held(self) -> bool:
        """Return whether a job stays in the middle."""
        ...

    def go_on(self) -> None:
        """Let it end."""
        ...

    def is_idle(self) -> bool:
        """Return whether there is nothing to do."""
        ...

    def taken(self) -> tuple[int, ...]:
        """Return counts that grow with whatever is sent there."""
        ...

    def clear(self) -> None:
        """Undo every fault."""
        ...


@dataclass(frozen=True)
class ComfyBehind:
    """The worker's simulator, which the direct provider reaches too."""

    stage: Stage
    simulator: Simulator

    def hold(self) -> None:
        """Hang in the second step."""
        self.simulator.faults.hang_sampling(at_step=2)

    def is_held(self) -> bool:
        """Return whether it hangs."""
        return bool(self.simulator.hanging_step)

    def go_on(self) -> None:
        """Sample on."""
        self.simulator.faults.go_on()

    def is_idle(self) -> bool:
        """Return whether its queue is empty."""
        return not self.simulator.queue_ids

    def taken(self) -> tuple[int, ...]:
        """Return how many jobs the platform took, and how many prompts ComfyUI ran."""
        return self.stage.platform.submissions, len(self.simulator.executed_prompts)

    def clear(self) -> None:
        """Undo every fault."""
        self.simulator.faults.clear()


@dataclass(frozen=True)
class ScenarioBehind:
    """The stand-in of Scenario's API."""

    scenario: ScenarioStandIn

    def hold(self) -> None:
        """Stay at 40 %."""
        self.scenario.faults.hold_job()

    def is_held(self) -> bool:
        """Return whether a job is there."""
        return bool(self.scenario.held())

    def go_on(self) -> None:
        """Go on from there."""
        self.scenario.faults.go_on()

    def is_idle(self) -> bool:
        """Return whether every job has ended."""
        return not self.scenario.under_way()

    def taken(self) -> tuple[int, ...]:
        """Return how many jobs and pictures it took, and made."""
        return self.scenario.submissions, len(self.scenario.assets)

    def clear(self) -> None:
        """Undo every fault."""
        self.scenario.faults.clear()


@dataclass(frozen=True)
class World:
    """All that providers may reach, side by side: the worker on its platform, and Scenario."""

    stage: Stage
    simulator: Simulator
    scenario: ScenarioStandIn


def _comfy(world: World) -> Behind:
    return ComfyBehind(world.stage, world.simulator)


@dataclass(frozen=True)
class Staging:
    """One provider on a stage: its name, the variables that lead it there, what is behind it, and what it can do."""

    provider: str
    variables: Callable[[World], dict[str, str]]
    behind: Callable[[World], Behind]
    abilities: frozenset[Ability]


STAGINGS: dict[str, Staging] = {
    "comfyui": Staging("comfyui", lambda world: world.stage.platform.client_env(), _comfy, COMFYUI),
    "comfyui, directly": Staging("comfyui", lambda world: {"COMFYUI_ENDPOINT": world.simulator.url}, _comfy, COMFYUI),
    "runpod": Staging("runpod", lambda world: world.stage.platform.client_env(), _comfy, COMFYUI),
    "scenario": Staging(
        "scenario",
        lambda world: world.scenario.client_env(),
        lambda world: ScenarioBehind(world.scenario),
        frozenset(),
    ),
}


def able(ability: Ability) -> list[str]:
    """Return the names of the setups that can do it."""
    return [name for name, staging in STAGINGS.items() if ability in staging.abilities]


def unable(*abilities: Ability) -> list[tuple[str, Ability]]:
    """Return each staging with each of `abilities` that it does not have."""
    return [(name, each) for name, staging in STAGINGS.items() for each in abilities if each not in staging.abilities]


@dataclass(frozen=True)
class ProviderScene:
    """A client of one provider, and what stands behind it."""

    client: Client
    world: World
    behind: Behind
    abilities: frozenset[Ability]

    @property
    def simulator(self) -> Simulator:
        """The ComfyUI, for tests of providers that have one."""
        return self.world.simulator


def scenario_client(scenario: ScenarioStandIn, **changes: str) -> Client:
    """Return a client of the stand-in, which knows one LoRA, with other variables."""
    loras = {"SCENARIO_LORAS": '{"knight.safetensors": "model_knight"}'}
    environment = {"IMAGE_GENERATION_PROVIDER": "scenario", **scenario.client_env(), **loras, **changes}
    return client_from_env(environment, timeout_s=30.0)
