"""Renders the manifest as an HTML gallery, from the template gallery.html."""

from __future__ import annotations

import string
from html import escape
from pathlib import Path

from comfy_core.contract import JsonObject


def gallery(manifest: JsonObject) -> str:
    """Return the HTML page. Its links are relative to the manifest's folder."""
    assets: list[JsonObject] = manifest["assets"]
    ready = sum(asset["state"] == "ready" for asset in assets)
    cost = f" · ${manifest['cost_usd']:.4f} of GPU time" if manifest["cost_usd"] else ""
    kinds = dict.fromkeys(str(asset["type"]) for asset in assets)
    groups: dict[str, list[JsonObject]] = {}
    for asset in assets:
        groups.setdefault(str(asset["group"]), []).append(asset)
    frame = string.Template(Path(__file__).with_name("gallery.html").read_text(encoding="utf-8"))
    return frame.substitute(
        title=escape(manifest["title"]),
        summary=f"{ready} of {len(assets)} images{cost}",
        kinds="".join(
            f'<label><input type="checkbox" checked value="{escape(kind)}">{escape(kind)}</label>' for kind in kinds
        ),
        groups="\n".join(_section(name, group) for name, group in groups.items()),
    )


def _section(name: str, assets: list[JsonObject]) -> str:
    figures = "\n".join(map(_figure, assets))
    return (
        f'<section data-type="{escape(assets[0]["type"])}">\n<h2>{escape(name)}</h2>\n'
        f'<div class="grid">\n{figures}\n</div></section>'
    )


def _figure(asset: JsonObject) -> str:
    prompt = escape(asset["prompt"])
    if file := asset["file"]:
        preview = f'<a href="{escape(file)}"><img src="{escape(file)}" alt="{prompt}" loading="lazy"></a>'
    else:
        reason = asset["error"]["message"] if asset["error"] else asset["state"]
        preview = f'<div class="none">{escape(reason)}</div>'
    details = [
        f"seed {asset['seed']}" if asset["seed"] is not None else "",
        f"{asset['width']} x {asset['height']}" if asset["width"] else "",
        f"from {escape(_name(asset['from']))}" if asset["from"] else "",
    ]
    return (
        f'<figure id="{escape(asset["id"])}">{preview}\n<figcaption><b>{escape(_name(asset["id"]))}</b>'
        f'<p title="{prompt}">{prompt}</p><span class="soft">{" · ".join(filter(None, details))}</span>'
        "</figcaption></figure>"
    )


def _name(path: str) -> str:
    return path.partition("/")[2]
