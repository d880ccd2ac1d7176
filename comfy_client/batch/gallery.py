"""Renders the manifest as an HTML gallery: the template gallery.html in a page of comfy_client/pages."""

from __future__ import annotations

import string
from html import escape
from pathlib import Path

from comfy_client.pages import read_text, static_page
from comfy_core.contract import JsonObject

FOLDER = Path(__file__).parent


def gallery(manifest: JsonObject) -> str:
    """Return the HTML page. Its links are relative to the manifest's folder."""
    assets: list[JsonObject] = manifest["assets"]
    ready = sum(asset["state"] == "ready" for asset in assets)
    cost = f" · ${manifest['cost_usd']:.4f} of GPU time" if manifest["cost_usd"] else ""
    kinds = dict.fromkeys(str(asset["type"]) for asset in assets)
    groups: dict[str, list[JsonObject]] = {}
    for asset in assets:
        groups.setdefault(str(asset["group"]), []).append(asset)
    body = string.Template(read_text(FOLDER / "gallery.html")).substitute(
        title=escape(manifest["title"]),
        summary=f"{ready} of {len(assets)} images{cost}",
        kinds="".join(
            f'<label><input type="checkbox" checked value="{escape(kind)}">{escape(kind)}</label>' for kind in kinds
        ),
        groups="\n".join(_section(name, group) for name, group in groups.items()),
    )
    style, script = read_text(FOLDER / "gallery.css"), read_text(FOLDER / "gallery.js")
    return static_page(f"{manifest['title']}: assets", body, style=style, script=script)


def _section(name: str, assets: list[JsonObject]) -> str:
    figures = "\n".join(map(_figure, assets))
    return (
        f'<section data-type="{escape(assets[0]["type"])}">\n<h2>{escape(name)}</h2>\n'
        f'<div class="grid">\n{figures}\n</div></section>'
    )


def _figure(asset: JsonObject) -> str:
    name, prompt = escape(_name(asset["id"])), escape(asset["prompt"])
    seed = "" if asset["seed"] is None else str(asset["seed"])
    facts = [
        *([f"seed {seed}"] if seed else ()),
        *([f"{asset['width']} x {asset['height']}"] if asset["width"] else ()),
        *([f"from {escape(_name(asset['from']))}"] if asset["from"] else ()),
    ]
    if file := escape(asset["file"] or ""):
        preview = (
            f'<a class="open" href="{file}" data-prompt="{prompt}" data-facts="{" · ".join([name, *facts])}" '
            f'data-seed="{seed}"><img src="{file}" alt="{prompt}" loading="lazy"></a>'
        )
    else:
        reason = asset["error"]["message"] if asset["error"] else asset["state"]
        preview = f'<div class="none error">{escape(reason)}</div>'
    return (
        f'<figure class="card" id="{escape(asset["id"])}">{preview}\n<figcaption><b>{name}</b>'
        f'<details><summary title="Show the whole prompt">{prompt}</summary></details>'
        f'<span class="fact">{"".join(f"<span>{fact}</span>" for fact in facts)}</span>'
        f'<span class="actions">{_copy("prompt", prompt)}{_copy("seed", seed)}</span>'
        "</figcaption></figure>"
    )


def _copy(what: str, text: str) -> str:
    return f'<button class="link" data-copy="{text}">Copy {what}</button>' if text else ""


def _name(path: str) -> str:
    return path.partition("/")[2]
