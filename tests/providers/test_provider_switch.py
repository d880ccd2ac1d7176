"""Switching the provider with one variable: from the worker to Scenario and back.

The tests switch it in one process, and with the command. They use the simulator of Scenario, which passes the strict
validation of the official SDK.
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

from bench.worker_setup import ROOT, WorkerSetup, running_worker
from comfy_client.client import client_from_env
from simulators.scenario import ScenarioSimulator

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {"width": 128, "height": 128, "steps": 2}
PROVIDER_ORDER = ("comfyui", "scenario", "comfyui")


@dataclass(frozen=True)
class SwitchSetup:
    """The worker on its platform, and the simulated Scenario."""

    worker_setup: WorkerSetup
    scenario: ScenarioSimulator

    @property
    def environment(self) -> dict[str, str]:
        """The variables of both providers, without IMAGE_GENERATION_PROVIDER."""
        return {**self.worker_setup.platform.client_env(), **self.scenario.client_env()}

    @property
    def submissions(self) -> tuple[int, int]:
        """The numbers of jobs that were submitted to the platform and to Scenario."""
        return self.worker_setup.platform.submissions, self.scenario.submissions


@pytest.fixture(scope="module")
def setup() -> Iterator[SwitchSetup]:
    """Both systems, for all tests of this file."""
    with running_worker(step_s=0.02) as worker_setup, ScenarioSimulator(run_s=0.05) as scenario:
        yield SwitchSetup(worker_setup, scenario)


def run_application(environment: dict[str, str]) -> tuple[str, tuple[int, int], str | None]:
    """Generate an image with the provider of `environment`; return the provider, the image's size and its asset id."""
    with client_from_env(environment, timeout_s=60.0) as client:
        result = client.txt2img("a knight", seed=5, **SMALL)
        return result.provider, result.image.size, result.image.asset_id


def test_one_variable_switches_there_and_back(setup: SwitchSetup) -> None:
    """The same code generates an image at the worker, at Scenario, and at the worker again."""
    before = setup.submissions
    results = [run_application({**setup.environment, "IMAGE_GENERATION_PROVIDER": name}) for name in PROVIDER_ORDER]

    assert [provider for provider, _, _ in results] == list(PROVIDER_ORDER)
    assert {size for _, size, _ in results} == {(128, 128)}
    assert [asset is not None for _, _, asset in results] == [False, True, False]
    assert (setup.submissions[0] - before[0], setup.submissions[1] - before[1]) == (2, 1)


def test_a_running_job_is_not_lost_by_a_switch(setup: SwitchSetup) -> None:
    """A job's result can be fetched from its provider after a switch to another provider and back."""
    at_scenario = {**setup.environment, "IMAGE_GENERATION_PROVIDER": "scenario"}
    at_worker = {**setup.environment, "IMAGE_GENERATION_PROVIDER": "comfyui"}
    with client_from_env(at_scenario) as client:
        job_id = client.submit(prompt="a knight", seed=5, **SMALL).id
    with client_from_env(at_worker) as client:
        assert client.txt2img("a knight", **SMALL).provider == "comfyui"
    with client_from_env(at_scenario, timeout_s=60.0) as client:
        assert client.job(job_id).wait().image.seed == 5


def run_command(setup: SwitchSetup, name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `comfy-client` with the provider `name`."""
    inherited = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "comfy_client.cli.main", *arguments],
        env={**inherited, **setup.environment, "IMAGE_GENERATION_PROVIDER": name},
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        check=False,
    )


def test_the_command_switches_too(setup: SwitchSetup, tmp_path: Path) -> None:
    """`comfy-client txt2img` works with each provider. Only Scenario's image has an asset id."""
    flags = ["--width", "128", "--height", "128", "--steps", "2", "--seed", "5", "--json"]
    results = []
    for number, name in enumerate(PROVIDER_ORDER):
        ended = run_command(setup, name, "txt2img", "a knight", *flags, "-o", f"{number}.png", cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        results.append(json.loads(ended.stdout))

    assert [result["provider"] for result in results] == list(PROVIDER_ORDER)
    assert ["asset_id" in result["images"][0] for result in results] == [False, True, False]
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "2.png").read_bytes()


def test_the_doctor_checks_scenario(setup: SwitchSetup, tmp_path: Path) -> None:
    """`comfy-client doctor --generate` names Scenario's URL and generates an image; no key is shown."""
    ended = run_command(setup, "scenario", "doctor", "--generate", cwd=tmp_path)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"Scenario at {setup.environment['SCENARIO_BASE_URL']} responds; the key is accepted" in ended.stdout
    assert "128 x 128" in ended.stdout
    assert setup.environment["SCENARIO_SDK_API_SECRET"] not in ended.stdout + ended.stderr
    assert setup.environment["SCENARIO_SDK_API_KEY"] not in ended.stdout + ended.stderr
