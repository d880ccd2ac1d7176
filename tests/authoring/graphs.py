"""Small workflows in ComfyUI's editor format and API format, and the recorded node classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from comfy_core.contract import JsonObject
from comfy_core.workflows import default_directory
from simulators.comfyui.node_table import OBJECT_INFO

RECORDED: Mapping[str, JsonObject] = json.loads(OBJECT_INFO.read_text(encoding="utf-8"))
"""The node classes recorded from the pinned ComfyUI."""

TXT2IMG: JsonObject = json.loads(default_directory().joinpath("flux-dev-txt2img.json").read_text(encoding="utf-8"))


def editor_node(node_id: int, kind: str, values: object = None, **fields: Any) -> JsonObject:  # noqa: ANN401 - JSON values
    """Return a node in the editor's format."""
    return {"id": node_id, "type": kind, "widgets_values": [] if values is None else values, **fields}


def socket(name: str, kind: str, link: int | None = None) -> JsonObject:
    """Return an input of a node that needs a link."""
    return {"name": name, "type": kind, "link": link}


def widget(name: str, kind: str, link: int | None = None) -> JsonObject:
    """Return an input of a node that also has a widget."""
    return {"name": name, "type": kind, "widget": {"name": name}, "link": link}


def output(kind: str) -> JsonObject:
    """Return an output of a node."""
    return {"name": kind, "type": kind, "links": []}


def editor_workflow(*nodes: JsonObject, links: list[list[Any]], subgraphs: tuple[JsonObject, ...] = ()) -> JsonObject:
    """Return a workflow in the editor's format. A link is `[id, origin, its output, target, its input, type]`."""
    return {"nodes": list(nodes), "links": links, "version": 0.4, "definitions": {"subgraphs": list(subgraphs)}}
