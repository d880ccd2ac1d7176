"""How a graph is changed so that its files come back quickly, alone, and leave nothing behind. Pure.

Facts (ComfyUI 0.3.64 and 0.33.0; tests/recordings/txt2img_cached_same_seed.json, txt2img_ws_save.json):

- ComfyUI caches by content: a saver that ran before reports the *earlier* file, which was deleted with its job. So the
  inputs of every saver differ from run to run: by a path in the run's own folder, or by an input that no node has
  (`run-tag`): it is part of the cache key and reaches no node.
- SaveImage compresses (PNG level 4, about 0.13 s at 1024 x 1024) in ComfyUI's only executor thread; SaveImageWebsocket
  at level 1, and writes no file. It is never cached.
- Preview nodes write files that nobody fetches. In 0.33.0 they, and SaveImage, return what they were given.
- `filename_prefix` is a path in the nodes of ComfyUI, which create its folders, but a plain name in some custom nodes.
- A prefix that another node computes may lead into any folder below `output`. Two nodes of ComfyUI, put in between,
  make it a name in the run's folder.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Collection, Mapping
from typing import Any

from comfy_core.comfyui.file_inputs import (
    FOLDER_SAVERS,
    PREFIX_SAVERS,
    FileUse,
    declared_input,
    file_use,
    is_comfyui_link,
    linked_literal,
)
from comfy_core.workflows import Graph, is_link

SAVE_NODE = "SaveImageWebsocket"
_TAG = "run-tag"
TEXT_NODES = frozenset({"RegexReplace", "StringConcatenate"})
"""The nodes by which a computed prefix is kept in the run's folder; ComfyUI has them in both versions."""
_PREVIEWS = {
    "PreviewImage": "images",
    "MaskPreview": "mask",
    "PreviewAudio": "audio",
    "Preview3D": "",
    "Preview3DAnimation": "",
    "Preview3DAdvanced": "",
    "PreviewGaussianSplat": "",
    "PreviewPointCloud": "",
    "ImageCompare": "",
    "SAM3_TrackPreview": "",
}
"""Nodes that only write previews, and the input that they return as their first output."""
_DEFAULT_PREFIX = "ComfyUI"
_DOTS = re.compile(r"\.\.+")


def delivered(
    graph: Graph,
    folder: str,
    *,
    over_websocket: bool,
    node_types: Mapping[str, object] | None = None,
    again: Collection[str] = (),
) -> Graph:
    """Return `graph` so that it saves into `folder` alone, and with `over_websocket` sends its pictures instead.

    `folder` may have several parts. `node_types` is what /object_info says of the node types. The nodes `again` run
    even if ComfyUI has their results in its cache.
    """
    changed = copy.deepcopy(graph)
    links = _links_by_source(changed)
    _drop_previews(changed, links)
    for node_id, node in list(changed.items()):
        match node["class_type"], node["inputs"]:
            case "SaveImage", {"images": images} if over_websocket and is_link(images):
                _redirect(links, node_id, images)
                changed[node_id] = {"class_type": SAVE_NODE, "inputs": {"images": images}}
            case "SaveImageWebsocket", {"images": images} if not over_websocket:
                inputs = {"images": images, "filename_prefix": f"{folder}/{_DEFAULT_PREFIX}"}
                changed[node_id] = {"class_type": "SaveImage", "inputs": inputs}
            case class_type, inputs:
                _set_place(changed, class_type, inputs, folder, (node_types or {}).get(class_type))
                if (node_types or {}).keys() >= TEXT_NODES:
                    _confine_computed_paths(changed, node_id, folder, node_types or {})
                if node_id in again:
                    inputs[_TAG] = tag_of(folder)
    return changed


def _set_place(graph: Graph, class_type: str, inputs: dict[str, Any], folder: str, node_type: object) -> None:
    """Have a node that saves write into `folder`, or under a name that nothing else has."""
    path_input = PREFIX_SAVERS.get(class_type) or FOLDER_SAVERS.get(class_type)
    if path_input and (path := _text(graph, inputs, path_input)) is not None:
        inputs[path_input] = f"{folder}/{_inside(path)}"
        return
    name_input = "filename_prefix"
    if (name := _text(graph, inputs, name_input)) is not None:
        start, slash, last = name.rpartition("/")
        inputs[name_input] = f"{start}{slash}{tag_of(folder)}_{_DOTS.sub('_', last)}"
    if _writes(class_type, inputs, node_type):
        inputs[_TAG] = tag_of(folder)


def _text(graph: Graph, inputs: Mapping[str, Any], name: str) -> str | None:
    """Return an input as the text that ComfyUI makes of it; None if it is absent or another node computes it."""
    value = linked_literal(graph, inputs.get(name))
    return None if name not in inputs or is_comfyui_link(value) else str(value)


