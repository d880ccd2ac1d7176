"""A complete deployment: deploy, generate with the real worker, switch to Scenario and back, destroy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from PIL import Image

from bench.worker_setup import ROOT, WorkerSetup, running_worker
from simulators.runpod.rest import RunPodAccount
from simulators.scenario import ScenarioSimulator
from tests.cli.conftest import Shell

pytestmark = pytest.mark.slow
APPLICATION = """\
import sys
from comfy_client import client_from_env

with client_from_env() as client:
    castle = client.txt2img("a castle", width=256, height=256, steps=2, seed=7)
    again = client.img2img(castle.image.bytes, "at night", strength=0.5, steps=2, seed=8)
    castle.image.save(f"{sys.argv[1]}-castle.png")
    again.image.save(f"{sys.argv[1]}-night.png")
    print(castle.provider, again.provider)
"""
"""The application: the same file for each provider. It saves two images whose names begin with its argument."""
PROVIDER_VARIABLE = "IMAGE_GENERATION_PROVIDER"


@pytest.fixture(scope="module")
def setup() -> Iterator[WorkerSetup]:
    """The real worker with the endpoint's queue, as the endpoint's image would run it."""
    with running_worker(step_s=0.02) as setup:
        yield setup


@pytest.fixture
def scenario() -> Iterator[ScenarioSimulator]:
    """A simulated Scenario."""
    with ScenarioSimulator() as scenario:
        yield scenario


def run_application(name: str, variables: Mapping[str, str]) -> str:
    """Run the application as a process; return its output, which has the provider of each image."""
    Path("app.py").write_text(APPLICATION)
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    completed = subprocess.run(
        [sys.executable, "app.py", name], env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.strip()


def test_deploy_switch_and_back_destroy(
    setup: WorkerSetup, scenario: ScenarioSimulator, shipped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One variable switches the application from Scenario to RunPod, back and forth; then the deployment is destroyed.

    Only the selected provider generates each image, and neither endpoint nor template is left.
    """
    monkeypatch.chdir(tmp_path)
    Path("deploy.toml").write_text(shipped.replace("OWNER", "me"))
    with RunPodAccount(setup.platform) as account:
        shell = Shell(account.environment())
        deployed = shell("deploy", "--yes")
        assert deployed.status == 0, deployed.err
        printed = dict(line.split("=", 1) for line in deployed.out.splitlines())
        variables = {**scenario.client_env(), **printed, "RUNPOD_API_KEY": account.api_key}
        jobs = [(len(setup.platform.jobs), scenario.submissions)]
        providers = []
        for name, provider in (
            ("before", "scenario"),
            ("moved", "comfyui"),
            ("back", "scenario"),
            ("forth", "comfyui"),
        ):
            providers.append(run_application(name, {**variables, PROVIDER_VARIABLE: provider}))
            jobs.append((len(setup.platform.jobs), scenario.submissions))
        assert shell("deploy").status == 0, "nothing has changed"
        destroyed = shell("destroy", "--yes")

    assert providers == ["scenario scenario", "comfyui comfyui", "scenario scenario", "comfyui comfyui"]
    assert jobs == [(1, 0), (1, 2), (3, 2), (3, 4), (5, 4)]
    assert {job.worker_id for job in setup.platform.jobs.values()} == {"worker-1"}
    assert destroyed.status == 0
    assert not account.endpoints
    assert not account.templates
    for name in ("before", "moved", "back", "forth"):
        for kind in ("castle", "night"):
            with Image.open(f"{name}-{kind}.png") as image:
                assert image.size == (256, 256)
    with Image.open("flux-comfyui.png") as image:
        assert image.size == (1024, 1024)
    assert Path("moved-castle.png").read_bytes() == Path("forth-castle.png").read_bytes(), "the same seed"
