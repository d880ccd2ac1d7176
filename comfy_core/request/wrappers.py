"""Unwraps a request from the formats that callers send: RunPod's envelope, or a body of POST /prompt. Pure."""

from __future__ import annotations

import json
from typing import Any

from comfy_core.contract import ENVELOPE, GRAPH_KEYS, JsonObject
from comfy_core.graphs import is_node
from comfy_core.request.foreign_keys import BESIDE_INPUT, NOT_A_WEBHOOK, is_platform_key
from comfy_core.validation import Suggestions, path_of

_GRAPH_KEYS = ("prompt", "output", "workflow")
"""Keys of the graph in a body of POST /prompt, and in the return value of graphToPrompt in ComfyUI's editor."""
_KEYS_BESIDE_GRAPH = frozenset({*ENVELOPE, *GRAPH_KEYS} - {"workflow"})
_MAX_WRAPPERS = 3
"""Maximum number of nested wrappers that are removed."""
_MAX_UNKNOWN_KEYS = 10
"""Maximum number of unknown keys that get their own warning."""
_RESERVED_KEYS = frozenset({"client_id", "prompt_id", "sid", "create_time"})
"""Keys of ComfyUI's `extra_data` that identify the prompt and its client. They are set by ComfyUI or this package."""


def parsed(text: str) -> object:
    """Return the value of a JSON text, or None if it is not valid JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def with_parsed_graph(raw: object, levels: int = _MAX_WRAPPERS) -> object:
    """Return `raw` with each graph parsed that is given as JSON text in `workflow` or another key for a graph.

    Objects in `input` and `workflow` are searched too, up to `levels` deep.
    """
    if not isinstance(raw, dict):
        return raw
    read = dict(raw)
    for key in {"input", *_GRAPH_KEYS} & raw.keys():
        match read[key]:
            case str() as text if text.lstrip("\ufeff \t\r\n")[:1] == "{":
                graph = parsed(text.lstrip("\ufeff"))
                if isinstance(graph, dict) and (key in {"input", "workflow"} or _holds_graph(graph)):
                    read[key] = graph
            case dict() as inner if levels and key in {"input", "workflow"}:
                read[key] = with_parsed_graph(inner, levels - 1)
    return read


def unwrapped(value: JsonObject, warnings: list[str]) -> JsonObject:
    """Return the request inside `value`, with its graph as `workflow`. Add a warning for each wrapper."""
    for _ in range(_MAX_WRAPPERS):
        match value:
            case {"input": dict(inner), **rest} if all(map(is_platform_key, rest.keys() - {"id"})):
                warnings.append("input: is a whole RunPod request; the `input` in it was read")
                warnings += [f"{key}: {BESIDE_INPUT}" for key in rest if is_platform_key(key)]
                value = {name: item for name, item in inner.items() if item is not None}
    return _with_graph(value, warnings)


def _with_graph(value: JsonObject, warnings: list[str]) -> JsonObject:
    match value.get("workflow"):
        case None:
            return _find_graph(value, warnings)
        case {"input": {"workflow": graph}} as outer:
            warnings.append("workflow: is a whole RunPod request; the `input` in it was read")
            return _with_graph({**outer["input"], **value, "workflow": graph}, warnings)
        case dict(outer) if not any(map(is_node, outer.values())):
            for key in _GRAPH_KEYS:
                if _holds_graph(outer.get(key)):
                    warnings.append(f"workflow: is an object with the graph as its `{key}`; that graph was read")
                    passed = {name: outer[name] for name in outer.keys() & _KEYS_BESIDE_GRAPH}
                    return {**passed, **value, "workflow": outer[key]}
    return value


def _find_graph(value: JsonObject, warnings: list[str]) -> JsonObject:
    """Return the request with its graph, found under another key or at the top level, as `workflow`."""
    for key in [*_GRAPH_KEYS[:2], *sorted(value.keys() - _KEYS_BESIDE_GRAPH)]:
        if _holds_graph(value.get(key)):
            warnings.append(f"{key}: is a graph, and was read as `workflow`")
            rest = {name: item for name, item in value.items() if name != key}
            return {**rest, "workflow": value[key]}
    if isinstance(value.get("nodes"), list):
        return {"workflow": value}
    if not any(map(is_node, value.values())):
        return value
    warnings.append("input: is a graph itself, and was read as `workflow`")
    graph = {name: item for name, item in value.items() if isinstance(item, dict) and name not in _KEYS_BESIDE_GRAPH}
    rest = {name: item for name, item in value.items() if name not in graph}
    return {**rest, "workflow": graph}


def _holds_graph(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Return whether `value` is a graph in API format or in the editor's format."""
    return isinstance(value, dict) and (any(map(is_node, value.values())) or isinstance(value.get("nodes"), list))


def split_graph_request(value: JsonObject, warnings: list[str]) -> tuple[JsonObject, JsonObject]:
    """Return a graph request's keys of ENVELOPE, and the `extra_data` for ComfyUI. Add warnings for all other keys."""
    extra_data: JsonObject = {}
    match value.get("extra_data", {}):
        case dict(given):
            extra_data = {name: item for name, item in given.items() if name not in _RESERVED_KEYS}
            warnings += [
                f"extra_data.{name}: identifies the prompt or its client, and was removed"
                for name in given.keys() - extra_data.keys()
            ]
        case _:
            warnings.append("extra_data: is not an object, and was removed")
    if not isinstance(extra_data.get("extra_pnginfo", {}), dict):
        del extra_data["extra_pnginfo"]
        warnings.append("extra_data.extra_pnginfo: is not an object, and was removed")
    match value.get("comfy_org_api_key"):
        case str(key) if key:
            extra_data["api_key_comfy_org"] = key
    if isinstance(value.get("metadata"), dict):
        value = {name: item for name, item in value.items() if name != "metadata"}
        warnings.append("metadata: is an object, and was ignored; it must be true or false")
    if not isinstance(value.get("webhook", {}), dict):
        value = {name: item for name, item in value.items() if name != "webhook"}
        warnings.append(f"webhook: {NOT_A_WEBHOOK}")
    suggestions = Suggestions()
    unknown = sorted(value.keys() - ENVELOPE.keys() - GRAPH_KEYS.keys())
    for name in unknown[:_MAX_UNKNOWN_KEYS]:
        near = suggestions.nearest(name, ENVELOPE)
        problem = (
            BESIDE_INPUT if is_platform_key(name) else f"is ignored with a graph; use `overrides` to set values{near}"
        )
        warnings.append(f"{path_of([name])}: {problem}")
    if len(unknown) > _MAX_UNKNOWN_KEYS:
        warnings.append(f"and {len(unknown) - _MAX_UNKNOWN_KEYS:,} more keys that are ignored")
    return {name: item for name, item in value.items() if name in ENVELOPE}, extra_data
