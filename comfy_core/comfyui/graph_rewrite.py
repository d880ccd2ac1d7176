"""Rewrites a graph so that each run saves files under names of its own or sends images over the websocket. Pure.

Facts (ComfyUI 0.3.64 and 0.33.0; txt2img_cached_same_seed.json and txt2img_ws_save.json in tests/recordings):

- ComfyUI caches node results by input: a saver with unchanged inputs reports the *earlier* file, which was deleted with
  its job. So each run changes the inputs of every saver: to a path in the run's own folder, or with an extra input
  (`run-tag`) that is part of the cache key but is not passed to the node.
- SaveImage compresses in ComfyUI's only executor thread (PNG level 4, about 0.13 s at 1024 x 1024). SaveImageWebsocket
  uses level 1, writes no file, and is never cached. SendPixelsWebsocket, a node of the worker, sends raw pixels; it
  writes no file either, and is never cached.
- Preview nodes write files that are never fetched. In 0.33.0, preview nodes and SaveImage also output their input.
- `filename_prefix` is a path in core nodes, which create its folders, but a plain name in some custom nodes.
- A prefix computed by another node may lead to any folder below `output`. Two core nodes are inserted to turn it into
  a name in the run's folder.
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
from comfy_core.graphs import Graph, is_link

FILE_SAVER = "SaveImage"
WEBSOCKET_SAVER = "SaveImageWebsocket"
PIXEL_SAVER = "SendPixelsWebsocket"
"""The node of worker/nodes/send_pixels.py."""
_SENDERS = (WEBSOCKET_SAVER, PIXEL_SAVER)
"""Nodes that send their images over the websocket."""
IMAGE_SAVERS = (FILE_SAVER, *_SENDERS)
"""Nodes that save or send images. A run replaces them by one of them."""
_TAG_INPUT = "run-tag"
TEXT_NODES = frozenset({"RegexReplace", "StringConcatenate"})
"""Core nodes that are inserted to keep a computed prefix in the run's folder. Both versions above have them."""
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
"""Nodes that only write previews, each with the input that it passes on as its first output, if any."""
_DEFAULT_PREFIX = "ComfyUI"
_DOTS = re.compile(r"\.\.+")


def rewrite_graph(
    graph: Graph,
    folder: str,
    *,
    saver: str,
    node_types: Mapping[str, object] | None = None,
    rerun: Collection[str] = (),
) -> Graph:
    """Return a copy of `graph` whose nodes save only under names of this run. Unneeded preview nodes are removed.

    Core nodes save into `folder`, a path below the output folder. Custom nodes save under names that contain the name
    of the folder. The nodes of IMAGE_SAVERS become `saver`, which is one of them.

    `node_types` are the /object_info entries of the node types. The nodes with the ids `rerun` are executed even if
    ComfyUI has their results in its cache.
    """
    changed = copy.deepcopy(graph)
    links = _links_by_source(changed)
    _drop_previews(changed, links)
    for node_id, node in list(changed.items()):
        match node["class_type"], node["inputs"]:
            case class_type, {"images": images} if class_type in _SENDERS and saver == FILE_SAVER:
                inputs = {"images": images, "filename_prefix": f"{folder}/{_DEFAULT_PREFIX}"}
                changed[node_id] = {"class_type": saver, "inputs": inputs}
            case class_type, {"images": images} if class_type in IMAGE_SAVERS and saver in _SENDERS and is_link(images):
                _redirect(links, node_id, images)
                changed[node_id] = {"class_type": saver, "inputs": {"images": images}}
            case class_type, inputs:
                _set_output_path(changed, class_type, inputs, folder, (node_types or {}).get(class_type))
                if (node_types or {}).keys() >= TEXT_NODES:
                    _confine_computed_paths(changed, node_id, folder, node_types or {})
                if node_id in rerun:
                    inputs[_TAG_INPUT] = tag_of(folder)
    return changed


def _set_output_path(graph: Graph, class_type: str, inputs: dict[str, Any], folder: str, node_type: object) -> None:
    """Make a node that saves files write into `folder` or under a unique name, and keep it from using the cache."""
    path_input = PREFIX_SAVERS.get(class_type) or FOLDER_SAVERS.get(class_type)
    if path_input and (path := _literal_text(graph, inputs, path_input)) is not None:
        inputs[path_input] = f"{folder}/{_relative_path(path)}"
        return
    name_input = "filename_prefix"
    if (name := _literal_text(graph, inputs, name_input)) is not None:
        start, slash, last = name.rpartition("/")
        inputs[name_input] = f"{start}{slash}{tag_of(folder)}_{_DOTS.sub('_', last)}"
    if _writes_files(class_type, inputs, node_type):
        inputs[_TAG_INPUT] = tag_of(folder)


