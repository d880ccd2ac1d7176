"""Compares the messages in the recordings of two versions of ComfyUI. Pure.

A recording becomes a set of facts: for each kind of message (a frame, a request with its response) the paths of its
JSON, and the values at each path. Node ids and prompt ids in a path are `*`, and positions in a list are `[]`. Two
recordings of the same ComfyUI therefore have the same facts, however many frames they contain.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tools.bump_comfyui.changes import ABSENT, Change
from tools.normal_messages import normal

Facts = Mapping[str, Mapping[str, frozenset[str]]]
"""For each kind of message the values at each path, as JSON."""

OF_THE_MACHINE = ("GET /system_stats",)
"""Responses whose values depend on the machine. Only their keys are compared."""
_CONTAINER = "{}"
_ID = re.compile(r"<id \d+>")


def message_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Return the differences between recordings of the same name, the same difference in several of them once."""
    found: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for name in sorted(before.keys() & after.keys()):
        for change in _recording_changes(before[name], after[name]):
            found[change].append(name)
    return [Change(*change, tuple(names)) for change, names in sorted(found.items())]


def _recording_changes(before: Any, after: Any) -> Iterator[tuple[str, str, str, str]]:  # noqa: ANN401 - JSON
    """Yield subject, part, value before and value after of each difference between two recordings."""
    old_entries, new_entries = _entries(before), _entries(after)
    node_ids = frozenset(_node_ids([old_entries, new_entries]))
    old, new = facts(old_entries, node_ids), facts(new_entries, node_ids)
    for kind in sorted(old.keys() & new.keys()):
        yield from ((kind, *difference) for difference in _path_changes(old[kind], new[kind]))
    only_old, only_new = (sorted(one.keys() - other.keys()) for one, other in ((old, new), (new, old)))
    if only_old or only_new:
        yield "kinds of messages", "", ", ".join(only_old) or ABSENT, ", ".join(only_new) or ABSENT
    orders = [
        [kind for kind in _frame_order(entries) if kind in old and kind in new]
        for entries in (old_entries, new_entries)
    ]
    if orders[0] != orders[1]:
        yield "order of the first frames", "", ", ".join(orders[0]), ", ".join(orders[1])


def _path_changes(
    old: Mapping[str, frozenset[str]], new: Mapping[str, frozenset[str]]
) -> Iterator[tuple[str, str, str]]:
    """Yield path, value before and value after. A path below one that is new, or no longer exists, is left out."""
    for path in sorted(old.keys() | new.keys()):
        parent = path.rpartition(".")[0].removesuffix("[]")
        if path in old and path in new:
            if old[path] != new[path]:
                yield path, _shown(old[path] - new[path]), _shown(new[path] - old[path])
        elif not parent or (parent in old and parent in new):
            yield path, _shown(old.get(path)), _shown(new.get(path))


def _shown(values: frozenset[str] | None) -> str:
    return " or ".join(sorted(values or ())) or ABSENT


def facts(entries: Sequence[Mapping[str, Any]], node_ids: frozenset[str]) -> Facts:
    """Return the facts of a recording's entries. `node_ids` are the keys that are written `*` in a path."""
    result: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for entry in entries:
        kind, content = _labelled(entry)
        for path, value in _leaves(content, "", node_ids):
            result[kind][path].add("(of the machine)" if kind in OF_THE_MACHINE else value)
    return {kind: {path: frozenset(values) for path, values in paths.items()} for kind, paths in result.items()}


def _entries(recording: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - JSON
    """Return the normalized entries of a recording, without notes. A recording that is no list has one entry."""
    entries = normal(recording if isinstance(recording, list) else [recording])
    return [entry for entry in entries if "note" not in entry]


def _labelled(entry: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the kind of an entry, and the part of it that ComfyUI sent."""
    match entry:
        case {"ws": {"type": kind, "data": data}}:
            is_end = kind == "executing" and data.get("node") is None
            return f"frame {kind}{' (node null)' if is_end else ''}", data
        case {"ws_binary": data}:
            return "binary frame", data
        case {"http": str(request), **response}:
            return request, response
        case {"request": {"method": method, "path": path, **options}, **response}:
            sent = "".join(f" {json.dumps(options[key])}" for key in ("params", "json") if _is_short(options.get(key)))
            return f"{method} {_ID.sub('{id}', path)}{_ID.sub('{id}', sent)}", response
        case {"request": request, **response}:
            return f"{request if isinstance(request, str) else json.dumps(request)}", response
    return "response", entry


def _is_short(value: object) -> bool:
    return value is not None and len(json.dumps(value)) < 100  # noqa: PLR2004 - a graph is longer


def _frame_order(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the kinds of frames in the order of their first one, without `status`, whose position varies."""
    kinds = [_labelled(entry)[0] for entry in entries if "ws" in entry or "ws_binary" in entry]
    return [kind for kind in dict.fromkeys(kinds) if kind != "frame status"]


def _leaves(value: Any, path: str, node_ids: frozenset[str]) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - JSON
    """Yield the path and the value of each part of a message. The nodes of a graph are what the recorder sent."""
    match value:
        case {"class_type": _, "inputs": _}:
            return
        case dict():
            yield path, _CONTAINER
            for key, inner in value.items():
                name = "*" if key in node_ids or _ID.fullmatch(key) else key
                yield from _leaves(inner, f"{path}.{name}" if path else name, node_ids)
        case list():
            yield path, _CONTAINER
            for inner in value:
                yield from _leaves(inner, f"{path}[]", node_ids)
        case _:
            yield path, json.dumps(value, ensure_ascii=False)


def _node_ids(value: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Yield the node ids of each graph, and of each list of node errors, in messages."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, dict) and "class_type" in inner and ("inputs" in inner or "errors" in inner):
                yield key
            yield from _node_ids(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _node_ids(inner)
