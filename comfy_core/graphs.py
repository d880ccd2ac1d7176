"""Validates graphs in ComfyUI's API format, normalises links and seeds, and removes nodes that cannot run. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeAlias

from comfy_core.contract import EXPORT_MENU, MAX_FAULTS, Fault, JsonObject
from comfy_core.request.spellings import as_number
from comfy_core.validation import Faults, path_of, shown

Graph: TypeAlias = dict[str, Any]
"""A graph in ComfyUI's API format: node id to `{"class_type", "inputs", "_meta"}`."""

EDITOR_FORMAT = (
    f"is in ComfyUI's editor format, which cannot be run. Export it with {EXPORT_MENU}; in much older versions it is "
    '"Save (API Format)", after enabling Dev mode in the settings. Then send that file\'s content. Or convert it with '
    "`comfy-client workflows init FILE`"
)
GRAPH_AS_TEXT = "is text that is not JSON; send the graph itself, as a JSON object"

EDITOR_NODES = frozenset({"Note", "MarkdownNote", "Reroute", "PrimitiveNode", "SetNode", "GetNode"})
"""Class types that exist only in ComfyUI's editor."""
_GROUP_NODE = re.compile(r"workflow[/>]|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", re.IGNORECASE)
"""Class types of group nodes and subgraphs. An API export replaces them with their contents."""
_SEED_INPUTS = {
    "KSampler": "seed",
    "KSamplerAdvanced": "noise_seed",
    "SamplerCustom": "noise_seed",
    "RandomNoise": "noise_seed",
}
"""ComfyUI's own samplers and noise nodes, and the input that is their seed."""
_OUTPUT_NODE = re.compile(
    r"(?!load)(.*(save|preview|export|write|upload|output|send|show|display|view))", re.IGNORECASE
)
"""Class types that are probably output nodes. ComfyUI runs output nodes and their dependencies."""


def is_link(value: object) -> bool:
    """Return whether an input's value is a link, `[node id, output index]`."""
    match value:
        case [str(), int()]:
            return True
    return False


def is_node(node: object) -> bool:
    """Return whether `node` is an object with a class type and inputs."""
    match node:
        case {"class_type": str(), "inputs": dict()}:
            return True
    return False


def has_only_nodes(graph: object) -> bool:
    """Return whether `graph` is an object whose entries are all nodes, so that their inputs can be accessed."""
    return isinstance(graph, dict) and all(is_node(node) for node in graph.values())


def title_of(node: JsonObject) -> str:
    """Return a node's title in the editor, or its class type if it has no title."""
    match node:
        case {"_meta": {"title": str(title)}}:
            return title
    return str(node["class_type"])


def graph_faults(graph: object) -> list[Fault]:
    """Return the reasons why `graph` is not a complete graph in API format, at most MAX_FAULTS.

    Paths start with `workflow`.
    """
    match graph:
        case {"nodes": list()}:
            return [Fault("workflow", EDITOR_FORMAT)]
        case str():
            return [Fault("workflow", GRAPH_AS_TEXT)]
        case dict() if graph:
            found = (fault for node_id, node in graph.items() for fault in _node_faults(node_id, node, graph))
            return list(islice(found, MAX_FAULTS))
    return [Fault("workflow", "must be an object of nodes and hold at least one")]


def _node_faults(node_id: str, node: Any, graph: Graph) -> Iterator[Fault]:  # noqa: ANN401 - any JSON value
    path = ["workflow", node_id]
    match node:
        case {"class_type": str(class_type), "inputs": dict(inputs)}:
            if message := _editor_only_problem(class_type):
                yield Fault(path_of(path), message)
            for name, value in inputs.items():
                if is_link(value) and value[0] not in graph:
                    message = f"links to node {shown(value[0])}, which is not in the graph"
                    yield Fault(path_of([*path, "inputs", name]), message)
        case {"inputs": dict(inputs)} if "class_type" not in node and ("_meta" in node or "UNKNOWN" in inputs):
            named = shown(title_of({"class_type": node_id, **node}))
            message = (
                f"has no class_type: the custom node {named} was not installed in the ComfyUI that exported the graph. "
                "Install it there, and export the graph again"
            )
            yield Fault(path_of(path), message)
        case _:
            yield Fault(path_of(path), "must be a node: an object with class_type and inputs")