def _literal_text(graph: Graph, inputs: Mapping[str, Any], name: str) -> str | None:
    """Return an input's value as text, or None if it is absent or computed by another node."""
    value = linked_literal(graph, inputs.get(name))
    return None if name not in inputs or is_comfyui_link(value) else str(value)


def _confine_computed_paths(graph: Graph, node_id: str, folder: str, node_types: Mapping[str, object]) -> None:
    """Insert nodes that reduce a path computed by another node to a name; for core savers, to a name in `folder`."""
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
    """Return whether /object_info declares the output to which a link leads as text, or as any type."""
    match node_types.get(graph[link[0]]["class_type"]) if link[0] in graph else None:
        case {"output": [*outputs]} if 0 <= link[1] < len(outputs):
            return outputs[int(link[1])] in {"STRING", "*"}
    return False


def _writes_files(class_type: str, inputs: Mapping[str, Any], node_type: object) -> bool:
    """Return whether a node writes files, judging by its names and its /object_info entry."""
    match node_type:
        case {"output_node": True} if class_type not in _SENDERS:
            return True
    return any(file_use(class_type, name, declared_input(node_type, name)) is FileUse.WRITES for name in inputs)


def tag_of(folder: str) -> str:
    """Return `folder` in a form that can be part of a file name."""
    return folder.replace("/", "-")


def _links_by_source(graph: Graph) -> dict[str, list[list[Any]]]:
    """Return the links of `graph` by the id of their source node. The lists are those in the graph, not copies."""
    links: dict[str, list[list[Any]]] = {}
    for node in graph.values():
        for value in node["inputs"].values():
            if is_link(value):
                links.setdefault(value[0], []).append(value)
    return links


def _drop_previews(graph: Graph, links: dict[str, list[list[Any]]]) -> None:
    """Remove each preview node whose outputs are unused, or whose only used output is its input."""
    for node_id, node in list(graph.items()):
        passed = node["inputs"].get(_PREVIEWS.get(node["class_type"], ""))
        outputs = {link[1] for link in links.get(node_id, ())}
        if node["class_type"] in _PREVIEWS and (not outputs or (outputs == {0} and is_link(passed))):
            _redirect(links, node_id, passed)
            del graph[node_id]


def _redirect(links: dict[str, list[list[Any]]], node_id: str, source: list[Any]) -> None:
    """Make every link to a node point to `source`."""
    for link in links.pop(node_id, ()):
        link[:] = source
        links.setdefault(source[0], []).append(link)


def websocket_savers(graph: Graph) -> tuple[str, ...]:
    """Return the ids of the nodes that send images over the websocket."""
    return tuple(node_id for node_id, node in graph.items() if node["class_type"] in _SENDERS)


def prefix_of(graph: Graph, node_id: str) -> str | None:
    """Return a node's filename prefix without folders, or None. The nodes of IMAGE_SAVERS have a default."""
    match graph.get(node_id):
        case {"class_type": str(class_type), "inputs": dict(inputs)}:
            prefix = _literal_text(graph, inputs, PREFIX_SAVERS.get(class_type, "filename_prefix"))
            if prefix is not None:
                return re.split(r"[/\\]", prefix.rstrip("/\\"))[-1] or _DEFAULT_PREFIX
            return _DEFAULT_PREFIX if class_type in IMAGE_SAVERS else None
    return None


def filled_name(prefix: str, size: tuple[int, int], number: int, now: time.struct_time) -> str:
    """Return `prefix` with ComfyUI's variables filled in, and without characters that Windows does not allow.

    `size` is the image's width and height, and `number` its number, from 0, among the images of its node.
    """
    values = {"%width%": size[0], "%height%": size[1], "%batch_num%": number}
    for name, value in values.items():
        prefix = prefix.replace(name, str(value))
    for name, form in _TIME_FORMATS.items():
        prefix = prefix.replace(name, time.strftime(form, now))
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", prefix)


_TIME_FORMATS = {
    "%year%": "%Y",
    "%month%": "%m",
    "%day%": "%d",
    "%hour%": "%H",
    "%minute%": "%M",
    "%second%": "%S",
}


def _relative_path(prefix: str) -> str:
    """Return `prefix` as a relative path without "..", because /view rejects file names that contain ".."."""
    parts = [part for part in re.split(r"[/\\]", prefix) if part not in {"", ".", ".."}]
    return _DOTS.sub("_", "/".join(parts)) or _DEFAULT_PREFIX
