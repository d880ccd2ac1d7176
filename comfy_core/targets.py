"""Finds inputs of a graph by name, as requests and inputs files write them: `Node title.input`, `12.input`. Pure."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy_core.graphs import Graph, is_link, title_of
from comfy_core.validation import Faults, Suggestions, path_of, shown

_INPUTS_PREFIX = "inputs."
_NODE_KEYS = re.compile(r"(class_type|inputs|_meta)(\.|$)")
"""Matches the keys of a node in ComfyUI's JSON, which are not inputs."""
_INDEX = re.compile("[0-9]{1,4}")
"""Matches the index of a list's item."""
_MAX_DOTS = 16
"""Maximum number of dots that are tried as the end of the node's id or title, from the last to the first."""
_MAX_SHOWN = 8
"""Maximum number of nodes in an error message."""


@dataclass(frozen=True)
class Target:
    """One input of one node. `index` selects an item of an input that is a list."""

    node_id: str
    input: str
    index: int | None = None

    def set(self, graph: Graph, value: object) -> None:
        """Set the input in `graph` to `value`."""
        inputs = graph[self.node_id]["inputs"]
        if self.index is None:
            inputs[self.input] = value
        else:
            inputs[self.input][self.index] = value

    def get(self, graph: Graph) -> Any:  # noqa: ANN401 - any JSON value
        """Return the input's value in `graph`."""
        value = graph[self.node_id]["inputs"][self.input]
        return value if self.index is None else value[self.index]


class TargetFinder:
    """Finds inputs of one graph by name. The graph's nodes and titles must not change while the finder is in use."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._titled: dict[str, list[str]] = {}
        for node_id, node in graph.items():
            self._titled.setdefault(title_of(node), []).append(node_id)
        self._suggestions = Suggestions()

    def target(self, place: str) -> Target:
        """Return the input that `place` names, such as `KSampler.seed`.

        The text before one of the dots is a node's id or title. The rest is the input's name, which may contain dots,
        optionally followed by `.N` for an item of a list. If several dots are possible, the inputs of the graph decide.

        Raises LookupError, with a message for the user, if the input does not exist or several inputs match.
        """
        target = self.target_or_new(place)
        inputs = self._graph[target.node_id]["inputs"]
        if target.input not in inputs:
            node = place[: -len(target.input) - 1]
            near = self._suggestions.nearest(target.input, inputs)
            raise LookupError(f"node {shown(node)} has no input {shown(target.input)}{near}")
        return target

    def target_or_new(self, place: str) -> Target:
        """Return the input that `place` names, like `target`, but even if the node does not have that input."""
        splits = list(self._splits(place))
        if not splits:
            raise LookupError(self._unknown_node(place))
        found = {target: node for node, name, ids in splits for target in self._existing(ids, name)}
        if len(found) > 1:
            raise LookupError(_ambiguous(place, found))
        if found:
            return next(iter(found))
        node, name, ids = splits[0]
        if len(splits) > 1:
            nodes = ", ".join(f"{shown(node)} ({_ids(ids)})" for node, _, ids in splits)
            raise LookupError(f"{shown(place)} can name a new input of several nodes: {nodes}; use the node's id")
        if len(ids) > 1:
            raise LookupError(f"{len(ids)} nodes are titled {shown(node)}; use an id: {_ids(ids)}")
        return self._new(ids[0], name, place)

    def _new(self, node_id: str, name: str, place: str) -> Target:
        """Return the target of an input that the node does not have. Raises LookupError if it cannot be added."""
        plain = _without_prefix(name)
        if _NODE_KEYS.match(plain):
            raise LookupError(f"{shown(plain)} is not an input of a node; overrides can only set inputs")
        head, dot, last = plain.rpartition(".")
        if dot and _INDEX.fullmatch(last) and head in self._graph[node_id]["inputs"]:
            raise LookupError(f"{shown(place.rpartition('.')[0])} has no item {last}")
        return Target(node_id, plain)

    def _existing(self, ids: Sequence[str], name: str) -> Iterator[Target]:
        """Yield the inputs and list items called `name` of the nodes `ids`."""
        for node_id in ids:
            inputs = self._graph[node_id]["inputs"]
            for each in dict.fromkeys((name, _without_prefix(name))):
                head, dot, last = each.rpartition(".")
                items = inputs.get(head) if dot and _INDEX.fullmatch(last) else None
                if each in inputs:
                    yield Target(node_id, each)
                    break
                if isinstance(items, list) and not is_link(items) and int(last) < len(items):
                    yield Target(node_id, head, int(last))
                    break

    def near(self, target: Target) -> str:
        """Return `; did you mean …?` for a new input that resembles an existing one, or an empty string."""
        inputs = self._graph[target.node_id]["inputs"]
        return "" if target.input in inputs else self._suggestions.nearest(target.input, inputs)

    def _splits(self, place: str) -> Iterator[tuple[str, str, list[str]]]:
        """Yield each way to split `place` at a dot: the node's id or title, the input's name, and the nodes' ids.

        The longest node name is the first. An id takes precedence over the same text as a title.
        """
        end = len(place)
        for _ in range(_MAX_DOTS):
            end = place.rfind(".", 0, end)
            if end < 0:
                return
            node, name = place[:end], place[end + 1 :]
            ids = [node] if node in self._graph else self._titled.get(node, [])
            if name and ids:
                yield node, name, ids

    def _unknown_node(self, place: str) -> str:
        head, dot, last = place.rpartition(".")
        if not (dot and head and last):
            return f'{shown(place)} names no input; write "Node title.input" or "12.input"'
        near = self._suggestions.nearest(head, [*self._graph, *self._titled])
        return f"the graph has no node {shown(head)}{near}"


def _without_prefix(name: str) -> str:
    """Return an input's name without `inputs.`: ComfyUI's JSON has the path `12.inputs.width`."""
    return name.removeprefix(_INPUTS_PREFIX) or name


def _ambiguous(place: str, found: Mapping[Target, str]) -> str:
    """Return the error for a place that names several inputs. `found` has the node's id or title of each."""
    titles = {*found.values()}
    if len(titles) == 1:
        ids = _ids([target.node_id for target in found])
        return f"{len(found)} nodes are titled {shown(titles.pop())}; use an id: {ids}"
    inputs = ", ".join(f"{shown(target.input)} of node {shown(target.node_id)}" for target in [*found][:_MAX_SHOWN])
    return f"{shown(place)} names {len(found)} inputs; use the node's id: {inputs}"


def _ids(ids: Sequence[str]) -> str:
    return ", ".join(map(shown, ids[:_MAX_SHOWN]))


def override(graph: Graph, overrides: Mapping[str, Any], faults: Faults) -> dict[str, Target]:
    """Apply `overrides` (`{"KSampler.seed": 5}`) to a caller's graph. Return the inputs that were set, by key.

    Inputs that a node does not have are added, because newer versions of ComfyUI require inputs that older exports
    lack. An added input that resembles an existing one gets a warning.
    """
    finder = TargetFinder(graph)
    written: dict[str, Target] = {}
    for place, value in overrides.items():
        if faults.is_full:
            break
        path = path_of(["overrides", place])
        try:
            target = finder.target_or_new(place)
        except LookupError as error:
            faults.add(path, str(error.args[0]))
            continue
        if near := finder.near(target):
            faults.warnings.append(f"{path}: the node had no such input; it was added{near}")
        target.set(graph, copy.deepcopy(value))
        written[place] = target
    return written
