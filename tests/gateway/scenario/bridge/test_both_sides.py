"""Deletes, tags and totals on both sides, and ScenarioShim with Scenario's key."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfy_client.client import client_from_env
from comfy_client.gateway.scenario.settings import ShimSettings
from comfy_client.scenario import ScenarioShim
from simulators.runpod.queue_api import RunPodPlatform
from simulators.scenario.api import KEY, SECRET, ScenarioSimulator
from tests.gateway.scenario.bridge.caller import Caller

pytestmark = pytest.mark.slow


def own_asset(caller: Caller) -> str:
    """Generate an image with the shim's endpoint, and return its asset id."""
    made = caller.generate("txt2img", modelId="flux.1-dev", prompt="a knight", width=64, height=64)
    [asset_id] = made["metadata"]["assetIds"]
    return str(asset_id)


def linked_asset(caller: Caller, scenario: ScenarioSimulator) -> tuple[str, str]:
    """Return the id of an own asset that a forwarded call used, and the id of its copy at Scenario."""
    own_id = own_asset(caller)
    before = set(scenario.assets)
    caller.json("POST", "/generate/restyle", {"image": own_id})
    [copy_id] = [each for each in scenario.assets.keys() - before if scenario.assets[each].source == "uploaded"]
    return own_id, copy_id


def test_a_delete_is_made_on_both_sides(caller: Caller, scenario: ScenarioSimulator) -> None:
    """A copied asset, the copy of an own asset, and an asset that the shim never copied are deleted at Scenario."""
    scenario.add_images(3)
    copied, uncopied, other = scenario.assets
    own_id, copy_id = linked_asset(caller, scenario)
    caller.json("GET", f"/assets/{copied}")
    caller.json("DELETE", "/assets", {"assetIds": [copied, uncopied, own_id]})

    assert scenario.assets.keys().isdisjoint({copied, uncopied, copy_id})
    assert other in scenario.assets
    for each in (copied, uncopied, own_id, copy_id):
        assert caller.call("GET", f"/assets/{each}").status_code == 404


def test_a_delete_that_scenario_refuses_changes_nothing(caller: Caller, scenario: ScenarioSimulator) -> None:
    """The caller gets Scenario's error, and the shim keeps the asset. An asset that Scenario lacks is deleted here."""
    scenario.add_images(1)
    [asset_id] = scenario.assets
    caller.json("GET", f"/assets/{asset_id}")
    scenario.faults.respond("assets", 500, body={"reason": "not now"})
    refused = caller.call("DELETE", "/assets", {"assetIds": [asset_id]})
    kept = caller.json("GET", f"/assets/{asset_id}")["asset"]["id"]
    scenario.faults.respond("assets", 404)
    caller.json("DELETE", "/assets", {"assetIds": [asset_id]})

    assert (refused.status_code, refused.json()["reason"], kept) == (500, "not now", asset_id)
    scenario.assets.clear()
    assert caller.call("GET", f"/assets/{asset_id}").status_code == 404


def test_own_assets_without_a_copy_do_not_need_scenario(caller: Caller, scenario: ScenarioSimulator) -> None:
    """While Scenario is gone, an own asset without a copy can be tagged and deleted."""
    own_id = own_asset(caller)
    scenario.stop()

    assert caller.json("PUT", f"/assets/{own_id}/tags", {"add": ["a"]})["added"] == ["a"]
    assert caller.json("DELETE", "/assets", {"assetIds": [own_id]}) == {}
    assert caller.json("GET", "/assets")["assets"] == []


def test_tags_are_changed_on_both_sides(caller: Caller, scenario: ScenarioSimulator) -> None:
    """The tags of a copied asset and of an own asset with a copy change at Scenario and here."""
    scenario.add_images(1)
    [copied] = scenario.assets
    own_id, copy_id = linked_asset(caller, scenario)
    for each in (copied, own_id):
        caller.json("PUT", f"/assets/{each}/tags", {"add": ["hero"], "delete": ["tag 0"]})

    assert scenario.assets[copied].tags == scenario.assets[copy_id].tags == ["hero"]
    assert caller.json("GET", f"/assets/{copied}")["asset"]["tags"] == ["hero"]
    assert caller.json("GET", f"/assets/{own_id}")["asset"]["tags"] == ["hero"]


@pytest.mark.parametrize("status", [429, 500])
def test_tags_that_scenario_refuses_do_not_change(caller: Caller, scenario: ScenarioSimulator, status: int) -> None:
    """The caller gets Scenario's error, and the tags here are those at Scenario."""
    scenario.add_images(1)
    [asset_id] = scenario.assets
    caller.json("GET", f"/assets/{asset_id}")
    scenario.faults.respond("tags", status, body={"reason": "not now"})
    refused = caller.call("PUT", f"/assets/{asset_id}/tags", {"add": ["hero"]})

    assert (refused.status_code, refused.json()["reason"]) == (status, "not now")
    assert caller.json("GET", f"/assets/{asset_id}")["asset"]["tags"] == ["tag 0"]


def test_the_overview_has_the_totals_of_both_sides(caller: Caller) -> None:
    """`GET /shim/overview` has the number of own and forwarded jobs, and what each side cost."""
    own_asset(caller)
    for _ in range(2):
        caller.generate("restyle", prompt="x")
    overview = caller.json("GET", "/shim/overview")

    assert overview["cost"]["jobs"] == 1
    assert overview["scenario"] == {"jobs": 2, "creative_units": 10}


def test_the_shim_without_http_has_the_same_assets(
    platform: RunPodPlatform, scenario: ScenarioSimulator, tmp_path: Path, released: object
) -> None:
    """ScenarioShim reads, refines and downloads an asset of Scenario by its id."""
    released.set()  # type: ignore[attr-defined]
    scenario.add_images(1)
    [asset_id] = scenario.assets
    settings = ShimSettings(
        tmp_path / "direct", upstream_api_key=KEY, upstream_api_secret=SECRET, upstream_url=scenario.url
    )
    with ScenarioShim(client_from_env(platform.client_env()), settings) as shim:
        record = shim.get_asset(asset_id)
        job = shim.generate_img2img({"prompt": "as an oil painting", "image": asset_id})["job"]

        assert (record["id"], record["tags"]) == (asset_id, ["tag 0"])
        assert shim.wait_for_job(job["jobId"], 60)["status"] == "success"
        assert shim.download_asset(asset_id) == scenario.assets[asset_id].data
