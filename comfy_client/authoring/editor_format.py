"""Converts a workflow in ComfyUI's editor format (`nodes` and `links`) into a graph in API format. Pure.

It does what the editor's own "Export (API)" does. Muted nodes are left out. Bypassed nodes are replaced by their input
of the same type; reroutes, primitives, Set and Get nodes by what they are connected to; a subgraph by its nodes, with
the ids `subgraph:node`. What cannot be converted is named: group nodes, and nodes whose class is not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from comfy_client.authoring.widget_values import exported_values, widget_values
from comfy_core.contract import EXPORT_MENU, JsonObject
from comfy_core.errors import ConfigError
from comfy_core.graphs import Graph

_MUTED, _BYPASSED = 2, 4
"""Values of a node's `mode`."""
_SUBGRAPH_INPUT, _SUBGRAPH_OUTPUT = -10, -20
"""Ids of the nodes that are a subgraph's inputs and outputs."""
_NOTES = frozenset({"Note", "MarkdownNote"})
_VIRTUAL = frozenset({"Reroute", "PrimitiveNode", "SetNode", "GetNode", "Reroute (rgthree)", *_NOTES})
"""Node types that exist in the editor only."""
_OWN_INPUT = "-1"
"""Id in `proxyWidgets` that stands for an input of the subgraph."""
_MAX_DEPTH = 200
"""Maximum number of virtual nodes in a row. More are a cycle."""
_Link: TypeAlias = tuple[Any, int]
"""Id of a node and index of one of its outputs."""


@dataclass(frozen=True)
class _Literal:
    """A value that a virtual node gives to an input."""

    value: Any


@dataclass(frozen=True)
class _Scope:
    """The nodes of the workflow, or of one use of a subgraph. `prefix` is the start of their ids in the API format."""

    nodes: Mapping[Any, JsonObject]
    links: Mapping[int, tuple[Any, int, Any, int]]
    prefix: str = ""
    outer: _Scope | None = None
    instance: JsonObject = field(default_factory=dict)
    definition: JsonObject = field(default_factory=dict)

    @classmethod
    def of(cls, content: JsonObject, **outside: Any) -> _Scope:  # noqa: ANN401 - the other fields
        links = {}
        for link in content.get("links") or ():
            match link:
                case [link_id, origin, slot, target, target_slot, *_]:
                    links[link_id] = (origin, slot, target, target_slot)
                case {"id": link_id, "origin_id": origin, "origin_slot": slot, "target_id": target, **rest}:
                    links[link_id] = (origin, slot, target, rest.get("target_slot", 0))
        return cls({node["id"]: node for node in content["nodes"]}, links, **outside)

    def node_id(self, node: JsonObject) -> str:
        return f"{self.prefix}{node['id']}"


def is_editor_format(value: object) -> bool:
    """Return whether a JSON value is a workflow in the editor's format."""
    return isinstance(value, dict) and isinstance(value.get("nodes"), list)


def class_types(workflow: JsonObject) -> set[str]:
    """Return the node classes of a workflow in the editor's format and of its subgraphs. Raises ConfigError."""
    with _damage_named():
        subgraphs = (workflow.get("definitions") or {}).get("subgraphs") or []
        found = {str(node["type"]) for scope in (workflow, *subgraphs) for node in scope["nodes"]}
        return found - {*_VIRTUAL, *(each["id"] for each in subgraphs)}


def convert(workflow: JsonObject, node_types: Mapping[str, JsonObject]) -> Graph:
    """Return the graph in API format. `node_types` are the /object_info entries by class.

    Raises ConfigError that names every node that cannot be converted.
    """
    with _damage_named():
        return _Conversion(workflow, node_types).graph()


