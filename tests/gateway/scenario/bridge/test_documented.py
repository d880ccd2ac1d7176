"""Records of Scenario pass the schemas of the OpenAPI document, and records say which steps are possible."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from bench.shim_process import ShimProcess
from bench.worker_setup import ROOT
from simulators.runpod.queue_api import RunPodPlatform
from simulators.scenario.api import ScenarioSimulator
from tests.gateway.scenario.bridge.caller import Caller
from tests.gateway.scenario.documented import DocumentedCaller

pytestmark = pytest.mark.slow


def test_records_of_scenario_have_the_required_fields(shim: ShimProcess) -> None:
    """A job and an asset that Scenario made have the required fields with their types. They may have more fields."""
    caller = DocumentedCaller(shim.base_url, is_closed=False)
    body = {"modelId": "flux.1-dev", "prompt": "x", "controlImage": "data:image/png;base64,AA=="}
    caller.follow("POST /generate/txt2img", body, "?dryRun=true")
    made = caller.ended(caller.follow("POST /generate/txt2img", body)["job"]["jobId"])
    [asset_id] = made["metadata"]["assetIds"]

    assert caller.follow("GET /jobs/{jobId}", jobId=made["jobId"])["job"]["metadata"]["side"] == "scenario"
    assert caller.follow("GET /assets/{assetId}", assetId=asset_id)["asset"]["metadata"]["side"] == "scenario"
    assert [job["jobId"] for job in caller.follow("GET /jobs")["jobs"]] == [made["jobId"]]
    assert [asset["id"] for asset in caller.follow("GET /assets")["assets"]] == [asset_id]


def test_without_the_key_unsupported_steps_are_known_before_anything_is_paid(
    platform: RunPodPlatform, tmp_path: Path
) -> None:
    """Models and assets list only what works, and a dry run of another step is 501 with the remedy."""
    with ShimProcess(platform.client_env(), tmp_path / "alone") as shim:
        caller = Caller(shim.base_url)
        models = caller.json("GET", "/models")["models"]
        knight = base64.b64encode((ROOT / "examples" / "knight.png").read_bytes()).decode()
        asset = caller.json("POST", "/assets", {"name": "knight.png", "image": knight})["asset"]
        steps = [
            caller.call("POST", f"/generate/{step}?dryRun=true", {"image": asset["id"]})
            for step in ("remove-background", "upscale", "layered", "inpaint", "controlnet", "txt2img-ip-adapter")
        ]
        controlnet = {"modelId": "flux.1-dev", "prompt": "x", "controlImage": asset["id"]}
        refused = caller.call("POST", "/generate/txt2img?dryRun=true", controlnet)

    assert {each for model in models for each in model["capabilities"]} == {"txt2img", "img2img"}
    assert asset["editCapabilities"] == []
    assert [each.status_code for each in steps] == [501] * 6
    assert all("SCENARIO_SHIM_UPSTREAM_API_KEY" in each.json()["reason"] for each in steps)
    assert refused.status_code == 400
    assert not platform.jobs


def test_with_the_key_the_same_steps_are_offered(caller: Caller, scenario: ScenarioSimulator) -> None:
    """Models and assets list what Scenario does, and a dry run has its estimate; nothing is paid."""
    knight = base64.b64encode((ROOT / "examples" / "knight.png").read_bytes()).decode()
    asset = caller.json("POST", "/assets", {"name": "knight.png", "image": knight})["asset"]
    estimate = caller.call("POST", "/generate/remove-background?dryRun=true", {"image": asset["id"]})

    assert "controlnet" in caller.json("GET", "/models")["models"][0]["capabilities"]
    assert "REMOVE_BACKGROUND" in asset["editCapabilities"]
    assert (estimate.status_code, scenario.submissions) == (269, 0)
