"""Finds inputs of a graph by name, as requests and inputs files write them: `Node title.input`, `12.input`. Pure."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy_core.graphs import Graph, is_link, title_of
from comfy_core.validation import Faults, Suggestions, path_of, shown

_INPUTS_PREFIX = "inputs."
_NODE_KEYS = re.compile(r"(class_type|inputs|_meta)(\.|$)")
"""Matches the keys of a node in ComfyUI's JSON, which are not inputs."""
_MAX_DOTS = 16
"""Maximum number of dots that are tried as the end of the node's id or title, from the last to the first."""


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

        The node is the longest prefix before a dot that is a node id or title. The rest is the input's name, which may
        contain dots, optionally followed by `.N` for an item of a list.

        Raises LookupError, with a message for the user, if the node or input does not exist or the title is ambiguous.
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
        node_id, name = self._split(place)
        inputs = self._graph[node_id]["inputs"]
        if name not in inputs and name.startswith(_INPUTS_PREFIX):  # as in ComfyUI's JSON: `12.inputs.width`
            name = name.removeprefix(_INPUTS_PREFIX) or name
        if name not in inputs and _NODE_KEYS.match(name):
            raise LookupError(f"{shown(name)} is not an input of a node; overrides can only set inputs")
        head, dot, last = name.rpartition(".")
        if name in inputs or not (dot and head in inputs and re.fullmatch("[0-9]{1,4}", last)):
            return Target(node_id, name)
        items = inputs[head]
        if not isinstance(items, list) or is_link(items) or int(last) >= len(items):
            raise LookupError(f"{shown(place.rpartition('.')[0])} has no item {last}")
        return Target(node_id, head, int(last))

    def near(self, target: Target) -> str:
        """Return `; did you mean …?` for a new input that resembles an existing one, or an empty string."""
        inputs = self._graph[target.node_id]["inputs"]
        return "" if target.input in inputs else self._suggestions.nearest(target.input, inputs)

    def _split(self, place: str) -> tuple[str, str]:
        end = len(place)
        for _ in range(_MAX_DOTS):
            end = place.rfind(".", 0, end)
            if end < 0:
                break
            node, name = place[:end], place[end + 1 :]
            if not name:
                continue
            if node in self._graph:
                return node, name
            if named := self._titled.get(node):
                if len(named) > 1:
                    ids = ", ".join(map(shown, named[:8]))
                    raise LookupError(f"{len(named)} nodes are titled {shown(node)}; use an id: {ids}")
                return named[0], name
        head, dot, last = place.rpartition(".")
        if not (dot and head and last):
            raise LookupError(f'{shown(place)} names no input; write "Node title.input" or "12.input"')
        near = self._suggestions.nearest(head, [*self._graph, *self._titled])
        raise LookupError(f"the graph has no node {shown(head)}{near}")


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