@contextmanager
def _damage_named() -> Iterator[None]:
    """Raise ConfigError instead of the errors with which the reading of a damaged workflow ends."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConfigError(
            f"it looks like ComfyUI's editor format, but is damaged ({type(error).__name__}: {error}). Open it in "
            f"ComfyUI and use {EXPORT_MENU}"
        ) from error


class _Conversion:
    def __init__(self, workflow: JsonObject, node_types: Mapping[str, JsonObject]) -> None:
        self._node_types = node_types
        self._subgraphs = {each["id"]: each for each in (workflow.get("definitions") or {}).get("subgraphs") or ()}
        self._root = _Scope.of(workflow)
        self._problems: list[str] = []

    def graph(self) -> Graph:
        """Return the converted graph. Raises ConfigError."""
        converted = dict(self._nodes(self._root))
        if self._problems:
            raise ConfigError(
                f"these nodes cannot be converted from the editor's format: {'; '.join(self._problems)}. Use a ComfyUI "
                f"that has them (--comfyui URL), or open the workflow there and use {EXPORT_MENU}"
            )
        for node in converted.values():
            for name, value in list(node["inputs"].items()):
                if isinstance(value, list) and value[0] not in converted:  # a link to a node that is left out
                    del node["inputs"][name]
        return dict(sorted(converted.items(), key=lambda item: (not item[0].isdecimal(), _number(item[0]))))

    def _nodes(self, scope: _Scope) -> Iterator[tuple[str, JsonObject]]:
        """Yield the id and the API form of each node that runs, in the order in which the editor lists them."""
        for node in sorted(scope.nodes.values(), key=lambda each: each.get("order", 0)):
            if node.get("mode", 0) in {_MUTED, _BYPASSED} or node["type"] in _VIRTUAL:
                continue
            if inner := self._inside(node, scope):
                yield from self._nodes(inner)
            elif problem := self._problem(node):
                self._problems.append(f"{scope.node_id(node)} ({node['type']}): {problem}")
            elif self._is_known(node) or _is_linked(node):  # otherwise a label or the like
                yield scope.node_id(node), self._node(node, scope)

    def _problem(self, node: JsonObject) -> str:
        if node["type"].startswith(("workflow/", "workflow>")):
            return "it is a group node; ungroup it, or convert it to a subgraph"
        if self._is_known(node) or not _is_linked(node):
            return ""
        try:
            widget_values(node, None)
        except LookupError as error:
            return str(error.args[0])
        return ""

    def _is_known(self, node: JsonObject) -> bool:
        return node["type"] in self._node_types

    def _node(self, node: JsonObject, scope: _Scope) -> JsonObject:
        node_type = self._node_types.get(node["type"])
        values = {**widget_values(node, node_type), **_promoted_values(scope, node)}
        inputs = {name: _wrapped(value) for name, value in exported_values(node, values, node_type).items()}
        for slot, entry in enumerate(node.get("inputs") or ()):
            source = self._source(scope, node, slot)
            if isinstance(source, _Literal):
                inputs[entry["name"]] = _wrapped(source.value)
            elif source is not None:
                inputs[entry["name"]] = [source[0], source[1]]
        names: list[object] = list(inputs)
        if not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"an input of node {scope.node_id(node)} has no name")
        title = node.get("title") or (node_type or {}).get("display_name") or node["type"]
        return {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}

    def _inside(self, node: JsonObject, scope: _Scope) -> _Scope | None:
        """Return the nodes of a subgraph's instance, or None for any other node."""
        definition = self._subgraphs.get(node["type"])
        if definition is None:
            return None
        prefix = f"{scope.node_id(node)}:"
        if prefix.count(":") > len(self._subgraphs):
            raise ValueError(f"subgraph {definition.get('name')} contains itself")
        return _Scope.of(definition, prefix=prefix, outer=scope, instance=node, definition=definition)

    def _source(self, scope: _Scope, node: JsonObject, slot: int, depth: int = 0) -> _Link | _Literal | None:
        """Return what an input of a node is connected to, or None."""
        entries = node.get("inputs") or ()
        link = scope.links.get(entries[slot].get("link")) if slot < len(entries) else None
        if link is None:
            return None
        if depth > _MAX_DEPTH:
            raise ValueError(f"node {scope.node_id(node)} is part of a cycle")
        origin, origin_slot = link[0], link[1]
        if origin == _SUBGRAPH_INPUT and scope.outer is not None:
            return self._outside(scope, origin_slot, depth)
        if origin not in scope.nodes:
            return None
        return self._output(scope, scope.nodes[origin], origin_slot, entries[slot].get("type", "*"), depth)

    def _outside(self, scope: _Scope, number: int, depth: int) -> _Link | _Literal | None:
        """Return what input `number` of a subgraph is connected to outside of it, else the value of its widget."""
        assert scope.outer is not None  # noqa: S101 - called for the input of a subgraph
        name = scope.definition["inputs"][number]["name"]
        for slot, entry in enumerate(scope.instance.get("inputs") or ()):
            if entry["name"] == name and entry.get("link") is not None:
                return self._source(scope.outer, scope.instance, slot, depth + 1)
        return self._promoted(scope, number)

    def _promoted(self, scope: _Scope, number: int) -> _Literal | None:
        """Return the value of a subgraph's widget for its input `number`, or None if the input has no widget."""
        found = _widget_behind(scope, number)
        if found is None:
            return None
        node, name = found
        own = {} if node["type"] in self._subgraphs else widget_values(node, self._node_types.get(node["type"]))
        values = {**own, **_promoted_values(scope, node)}
        return _Literal(values[name]) if name in values else None

    def _output(self, scope: _Scope, node: JsonObject, slot: int, kind: str, depth: int) -> _Link | _Literal | None:
        """Return what output `slot` of a node stands for: the node itself, or what a node without own work passes on.

        `kind` is the type of the input that it is connected to.
        """
        mode, node_type = node.get("mode", 0), node["type"]
        if mode == _MUTED:
            return None
        if mode == _BYPASSED:
            return self._bypassed(scope, node, slot, kind, depth)
        if inner := self._inside(node, scope):
            return self._subgraph_output(inner, slot, kind, depth)
        if node_type in _VIRTUAL:
            return self._virtual_output(scope, node, slot, depth)
        return scope.node_id(node), slot

    def _subgraph_output(self, inner: _Scope, slot: int, kind: str, depth: int) -> _Link | _Literal | None:
        """Return what output `slot` of a subgraph stands for."""
        for origin, origin_slot, target, target_slot in inner.links.values():
            if (target, target_slot) == (_SUBGRAPH_OUTPUT, slot):
                if origin == _SUBGRAPH_INPUT:
                    return self._outside(inner, origin_slot, depth)
                return self._output(inner, inner.nodes[origin], origin_slot, kind, depth + 1)
        return None

    def _virtual_output(self, scope: _Scope, node: JsonObject, slot: int, depth: int) -> _Link | _Literal | None:
        """Return what an output of a node stands for that exists in the editor only."""
        if node["type"] == "PrimitiveNode":
            return _Literal((node.get("widgets_values") or [None])[0])
        if node["type"] != "GetNode":
            return self._source(scope, node, slot, depth + 1)
        for each in scope.nodes.values():
            if each["type"] == "SetNode" and each.get("widgets_values") == node.get("widgets_values"):
                return self._source(scope, each, 0, depth + 1)
        return None

    def _bypassed(self, scope: _Scope, node: JsonObject, slot: int, kind: str, depth: int) -> _Link | _Literal | None:
        """Return what the input of a bypassed node that replaces its output is connected to."""
        kinds = [entry.get("type", "*") for entry in node.get("inputs") or ()]
        outputs = node.get("outputs") or ()
        output_kind = outputs[slot].get("type", "*") if slot < len(outputs) else kind
        if kind in {"*", ""} and kinds:
            return self._source(scope, node, slot if slot < len(kinds) else 0, depth + 1)
        fitting = [
            number
            for number, each in enumerate(kinds)
            if _are_compatible(each, output_kind) and _are_compatible(each, kind)
        ]
        exact = [number for number, each in enumerate(kinds) if each == kind]
        chosen = [slot] if slot in fitting else [*exact, *fitting]
        return self._source(scope, node, chosen[0], depth + 1) if chosen else None