def _confine_computed_paths(graph: Graph, node_id: str, folder: str, node_types: Mapping[str, object]) -> None:
    """Have a path that another node computes become a name: in `folder`, if a node of ComfyUI writes there."""
    class_type, inputs = graph[node_id]["class_type"], graph[node_id]["inputs"]
    for name, value in list(inputs.items()):
        declared = declared_input(node_types.get(class_type), name)
        is_path = PREFIX_SAVERS.get(class_type) == name
        if not is_comfyui_link(linked_literal(graph, value)) or not (
            is_path or (file_use(class_type, name, declared) is FileUse.WRITES and _is_text(graph, value, node_types))
        ):
            continue
        name_id, path_id = (f"{tag_of(folder)}-{part}-{node_id}-{name}" for part in ("name", "path"))
        replaced = {"string": value, "regex_pattern": r"^~|[/\\]|\.\.+|^\.?$", "replace": "_"}
        graph[name_id] = {"class_type": "RegexReplace", "inputs": replaced}
        inputs[name] = [name_id, 0]
        if is_path:
            joined = {"string_a": f"{folder}/", "string_b": [name_id, 0], "delimiter": ""}
            graph[path_id] = {"class_type": "StringConcatenate", "inputs": joined}
            inputs[name] = [path_id, 0]


def _is_text(graph: Graph, link: list[Any], node_types: Mapping[str, object]) -> bool:
    """Whether /object_info declares the output that a link leads to as text."""
    match node_types.get(graph[link[0]]["class_type"]) if link[0] in graph else None:
        case {"output": [*outputs]} if 0 <= link[1] < len(outputs):
            return outputs[int(link[1])] in {"STRING", "*"}
    return False


def _writes(class_type: str, inputs: Mapping[str, Any], node_type: object) -> bool:
    """Whether a node writes files, as far as its names and /object_info tell."""
    match node_type:
        case {"output_node": True} if class_type != SAVE_NODE:
            return True
    return any(file_use(class_type, name, declared_input(node_type, name)) is FileUse.WRITES for name in inputs)


def tag_of(folder: str) -> str:
    """Return the name of `folder` as a part of a file's name."""
    return folder.replace("/", "-")


def _links_by_source(graph: Graph) -> dict[str, list[list[Any]]]:
    """Return the links of `graph`, the lists themselves, by the id of the node that they lead to."""
    links: dict[str, list[list[Any]]] = {}
    for node in graph.values():
        for value in node["inputs"].values():
            if is_link(value):
                links.setdefault(value[0], []).append(value)
    return links


def _drop_previews(graph: Graph, links: dict[str, list[list[Any]]]) -> None:
    """Take the previews out whose outputs nobody needs, or that return what they were given."""
    for node_id, node in list(graph.items()):
        passed = node["inputs"].get(_PREVIEWS.get(node["class_type"], ""))
        outputs = {link[1] for link in links.get(node_id, ())}
        if node["class_type"] in _PREVIEWS and (not outputs or (outputs == {0} and is_link(passed))):
            _redirect(links, node_id, passed)
            del graph[node_id]


def _redirect(links: dict[str, list[list[Any]]], node_id: str, source: list[Any]) -> None:
    """Have every link to a node lead to `source`."""
    for link in links.pop(node_id, ()):
        link[:] = source
        links.setdefault(source[0], []).append(link)


def save_nodes(graph: Graph) -> tuple[str, ...]:
    """Return the ids of the nodes that send their pictures over the websocket."""
    return tuple(node_id for node_id, node in graph.items() if node["class_type"] == SAVE_NODE)


def prefix_of(graph: Graph, node_id: str) -> str | None:
    """Return the name that a node gives its pictures, without folders; None if its inputs do not say it."""
    match graph.get(node_id):
        case {"class_type": str(class_type), "inputs": dict(inputs)}:
            prefix = _text(graph, inputs, PREFIX_SAVERS.get(class_type, "filename_prefix"))
            if prefix is not None:
                return re.split(r"[/\\]", prefix.rstrip("/\\"))[-1] or _DEFAULT_PREFIX
            return _DEFAULT_PREFIX if class_type in {"SaveImage", SAVE_NODE} else None
    return None


def filled_name(prefix: str, size: tuple[int, int], number: int, now: time.struct_time) -> str:
    """Return a picture's name with the variables that ComfyUI fills in, and without characters that Windows refuses.

    `number` is the picture's number in the batch that its node saved.
    """
    values = {"%width%": size[0], "%height%": size[1], "%batch_num%": number}
    for name, value in values.items():
        prefix = prefix.replace(name, str(value))
    for name, form in _TIMES.items():
        prefix = prefix.replace(name, time.strftime(form, now))
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", prefix)


_TIMES = {
    "%year%": "%Y",
    "%month%": "%m",
    "%day%": "%d",
    "%hour%": "%H",
    "%minute%": "%M",
    "%second%": "%S",
}


def _inside(prefix: str) -> str:
    """Return `prefix` as a path that stays where it is put. ComfyUI does not return a file with ".." in its name."""
    parts = [part for part in re.split(r"[/\\]", prefix) if part not in {"", ".", ".."}]
    return _DOTS.sub("_", "/".join(parts)) or _DEFAULT_PREFIX
