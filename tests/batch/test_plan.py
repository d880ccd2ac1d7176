"""Plans from assets.toml: prompts, seeds, sources and digests; all faults are reported at once."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.worker_setup import ROOT
from comfy_client.batch.manifest import manifest_of
from comfy_client.batch.plan import AssetPlan, read_plan
from comfy_client.batch.run import AssetOutcome
from comfy_client.cli.batch import _toml
from comfy_core.errors import JobError
from comfy_core.workflows import Workflow

GAME: dict[str, Any] = {
    "game": "castle",
    "defaults": {"steps": 4, "width": 64, "height": 64},
    "styles": {"pixel": {"prefix": "pixel art of ", "suffix": ", plain", "negative": "text"}},
    "groups": {
        "entities": {
            "type": "entity",
            "style": "pixel",
            "template": "{who}, {doing}",
            "assets": [
                {"name": "gold", "from": "knight", "prompt": "a golden knight", "strength": 0.5},
                {"name": "knight", "who": "a knight", "doing": "resting", "variations": 2, "seed": 7},
            ],
        },
        "ui": {"assets": [{"name": "coin", "prompt": "a coin", "width": 128}]},
    },
}


@pytest.fixture
def plan_of(workflows: Mapping[str, Workflow]) -> Callable[[dict[str, Any]], AssetPlan]:
    """A function that reads a plan."""
    return lambda data: read_plan(data, workflows)


def test_a_file_becomes_requests(plan_of: Callable[[dict[str, Any]], AssetPlan]) -> None:
    """Template, style, defaults and variations build the requests; an image comes after its source."""
    assets = {asset.path: asset for asset in plan_of(GAME).assets}

    assert list(assets) == ["entities/knight", "entities/knight-2", "entities/gold", "ui/coin"]
    assert assets["entities/knight"].prompt == "pixel art of a knight, resting, plain"
    assert assets["entities/knight"].input["seed"] == 7
    assert assets["entities/knight-2"].input["seed"] == 8
    assert assets["entities/knight"].input["negative_prompt"] == "text"
    assert assets["entities/gold"].source == "entities/knight"
    assert assets["entities/gold"].input["workflow"] == "img2img"
    assert assets["entities/gold"].input["strength"] == 0.5
    coin = assets["ui/coin"]
    assert (coin.kind, coin.input["width"], coin.input["steps"]) == ("ui", 128, 4)


def test_a_default_seed_is_stable(plan_of: Callable[[dict[str, Any]], AssetPlan]) -> None:
    """The seed is the same in every run, and differs between assets."""
    once, again = plan_of(GAME), plan_of(GAME)

    assert [asset.input["seed"] for asset in once.assets] == [asset.input["seed"] for asset in again.assets]
    assert len({asset.input["seed"] for asset in once.assets}) == 4


def test_a_changed_prompt_changes_the_digests_of_derived_images(plan_of: Callable[[dict[str, Any]], AssetPlan]) -> None:
    """Only the digests of the images with the changed prompt and of images derived from them change."""
    changed = copy.deepcopy(GAME)
    changed["groups"]["entities"]["assets"][1]["who"] = "an old knight"
    before, after = ({asset.path: asset.digest for asset in plan_of(data).assets} for data in (GAME, changed))

    assert {path for path in before if before[path] != after[path]} == {
        "entities/knight",
        "entities/knight-2",
        "entities/gold",
    }


def test_a_type_includes_the_sources_of_its_images(plan_of: Callable[[dict[str, Any]], AssetPlan]) -> None:
    """`only` keeps the sources of the selected images. An unknown type is an error that names the similar type."""
    data = copy.deepcopy(GAME)
    data["groups"]["ui"]["assets"].append({"name": "portrait", "from": "entities/knight", "prompt": "a portrait"})
    plan = plan_of(data)

    assert [asset.path for asset in plan.only(["ui"]).assets] == ["entities/knight", "ui/coin", "ui/portrait"]
    with pytest.raises(JobError, match="entity"):
        plan.only(["entitty"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda game: game["groups"]["ui"]["assets"][0].update(stepps=4), ("stepps",)),
        (lambda game: game["groups"]["ui"]["assets"][0].update(stepps="4"), ("stepps", "steps")),
        (lambda game: game["groups"]["ui"]["assets"][0].update(width=7), ("width",)),
        (lambda game: game["groups"]["ui"]["assets"][0].pop("prompt"), ("neither a prompt nor a template",)),
        (lambda game: game["groups"]["entities"]["assets"][1].pop("who"), ("who", "template")),
        (lambda game: game["groups"]["entities"]["assets"][0].update({"from": "knigt"}), ("knigt", "knight")),
        (lambda game: game["groups"]["entities"]["assets"][1].update({"from": "gold"}), ("cycle", "gold")),
        (lambda game: game["groups"]["entities"].update(style="pixl"), ("pixl", "pixel")),
        (lambda game: game["groups"]["ui"]["assets"].append({"name": "coin", "prompt": "x"}), ("twice",)),
        (lambda game: game.pop("groups"), ("groups",)),
        (lambda game: game["groups"]["ui"]["assets"][0].update(sampler=3), ("sampler",)),
    ],
)
def test_an_invalid_file_is_explained(
    plan_of: Callable[[dict[str, Any]], AssetPlan], change: Callable[[dict[str, Any]], object], words: tuple[str, ...]
) -> None:
    """The error names the invalid key or value, and the similar valid name if there is one."""
    data = copy.deepcopy(GAME)
    change(data)

    with pytest.raises(JobError) as info:
        plan_of(data)
    assert [word for word in words if word not in str(info.value)] == []


def test_all_faults_are_reported_at_once(plan_of: Callable[[dict[str, Any]], AssetPlan]) -> None:
    """One error lists every fault."""
    data = copy.deepcopy(GAME)
    data["groups"]["ui"]["assets"] = [{"name": "a", "prompt": "x", "from": "b"}, {"name": "c", "style": "none"}]

    with pytest.raises(JobError) as info:
        plan_of(data)
    assert len(info.value.report.details["faults"]) == 3


@pytest.mark.parametrize("file", sorted(ROOT.glob("examples/*/assets.toml")), ids=lambda file: file.parent.name)
def test_the_shipped_games_are_complete(file: Path, plan_of: Callable[[dict[str, Any]], AssetPlan]) -> None:
    """Each shipped game has entities, backgrounds, user interface parts, and an image derived from another."""
    plan = plan_of(_toml(file))

    assert plan.game == file.parent.name
    assert {"entity", "background", "ui"} <= {asset.kind for asset in plan.assets}
    assert any(asset.source for asset in plan.assets)


def test_a_lora_may_be_an_address(plan_of: Callable[[dict[str, Any]], AssetPlan]) -> None:
    """A LoRA that is an object with an address equals its name as text, also in the digest."""
    loras = [{"hf": "a/b/c.safetensors", "sha256": "A" * 64, "strength": 0.5}]
    name = f"hf:a/b/c.safetensors#sha256={'a' * 64}"
    by_object, by_name = copy.deepcopy(GAME), copy.deepcopy(GAME)
    by_object["defaults"]["loras"] = loras
    by_name["defaults"]["loras"] = [{"name": name, "strength": 0.5}]
    [asset, *_], [same, *_] = plan_of(by_object).assets, plan_of(by_name).assets

    assert asset.input["loras"] == [{"name": name, "strength": 0.5}]
    assert asset.digest == same.digest


def test_an_invalid_address_has_its_path(plan_of: Callable[[dict[str, Any]], AssetPlan]) -> None:
    """The fault of an address names its place in the file."""
    game = copy.deepcopy(GAME)
    game["groups"]["ui"]["assets"][0]["loras"] = [{"name": "a.safetensors"}, {"hf": "a/b"}]
    with pytest.raises(JobError, match=r"groups\.ui\.assets\[0\]\.loras\[1\]: must be like hf:owner"):
        plan_of(game)


def test_the_manifest_has_no_query_of_a_url(plan_of: Callable[[dict[str, Any]], AssetPlan]) -> None:
    """The request has the whole URL of a LoRA; the manifest has it without its query, which may be a secret."""
    game = copy.deepcopy(GAME)
    game["defaults"]["loras"] = [{"url": "https://h/a.safetensors?signature=SECRET"}]
    plan = plan_of(game)
    manifest = manifest_of(plan, [AssetOutcome(asset, "stopped") for asset in plan.assets], {}, {})

    assert plan.assets[0].input["loras"] == [{"name": "https://h/a.safetensors?signature=SECRET"}]
    assert manifest["assets"][0]["inputs"]["loras"] == [{"name": "https://h/a.safetensors"}]
    assert "SECRET" not in json.dumps(manifest)