def _promoted_values(scope: _Scope, node: JsonObject) -> JsonObject:
    """Return the values that the subgraph's node, in the outer workflow, has for widgets of an inner node, by name.

    They are in the order of `proxyWidgets`: pairs of an inner node's id and a widget's name, or of -1 and the name of
    an input of the subgraph. Newer editors write no `proxyWidgets`, but a value for each input of the subgraph that
    sets a widget. Without values, or for null, the inner values apply.
    """
    values = scope.instance.get("widgets_values") or []
    inputs = [entry["name"] for entry in scope.definition.get("inputs", ())]
    proxies = scope.instance.get("properties", {}).get("proxyWidgets") or [[_OWN_INPUT, name] for name in inputs]
    widgets = []
    for node_id, name, *_ in proxies:
        found = _widget_behind(scope, inputs.index(name)) if str(node_id) == _OWN_INPUT and name in inputs else None
        if str(node_id) != _OWN_INPUT:
            widgets.append((str(node_id), name))
        elif found is not None:
            widgets.append((str(found[0]["id"]), found[1]))
    pairs = zip(widgets, values, strict=False)
    return {name: value for (owner, name), value in pairs if owner == str(node["id"]) and value is not None}


def _widget_behind(scope: _Scope, number: int) -> tuple[JsonObject, str] | None:
    """Return the node and the name of the first widget that input `number` of a subgraph sets, or None."""
    for origin, slot, target, target_slot in scope.links.values():
        if (origin, slot) == (_SUBGRAPH_INPUT, number) and target in scope.nodes:
            entry = scope.nodes[target]["inputs"][target_slot]
            if "widget" in entry:
                return scope.nodes[target], entry["name"]
    return None


def _is_linked(node: JsonObject) -> bool:
    inputs, outputs = node.get("inputs") or (), node.get("outputs") or ()
    return any(entry.get("link") is not None for entry in inputs) or any(entry.get("links") for entry in outputs)


def _are_compatible(kind: str, other: str) -> bool:
    """Return whether two types of slots can be connected. A type may list several, separated by commas."""
    if "*" in {kind, other} or "" in {kind, other}:
        return True
    return bool(set(str(kind).lower().split(",")) & set(str(other).lower().split(",")))


def _wrapped(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a value for an input. ComfyUI would read a list as a link."""
    return {"__value__": value} if isinstance(value, list) else value


def _number(node_id: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else 0 for part in node_id.split(":"))
