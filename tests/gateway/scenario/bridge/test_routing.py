"""The routing table: parsing, shares, and changes without a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.shim_process import ShimProcess
from comfy_client.gateway.scenario.bridge.routing import RoutingRule, RoutingTable
from comfy_client.gateway.scenario.models import Side
from comfy_core.errors import ConfigError
from simulators.runpod.queue_api import RunPodPlatform
from simulators.scenario.api import MODEL, ScenarioSimulator
from tests.gateway.scenario.bridge.caller import Caller


def test_the_first_capability_in_the_table_decides(tmp_path: Path) -> None:
    """A route comes before a model, a model before a task, and no entry before none."""
    table = RoutingTable(tmp_path)
    table.change({"POST /generate/txt2img": RoutingRule(Side.OWN), "txt2img": RoutingRule(Side.SCENARIO)})

    assert table.side_of(["POST /generate/txt2img", "model_a", "txt2img"]) is Side.OWN
    assert table.side_of(["POST /generate/custom/{modelId}", "model_a", "txt2img"]) is Side.SCENARIO
    assert table.side_of(["img2img"]) is None


@pytest.mark.parametrize(("text", "low", "high"), [("own:25", 200, 300), ("own:0", 0, 0), ("own", 1000, 1000)])
def test_a_percentage_is_the_share_of_the_requests(text: str, low: int, high: int) -> None:
    """Of 1,000 different requests, the share goes to the side, and equal requests go to the same side."""
    rule = RoutingRule.parse(text)
    sides = [rule.side_of(f"request {number}") for number in range(1000)]

    assert low <= sides.count(Side.OWN) <= high
    assert sides == [rule.side_of(f"request {number}") for number in range(1000)]


@pytest.mark.parametrize("text", ["", "ours", "own:101", "own:-1", "own:", "own:25%", "scenario:1000"])
def test_an_invalid_rule_is_rejected(text: str) -> None:
    """A rule is a side, or a side with a percentage from 0 to 100."""
    with pytest.raises(ValueError, match="is not own, scenario"):
        RoutingRule.parse(text)


def test_an_invalid_table_names_its_file(tmp_path: Path) -> None:
    """A file that is not a table of sides is a ConfigError, until it is corrected."""
    table = RoutingTable(tmp_path)
    table.file.write_text('{"txt2img": 1}')
    with pytest.raises(ConfigError, match=r"routes\.json is not a routing table"):
        table.side_of(["txt2img"])
    table.file.write_text('{"txt2img": "scenario"}')

    assert table.side_of(["txt2img"]) is Side.SCENARIO


@pytest.mark.slow
def test_the_switch_needs_no_restart(
    caller: Caller, shim: ShimProcess, scenario: ScenarioSimulator, platform: RunPodPlatform, tmp_path: Path
) -> None:
    """txt2img goes to Scenario and back while img2img stays; jobs and assets of both sides remain valid."""
    table = RoutingTable(tmp_path / "shim")
    body = {"prompt": "a knight", "width": 64, "height": 64}
    asset_ids = []
    for rules in ({}, {"txt2img": RoutingRule(Side.SCENARIO)}, {"txt2img": None}):
        table.change(rules)
        job_id = caller.json("POST", f"/generate/custom/{MODEL}", {**body, "width": 128, "height": 128})["job"]["jobId"]
        asset_ids += caller.ended(job_id)["metadata"]["assetIds"]
        refined = caller.generate("img2img", modelId="flux.1-dev", prompt="a knight", image=asset_ids[-1])
        assert refined["metadata"]["side"] == "own"

    assert scenario.submissions == 1
    assert len(platform.jobs) == 2 + 3
    assert [caller.json("GET", f"/assets/{each}")["asset"]["metadata"]["side"] for each in asset_ids] == [
        "own",
        "scenario",
        "own",
    ]
    assert shim.is_alive
