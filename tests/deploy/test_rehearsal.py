"""The whole of it, as an owner does it: deploy, make pictures through the real worker, back to Scenario, and forth."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from PIL import Image

from bench.stage import ROOT, Stage, staged
from simulators.runpod.rest import RunPodAccount
from simulators.scenario import ScenarioStandIn
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
"""An application that knows nothing of where its pictures are made. It is the same file at every step."""
SWITCH = "IMAGE_GENERATION_PROVIDER"


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """The worker that the endpoint's image would be, on the queue that the endpoint gets."""
    with staged(step_s=0.02) as stage:
        yield stage


@pytest.fixture
def scenario() -> Iterator[ScenarioStandIn]:
    """Scenario.com, as it was used before."""
    with ScenarioStandIn() as scenario:
        yield scenario


def run_application(name: str, variables: Mapping[str, str]) -> str:
    """Run the application in a process of its own; return what it printed, the provider of each picture."""
    Path("app.py").write_text(APPLICATION)
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "app.py", name], env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_deploy_switch_and_back_destroy(
    stage: Stage, scenario: ScenarioStandIn, shipped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One variable leads the same application to RunPod, back to Scenario and to RunPod again; then all is taken away.

    Every picture is made where the switch says, and nowhere else; at the end nothing is left that costs something.
    """
    monkeypatch.chdir(tmp_path)
    Path("deploy.toml").write_text(shipped.replace("OWNER", "me"))
    with RunPodAccount(stage.platform) as account:
        shell = Shell(account.environment())
        deployed = shell("deploy", "--yes")
        assert deployed.status == 0, deployed.err
        printed = dict(line.split("=", 1) for line in deployed.out.splitlines())
        variables = {**scenario.client_env(), **printed, "RUNPOD_API_KEY": account.api_key}
        jobs = [(len(stage.platform.jobs), scenario.submissions)]
        told = []
        for name, provider in (
            ("before", "scenario"),
            ("moved", "comfyui"),
            ("back", "scenario"),
            ("forth", "comfyui"),
        ):
            told.append(run_application(name, {**variables, SWITCH: provider}))
            jobs.append((len(stage.platform.jobs), scenario.submissions))
        assert shell("deploy").status == 0, "nothing has changed"
        destroyed = shell("destroy", "--yes")

    assert told == ["scenario scenario", "comfyui comfyui", "scenario scenario", "comfyui comfyui"]
    assert jobs == [(1, 0), (1, 2), (3, 2), (3, 4), (5, 4)]
    assert {job.worker_id for job in stage.platform.jobs.values()} == {"worker-1"}
    assert destroyed.status == 0
    assert not account.endpoints
    assert not account.templates
    for name in ("before", "moved", "back", "forth"):
        for kind in ("castle", "night"):
            with Image.open(f"{name}-{kind}.png") as picture:
                assert picture.size == (256, 256)
    with Image.open("flux-comfyui.png") as picture:
        assert picture.size == (1024, 1024)
    assert Path("moved-castle.png").read_bytes() == Path("forth-castle.png").read_bytes(), "the same seed"
