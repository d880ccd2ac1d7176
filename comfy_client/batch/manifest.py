"""Builds, reads and writes manifest.json, which lists the images of a game with their inputs.

Also writes index.html, the gallery of these images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comfy_client.batch.gallery import gallery
from comfy_client.batch.journal import MADE, JournalEntry
from comfy_client.batch.plan import AssetPlan, PlannedAsset
from comfy_client.batch.run import AssetOutcome
from comfy_core.contract import JsonObject
from comfy_core.errors import ConfigError
from comfy_core.files import write_atomically
from comfy_core.request.model_address import public_name

MANIFEST = "manifest.json"
GALLERY = "index.html"


def manifest_of(
    plan: AssetPlan,
    outcomes: Sequence[AssetOutcome],
    entries: Mapping[str, JournalEntry],
    previous: Mapping[str, JsonObject],
) -> JsonObject:
    """Return the manifest of a whole plan. `outcomes` has the results of this run, which may be a part of the plan.

    Images of earlier runs are listed from the journal's `entries`, or else from `previous`, the assets of the previous
    manifest. Assets that are in none of these are omitted. Costs are those of the results (GenerationResult.cost), and
    their sum.
    """
    by_path = {each.asset.path: each for each in outcomes}
    assets: list[JsonObject] = []
    for asset in plan.assets:
        entry = entries.get(asset.digest, JournalEntry())
        if each := by_path.get(asset.path) or _earlier_outcome(asset, entry):
            assets.append(_asset(each, entry))
        elif asset.path in previous:
            assets.append(previous[asset.path])
    costs = [asset["cost_usd"] for asset in assets if asset["cost_usd"] is not None]
    return {
        "game": plan.game,
        "title": plan.title,
        "assets": assets,
        "cost_usd": round(sum(costs), 9) if costs else None,
    }


def _earlier_outcome(asset: PlannedAsset, entry: JournalEntry) -> AssetOutcome | None:
    return AssetOutcome(asset, "reused", entry.made) if entry.state == MADE else None


def _asset(outcome: AssetOutcome, entry: JournalEntry) -> JsonObject:
    asset, facts = outcome.asset, outcome.facts
    return {
        "id": asset.path,
        "group": asset.group,
        "type": asset.kind,
        "state": "ready" if facts else outcome.outcome,
        "prompt": asset.prompt,
        "inputs": {name: _public(name, value) for name, value in asset.input.items() if name != "prompt"},
        "from": asset.source or None,
        "file": asset.filename if facts else None,
        "urls": entry.urls,
        **{
            name: facts.get(name)
            for name in (
                *("seed", "sha256", "width", "height", "mime_type", "provider", "job_id", "provider_asset_id"),
                *("execution_s", "cost_usd"),
            )
        },
        "error": json.loads(outcome.error.report.to_json()) if outcome.error else None,
    }


def _public(name: str, value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return an input of a request for the manifest. The query of a LoRA's URL may be a secret, and is left out."""
    return [{**lora, "name": public_name(lora["name"])} for lora in value] if name == "loras" else value


def read_previous(folder: Path, game: str) -> Mapping[str, JsonObject]:
    """Return the assets in the folder's manifest by id, or an empty mapping if the folder has no manifest.

    Raises ConfigError if the folder belongs to another game, or if its manifest.json or index.html was not written by
    `comfy-client batch`.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        manifest = None
    except (OSError, ValueError):
        manifest = {}
    match manifest:
        case {"game": found, "assets": [*assets]} if found == game:
            return {str(asset.get("id")): asset for asset in assets if isinstance(asset, dict)}
        case {"game": str(other), "assets": _}:
            raise ConfigError(f"{folder} has the images of another game, {other!r}. Choose another folder with --out")
        case None if not (folder / GALLERY).exists():
            return {}
    name = GALLERY if manifest is None else MANIFEST
    raise ConfigError(f"{folder / name} was not written by this command, and is kept. Choose another folder with --out")


def write_manifest(folder: Path, manifest: JsonObject) -> None:
    """Write manifest.json and the gallery, each atomically. Raises ConfigError if they cannot be written."""
    texts = {MANIFEST: f"{json.dumps(manifest, indent=2, ensure_ascii=False)}\n", GALLERY: gallery(manifest)}
    for name, text in texts.items():
        try:
            write_atomically(folder / name, text.encode())
        except OSError as error:
            raise ConfigError(
                f"{folder / name} cannot be written: {error.strerror}. Make room and run again. Finished images "
                "are kept, and submitted jobs are not submitted again"
            ) from error
