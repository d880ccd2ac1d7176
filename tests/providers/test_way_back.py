"""The switch, rehearsed: one variable leads to the worker, to Scenario, and back, in one process and by the command.

What is not rehearsed: Scenario.com itself. Its stand-in is held to the official SDK's strict validation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.stage import ROOT, Stage, staged
from comfy_client.client import client_from_env
from simulators.scenario import ScenarioStandIn

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {"width": 128, "height": 128, "steps": 2}
THERE_AND_BACK = ("comfyui", "scenario", "comfyui")


@dataclass(frozen=True)
class SwitchScene:
    """The worker on its platform and Scenario, side by side."""

    stage: Stage
    scenario: ScenarioStandIn

    @property
    def environment(self) -> dict[str, str]:
        """The variables of an application that may go either way; the switch is not among them."""
        return {**self.stage.platform.client_env(), **self.scenario.client_env()}

    @property
    def made(self) -> tuple[int, int]:
        """How many jobs the platform and Scenario took."""
        return self.stage.platform.submissions, self.scenario.submissions


@pytest.fixture(scope="module")
def scene() -> Iterator[SwitchScene]:
    """Both, for all tests of this file."""
    with staged(step_s=0.02) as stage, ScenarioStandIn(run_s=0.05) as scenario:
        yield SwitchScene(stage, scenario)


def application(environment: dict[str, str]) -> tuple[str, tuple[int, int], str | None]:
    """Make a picture as an application does that does not know where: who made it, its size, its asset."""
    with client_from_env(environment, timeout_s=60.0) as client:
        result = client.txt2img("a knight", seed=5, **SMALL)
        return result.provider, result.image.size, result.image.asset_id


def test_one_variable_switches_there_and_back(scene: SwitchScene) -> None:
    """The same code makes its picture at the worker, at Scenario, and at the worker again."""
    before = scene.made
    made = [application({**scene.environment, "IMAGE_GENERATION_PROVIDER": name}) for name in THERE_AND_BACK]

    assert [provider for provider, _, _ in made] == list(THERE_AND_BACK)
    assert {size for _, size, _ in made} == {(128, 128)}
    assert [asset is not None for _, _, asset in made] == [False, True, False]
    assert (scene.made[0] - before[0], scene.made[1] - before[1]) == (2, 1)


def test_a_job_that_is_under_way_is_not_lost_by_a_switch(scene: SwitchScene) -> None:
    """Its id is good at the provider that gave it, so that its result is fetched there after the switch."""
    there = {**scene.environment, "IMAGE_GENERATION_PROVIDER": "scenario"}
    back = {**scene.environment, "IMAGE_GENERATION_PROVIDER": "comfyui"}
    with client_from_env(there) as client:
        job_id = client.submit(prompt="a knight", seed=5, **SMALL).id
    with client_from_env(back) as client:
        assert client.txt2img("a knight", **SMALL).provider == "comfyui"
    with client_from_env(there, timeout_s=60.0) as client:
        assert client.job(job_id).wait().image.seed == 5


def command(scene: SwitchScene, name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command with the switch set, as a shell does."""
    inherited = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "comfy_client.cli.main", *arguments],
        env={**inherited, **scene.environment, "IMAGE_GENERATION_PROVIDER": name},
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        check=False,
    )


def test_the_command_switches_too(scene: SwitchScene, tmp_path: Path) -> None:
    """`comfy-client txt2img` there and back: a file each time, and the asset's id from Scenario."""
    flags = ["--width", "128", "--height", "128", "--steps", "2", "--seed", "5", "--json"]
    made = []
    for number, name in enumerate(THERE_AND_BACK):
        ended = command(scene, name, "txt2img", "a knight", *flags, "-o", f"{number}.png", cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        made.append(json.loads(ended.stdout))

    assert [result["provider"] for result in made] == list(THERE_AND_BACK)
    assert ["asset_id" in result["images"][0] for result in made] == [False, True, False]
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "2.png").read_bytes()


def test_the_doctor_looks_at_scenario(scene: SwitchScene, tmp_path: Path) -> None:
    """It names what the provider reaches, proves the keys, and makes a picture; no secret is shown."""
    ended = command(scene, "scenario", "doctor", "--generate", cwd=tmp_path)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"Scenario at {scene.environment['SCENARIO_BASE_URL']} answers; the key is accepted" in ended.stdout
    assert "128 x 128" in ended.stdout
    assert scene.environment["SCENARIO_SDK_API_SECRET"] not in ended.stdout + ended.stderr
    assert scene.environment["SCENARIO_SDK_API_KEY"] not in ended.stdout + ended.stderr
