"""How a graph is changed so that its pictures come back quickly, alone, and leave nothing behind. Pure.

Facts (ComfyUI 0.3.64; tests/recordings/txt2img_cached_same_seed.json, txt2img_ws_save.json):

- ComfyUI caches by content: a SaveImage that ran before names the *earlier* file, which is gone once its job is. So
  every `filename_prefix` gets the run's own folder, and SaveImage becomes SaveImageWebsocket, which is never cached.
- SaveImage compresses (PNG level 4, about 0.13 s at 1024 x 1024) in ComfyUI's only executor thread; SaveImageWebsocket
  at level 1, and writes no file.
- PreviewImage writes files that nobody fetches.
"""

from __future__ import annotations

import copy
import re

from comfy_client.workflows import Graph, is_link

SAVE_NODE = "SaveImageWebsocket"


def delivered(graph: Graph, folder: str, *, over_websocket: bool) -> Graph:
    """Return `graph` so that it saves into `folder` alone, and with `over_websocket` sends its pictures instead."""
    changed = {}
    for node_id, node in graph.items():
        match node["class_type"], node["inputs"]:
            case "PreviewImage", _:
                continue
            case "SaveImage", {"images": images} if over_websocket and is_link(images):
                changed[node_id] = {"class_type": SAVE_NODE, "inputs": {"images": images}}
            case "SaveImageWebsocket", {"images": images} if not over_websocket:
                inputs = {"images": images, "filename_prefix": f"{folder}/ComfyUI"}
                changed[node_id] = {"class_type": "SaveImage", "inputs": inputs}
            case _, {"filename_prefix": str(prefix)}:
                inputs = {**node["inputs"], "filename_prefix": f"{folder}/{_inside(prefix)}"}
                changed[node_id] = {**node, "inputs": inputs}
            case _:
                changed[node_id] = node
    return copy.deepcopy(changed)


def save_nodes(graph: Graph) -> tuple[str, ...]:
    """Return the ids of the nodes that send their pictures over the websocket."""
    return tuple(node_id for node_id, node in graph.items() if node["class_type"] == SAVE_NODE)


def prefix_of(graph: Graph, node_id: str) -> str:
    """Return the name that a save node gives its pictures, without folders."""
    match graph.get(node_id):
        case {"inputs": {"filename_prefix": str(prefix)}}:
            return _inside(prefix).rpartition("/")[2]
    return "ComfyUI"


def _inside(prefix: str) -> str:
    """Return `prefix` as a path that stays where it is put."""
    parts = [part for part in re.split(r"[/\\]", prefix) if part not in {"", ".", ".."}]
    return "/".join(parts) or "ComfyUI"