def _editor_only_problem(class_type: str) -> str:
    """Return why a node of this class cannot be run, or an empty string."""
    if class_type in EDITOR_NODES or _GROUP_NODE.match(class_type):
        return (
            f"is a {shown(class_type)}, which exists only in ComfyUI's editor and cannot be run. {EXPORT_MENU} leaves "
            "such nodes out"
        )
    return ""


def normalise_links(graph: Graph) -> None:
    """Normalise every link of `graph` to `["1", 0]`, and unwrap values such as `{"__value__": 5}`.

    Other spellings of a link are `[1, 0]`, `["1", "0"]` and `["1", 0.0]`. ComfyUI reads every list of two items as a
    link, so such a list counts as a link if it starts with a node id.
    """
    for node in graph.values():
        inputs = node["inputs"]
        for name, value in inputs.items():
            match value:
                case {"__value__": str() | int() | float() as wrapped}:
                    inputs[name] = wrapped
                case [str() | int() | float() as node_id, int() | float() | str() as slot] if not is_link(value):
                    link = [_integer_text(node_id), _integer_text(slot)]
                    if link[0] in graph and link[1].isdecimal() and len(link[1]) < 4:  # noqa: PLR2004 - a slot is small
                        inputs[name] = [link[0], int(link[1])]


def _integer_text(value: str | float) -> str:
    """Return a number as text, without `.0`."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def replace_random_seeds(graph: Graph, random_seed: Callable[[], int]) -> list[str]:
    """Replace each seed of -1 in a core node, which would reject it, with a random seed. Return a warning for each."""
    warnings = []
    for node_id, node in graph.items():
        name = _SEED_INPUTS.get(node["class_type"], "")
        if as_number(node["inputs"].get(name)) == -1:
            node["inputs"][name] = random_seed()
            warnings.append(
                f"{path_of(['workflow', node_id, 'inputs', name])}: was -1; {node['inputs'][name]} was drawn"
            )
    return warnings


def remove_unneeded(graph: Graph, faults: Faults) -> None:
    """Remove from `graph` the nodes that cannot be run, with a warning for each fault.

    If an output needs a node that cannot be run, nothing is removed, and the node's faults are added to `faults`.

    ComfyUI runs output nodes and their dependencies. Here, without /object_info, output nodes are those whose class
    name suggests it or that have a `filename_prefix`, and all other valid nodes that no node links to.
    """
    faults_of = {node_id: list(_node_faults(node_id, node, graph)) for node_id, node in graph.items()}
    broken = {node_id for node_id, found in faults_of.items() if found}
    if not broken:
        return
    links = {
        node_id: {value[0] for value in node["inputs"].values() if is_link(value)} for node_id, node in graph.items()
    }
    dependents: dict[str, set[str]] = {node_id: set() for node_id in graph}
    for node_id, sources in links.items():
        for source in sources & graph.keys():
            dependents[source].add(node_id)
    unrunnable = _closure(broken, dependents)
    outputs = {node_id for node_id, node in graph.items() if _is_output(node)}
    needed_outputs = outputs | {node_id for node_id in graph if not dependents[node_id] and node_id not in unrunnable}
    needed = _closure(needed_outputs, links) if needed_outputs else set(graph)
    if broken & needed:
        faults.extend(fault for node_id in graph if node_id in needed for fault in faults_of[node_id])
        return
    for node_id in unrunnable - needed:
        del graph[node_id]
    found = [fault for node_faults in faults_of.values() for fault in node_faults]
    faults.warnings += [
        f"{fault.path}: {fault.message}; no output needs it, so it was left out" for fault in found[:MAX_FAULTS]
    ]


def _is_output(node: JsonObject) -> bool:
    class_type = node["class_type"]
    looks_like_output = "filename_prefix" in node["inputs"] or _OUTPUT_NODE.match(class_type)
    return bool(looks_like_output) and not _editor_only_problem(class_type)


def _closure(start: Iterable[str], edges: dict[str, set[str]]) -> set[str]:
    """Return the nodes of `start` and all nodes reachable from them over `edges`."""
    reached: set[str] = set()
    pending = list(start)
    while pending:
        node_id = pending.pop()
        if node_id not in reached and node_id in edges:
            reached.add(node_id)
            pending += edges[node_id]
    return reached
