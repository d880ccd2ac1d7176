"""What was made, with which inputs, for the game and for people: manifest.json, and a page that shows the pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from comfy_client.batch.journal import Entry
from comfy_client.batch.plan import Plan
from comfy_client.batch.run import Made
from comfy_client.contract import JsonObject
from comfy_client.errors import ConfigError, missing_extra
from comfy_client.prices import AS_OF, job_usd

MANIFEST = "manifest.json"
GALLERY = "index.html"


def manifest_of(plan: Plan, made: Sequence[Made], entries: Mapping[str, Entry], usd_per_s: float) -> JsonObject:
    """Return the manifest: each asset of the plan in order, with what made it and where it is.

    Costs are of execution alone, by `usd_per_s`; cold starts and idle time come on top. None where nobody says.
    """
    assets = [_asset(each, entries.get(each.asset.digest, Entry()), usd_per_s) for each in made]
    costs = [asset["cost_usd"] for asset in assets if asset["cost_usd"] is not None]
    return {
        "game": plan.game,
        "title": plan.title,
        "assets": assets,
        "cost_usd": round(sum(costs), 5),
        "usd_per_s": usd_per_s,
        "prices_as_of": AS_OF,
    }


def _asset(made: Made, entry: Entry, usd_per_s: float) -> JsonObject:
    asset, facts = made.asset, made.facts
    seconds = facts.get("execution_s")
    return {
        "id": asset.path,
        "group": asset.group,
        "type": asset.kind,
        "state": "ready" if facts else made.outcome,
        "prompt": asset.prompt,
        "inputs": {name: value for name, value in asset.input.items() if name != "prompt"},
        "from": asset.source or None,
        "file": asset.filename if facts else None,
        "urls": entry.urls,
        **{
            name: facts.get(name)
            for name in ("seed", "sha256", "width", "height", "mime_type", "provider", "job_id", "provider_asset_id")
        },
        "execution_s": seconds,
        "cost_usd": None if seconds is None else round(job_usd(seconds, usd_per_s), 5),
        "error": json.loads(made.error.report.to_json()) if made.error else None,
    }


def write(folder: Path, manifest: JsonObject) -> None:
    """Write manifest.json and the gallery, each whole. Raises ConfigError where jinja2 or room is missing."""
    try:
        from jinja2 import Environment, PackageLoader, select_autoescape  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise missing_extra("The gallery", "batch") from error
    environment = Environment(loader=PackageLoader("comfy_client.batch", "."), autoescape=select_autoescape())
    page = environment.get_template("gallery.html").render(manifest=manifest)
    texts = {MANIFEST: f"{json.dumps(manifest, indent=2, ensure_ascii=False)}\n", GALLERY: page}
    for name, text in texts.items():
        part = folder / f".{name}.part"
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(folder / name)
        except OSError as error:
            raise ConfigError(
                f"{folder / name} cannot be written: {error.strerror}. Make room and run again: what was made is kept, "
                "and jobs that were sent are not sent again"
            ) from error
