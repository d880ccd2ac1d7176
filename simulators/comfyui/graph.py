"""Determines the order in which the nodes of a graph run, and which nodes have the same result.

Facts about ComfyUI, visible in the order of `executing` frames:

- A link is a list of two items, `[node id, output number]`.
- The graph is traversed depth first from each output node, the last input of a node first. The traversal ends at cached
  nodes. Nodes that wait for no other node are ready, in the order of the traversal.
- Of the ready nodes, an output node runs first, otherwise one that an output node waits for, otherwise one that such a
  node waits for, otherwise the first one.
- Two nodes have the same result if their classes, literal inputs and upstream nodes are the same. Nodes whose result
  depends on something else add it: LoadImage the hash of its file, SaveImageWebsocket the time (so it always runs).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Mapping
from typing import Any

Graph = Mapping[str, Mapping[str, Any]]
LINK_LENGTH = 2


def is_link(value: object) -> bool:
    """Return whether an input's value is a link to another node."""
    return isinstance(value, list) and len(value) == LINK_LENGTH and isinstance(value[0], str)


def inputs_of(graph: Graph, node_id: str) -> Mapping[str, Any]:
    """Return the inputs of a node. A node that no output needs may lack `inputs`."""
    inputs: Mapping[str, Any] = graph[node_id].get("inputs", {})
    return inputs


def links_of(graph: Graph, node_id: str) -> list[str]:
    """Return the ids that a node links to, in the order of its inputs."""
    return [value[0] for value in inputs_of(graph, node_id).values() if is_link(value)]


def signatures(graph: Graph, extra_identity: Callable[[str], object]) -> dict[str, str]:
    """Return the identity of every node's result, by node id.

    `extra_identity` returns what a node's result depends on besides its class, inputs and upstream nodes.
    """
    known: dict[str, str] = {}

    def signature(node_id: str) -> str:
        if node_id not in known and node_id in graph:
            known[node_id] = "part of a cycle"  # only a cycle reads this value; it is replaced below
            inputs = {name: identity(value) for name, value in inputs_of(graph, node_id).items()}
            text = json.dumps([graph[node_id]["class_type"], extra_identity(node_id), inputs], sort_keys=True)
            known[node_id] = hashlib.sha256(text.encode()).hexdigest()
        return known.get(node_id, "no such node")

    def identity(value: object) -> object:
        match value:
            case [str(source), output]:
                return ["link", signature(source), output]
        return value

    return {node_id: signature(node_id) for node_id in graph}


class RunOrder:
    """The nodes that have not run. `next_node` returns one, and `done` removes it."""

    def __init__(self, graph: Graph, is_output: Callable[[str], bool]) -> None:
        self._graph = graph
        self._is_output = is_output
        self._waits_for: dict[str, set[str]] = {}

    def add(self, output: str, cached: Container[str]) -> None:
        """Add an output node and everything upstream that is not cached."""
        to_visit = [output]
        while to_visit:
            node_id = to_visit.pop()
            if node_id not in self._waits_for:
                needed = [source for source in links_of(self._graph, node_id) if source not in cached]
                self._waits_for[node_id] = set(needed)
                to_visit += needed

    def next_node(self) -> str | None:
        """Return the next node to run, or None if all have run."""
        ready = [node_id for node_id, needed in self._waits_for.items() if not needed]
        wanted: Callable[[str], bool] = self._is_output
        for _ in range(3):
            for node_id in ready:
                if wanted(node_id):
                    return node_id
            wanted = self._feeds(wanted)
        return ready[0] if ready else None

    def done(self, node_id: str) -> None:
        """Remove a node that has run."""
        del self._waits_for[node_id]
        for needed in self._waits_for.values():
            needed.discard(node_id)

    def _feeds(self, wanted: Callable[[str], bool]) -> Callable[[str], bool]:
        def feeds(node_id: str) -> bool:
            return any(node_id in needed and wanted(other) for other, needed in self._waits_for.items())

        return feeds
