"""Workflows: a graph as ComfyUI exports it, and the JSON Schema of its inputs; load both, render one with values.

A workflow is two files, `<name>.json` (an untouched "Export (API)") and `<name>.inputs.json`. Beside JSON Schema's own,
the inputs carry these keywords:

- `x-node`: where the value goes: `"KSampler.seed"` (node title, dot, input), a list of such for several places. A
  trailing number, `"Node.sizes.1"`, picks from an input that is a list.
- `x-add`: a number added on the way (`negative_strength` 0 is CFG 1).
- `x-insert`: the value is a list, and each item a new node chained in front of the place: `class_type`, the `link`
  that it takes over, and `inputs`, from the item's keys to the node's.
- `contentMediaType: image/*`: the value is a picture; the node is given its name once it is uploaded.
- `x-task`, `x-models` of the whole: what it is for, and the files that it loads, as `folder/file`.

`seed` and `num_images` are the job's own: picture i of n is a prompt of its own with the seed plus i.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jsonschema

from comfy_client.contract import ALIASES, ENVELOPE, MAX_SEED, ErrorCode, Fault, JsonObject
from comfy_client.errors import ConfigError, JobError
from comfy_client.validation import nearest, path_of, schema_faults, shown

Graph: TypeAlias = dict[str, Any]
"""A graph in ComfyUI's API format: node id to `{"class_type", "inputs", "_meta"}`."""

EDITOR_FORMAT = (
    "is in ComfyUI's editor format, which cannot be run. Export it with Workflow > Export (API) (older versions: "
    '"Save (API Format)", after enabling Dev mode in the settings), and send that file\'s content'
)

GRAPH_AS_TEXT = "is text; send the graph itself, as a JSON object, and not the text of its file"

_KEYWORDS: JsonObject = {
    "type": "object",
    "required": ["properties"],
    "properties": {
        "properties": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {
                    "x-node": {"type": ["string", "array"], "items": {"type": "string"}},
                    "x-add": {"type": "number"},
                    "x-insert": {
                        "type": "object",
                        "required": ["class_type", "link", "inputs"],
                        "properties": {
                            "class_type": {"type": "string"},
                            "link": {"type": "string"},
                            "inputs": {"type": "object", "additionalProperties": {"type": "string"}},
                        },
                    },
                },
            },
        },
        "x-models": {"type": "array", "items": {"type": "string"}},
    },
}
"""JSON Schema of an inputs file's own keywords; the rest of it is JSON Schema's."""


@dataclass(frozen=True)
class Target:
    """One input of one node; `index` picks from an input that is a list."""

    node_id: str
    input: str
    index: int | None = None

    def set(self, graph: Graph, value: object) -> None:
        """Write `value` into `graph` there."""
        inputs = graph[self.node_id]["inputs"]
        if self.index is None:
            inputs[self.input] = value
        else:
            inputs[self.input][self.index] = value

    def get(self, graph: Graph) -> Any:  # noqa: ANN401 - any JSON value
        """Return the value in `graph` there."""
        value = graph[self.node_id]["inputs"][self.input]
        return value if self.index is None else value[self.index]


@dataclass(frozen=True)
class Workflow:
    """A template: its graph, the schema of its inputs, and a version that changes with either."""

    name: str
    graph: Graph
    schema: JsonObject
    version: str

    @property
    def inputs(self) -> JsonObject:
        """The schema of each input by its name."""
        properties: JsonObject = self.schema["properties"]
        return properties

    @property
    def pictures(self) -> tuple[str, ...]:
        """The names of the inputs that are pictures."""
        return tuple(name for name, rule in self.inputs.items() if rule.get("contentMediaType") == "image/*")

    def targets(self, name: str) -> tuple[Target, ...]:
        """Return the places in the graph that the input `name` is bound to."""
        places = self.inputs[name].get("x-node", [])
        return tuple(find_target(self.graph, place) for place in ([places] if isinstance(places, str) else places))


def default_directory() -> Path:
    """Return the folder of the shipped workflows: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    inside = package / "templates"
    return inside if inside.is_dir() else package.parent / "workflows"


def load_workflows(directory: Path) -> dict[str, Workflow]:
    """Return the workflows of a folder by name. Raises ConfigError that names the file at fault."""
    workflows = {path.name.removesuffix(".inputs.json"): path for path in sorted(directory.glob("*.inputs.json"))}
    if not workflows:
        raise ConfigError(f"{directory} holds no workflow: each is <name>.json and <name>.inputs.json")
    return {name: _load(name, directory / f"{name}.json", inputs_file) for name, inputs_file in workflows.items()}


def _load(name: str, graph_file: Path, inputs_file: Path) -> Workflow:
    graph_content, graph = _read_json(graph_file)
    inputs_content, schema = _read_json(inputs_file)
    if faults := graph_faults(graph):
        raise ConfigError(f"{graph_file}: {faults[0].path} {faults[0].message}")
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ConfigError(f"{inputs_file} is not a JSON Schema: {error.message}") from error
    if faults := schema_faults(schema, _KEYWORDS):
        raise ConfigError(f"{inputs_file}: {faults[0].path or 'it'} {faults[0].message}")
    version = hashlib.sha256(graph_content + b"\0" + inputs_content).hexdigest()[:12]
    workflow = Workflow(name, graph, schema, version)
    try:
        for input_name, rule in workflow.inputs.items():
            workflow.targets(input_name)
            _check_rule(input_name, rule)
    except LookupError as error:
        raise ConfigError(f"{inputs_file}: {error.args[0]}") from error
    return workflow


def _read_json(file: Path) -> tuple[bytes, Any]:
    try:
        content = file.read_bytes()
        return content, json.loads(content)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not JSON: {error}") from error


def _check_rule(name: str, rule: JsonObject) -> None:
    """Raise LookupError with a sentence where an input could not be rendered, whatever its value."""
    if name in ENVELOPE:
        raise LookupError(f"input {shown(name)} has the name of a key that every request may carry")
    if name in {"seed", "num_images"} and rule.get("type") != "integer":
        raise LookupError(f"input {shown(name)} must have the type integer")
    if "x-add" in rule and rule.get("type") not in {"integer", "number"}:
        raise LookupError(f"input {shown(name)} has x-add and must have the type integer or number")
    if "default" in rule and (faults := schema_faults(rule["default"], rule)):
        raise LookupError(f"the default of input {shown(name)} {faults[0].message}")
    match rule:
        case {"x-insert": {"inputs": bound}, "type": "array", "items": {"type": "object", "properties": dict(keys)}}:
            if keys.keys() - bound.keys():
                raise LookupError(f"input {shown(name)}: x-insert binds not every key of an item")
        case {"x-insert": _}:
            raise LookupError(f"input {shown(name)} has x-insert and must be a list of objects with properties")


def find_workflow(name: str, workflows: Mapping[str, Workflow]) -> Workflow:
    """Return the workflow of that name or alias. Raises JobError (unknown_workflow)."""
    workflow = workflows.get(ALIASES.get(name, name))
    if workflow is None:
        known = sorted(workflows)
        raise JobError.because(
            ErrorCode.UNKNOWN_WORKFLOW,
            f"There is no workflow {shown(name)}{nearest(name, [*known, *ALIASES]) or '.'} Known: {', '.join(known)}; "
            "or send a whole graph in ComfyUI's API format.",
            known=known,
        )
    return workflow


def graph_faults(graph: object) -> list[Fault]:
    """Return what keeps `graph` from being one in ComfyUI's API format; paths begin at `workflow`."""
    match graph:
        case {"nodes": list()}:
            return [Fault("workflow", EDITOR_FORMAT)]
        case str():
            return [Fault("workflow", GRAPH_AS_TEXT)]
        case dict() if graph:
            return [fault for node_id, node in graph.items() for fault in _node_faults(node_id, node, graph)]
    return [Fault("workflow", "must be an object of nodes and hold at least one")]


def has_nodes(graph: object) -> bool:
    """Return whether `graph` is made of nodes, so that an input of it can be looked for; its links may be broken."""
    return isinstance(graph, dict) and all(_is_node(node) for node in graph.values())


def _is_node(node: object) -> bool:
    match node:
        case {"class_type": str(), "inputs": dict()}:
            return True
    return False


def _node_faults(node_id: str, node: Any, graph: Graph) -> Iterator[Fault]:  # noqa: ANN401 - any JSON value
    if not _is_node(node):
        yield Fault(path_of(["workflow", node_id]), "must be a node: an object with class_type and inputs")
        return
    for name, value in node["inputs"].items():
        if is_link(value) and value[0] not in graph:
            message = f"links to node {shown(value[0])}, which is not in the graph"
            yield Fault(path_of(["workflow", node_id, "inputs", name]), message)


def is_link(value: object) -> bool:
    """Return whether an input's value is a link, `[node id, output index]`, and no value of its own."""
    match value:
        case [str(), int()]:
            return True
    return False


def find_target(graph: Graph, place: str) -> Target:
    """Return the input that `place` names: `title.input` or `id.input`, with `.N` behind it for an item of a list.

    Raises LookupError with a sentence where there is no such node or input, or where two nodes have the title.
    """
    head, dot, last = place.rpartition(".")
    if not dot:
        raise LookupError(f'{shown(place)} names no input; write "Node title.input" or "12.input"')
    if re.fullmatch("[0-9]{1,4}", last) and "." in head:
        target = _find_input(graph, *head.rsplit(".", 1))
        items = graph[target.node_id]["inputs"][target.input]
        if not isinstance(items, list) or is_link(items) or int(last) >= len(items):
            raise LookupError(f"{shown(head)} has no item {last}")
        return Target(target.node_id, target.input, int(last))
    return _find_input(graph, head, last)


def _find_input(graph: Graph, node: str, name: str) -> Target:
    node_id = _find_node(graph, node)
    inputs = graph[node_id]["inputs"]
    if name not in inputs:
        raise LookupError(f"node {shown(node)} has no input {shown(name)}{nearest(name, inputs)}")
    return Target(node_id, name)


def _find_node(graph: Graph, name: str) -> str:
    if name in graph:
        return name
    titles = {node_id: title_of(node) for node_id, node in graph.items()}
    named = [node_id for node_id, title in titles.items() if title == name]
    if not named:
        raise LookupError(f"the graph has no node {shown(name)}{nearest(name, [*graph, *titles.values()])}")
    if len(named) > 1:
        raise LookupError(f"{len(named)} nodes are titled {shown(name)}; use an id: {', '.join(map(shown, named[:8]))}")
    return named[0]


def title_of(node: JsonObject) -> str:
    """Return a node's title on the canvas, or its type where it has none."""
    match node:
        case {"_meta": {"title": str(title)}}:
            return title
    return str(node["class_type"])


def render(workflow: Workflow, values: Mapping[str, Any]) -> list[Graph]:
    """Return the graphs of a job, one a picture: picture i has the seed plus i (after MAX_SEED comes 0).

    `values` are the template's inputs as validated and filled, with `seed`; pictures stand there by name.
    """
    graphs = []
    for number in range(values.get("num_images", 1)):
        graph = copy.deepcopy(workflow.graph)
        for name, value in values.items():
            rule = workflow.inputs[name]
            new = (value + number) % (MAX_SEED + 1) if name == "seed" else value
            for target in workflow.targets(name):
                if "x-insert" in rule:
                    _insert_nodes(graph, target, rule["x-insert"], new)
                else:
                    target.set(graph, new + rule["x-add"] if "x-add" in rule else new)
        graphs.append(graph)
    return graphs


def _insert_nodes(graph: Graph, target: Target, node: JsonObject, items: list[JsonObject]) -> None:
    for item in items:
        node_id = str(max((int(key) for key in graph if key.isdecimal()), default=0) + 1)
        inputs = {node["inputs"][key]: value for key, value in item.items()}
        link = graph[target.node_id]["inputs"][target.input]
        graph[node_id] = {"class_type": node["class_type"], "inputs": {node["link"]: link, **inputs}}
        target.set(graph, [node_id, 0])


def override(graph: Graph, overrides: Mapping[str, Any]) -> None:
    """Write `overrides` (`{"KSampler.seed": 5}`) into `graph`; `override_faults` names those that cannot be."""
    for place, value in overrides.items():
        find_target(graph, place).set(graph, copy.deepcopy(value))


def override_faults(graph: Graph, overrides: Mapping[str, Any]) -> list[Fault]:
    """Return a fault for each override that names no input of `graph`, as those before it leave it."""
    faults = []
    trial = copy.deepcopy(graph) if overrides else graph
    for place, value in overrides.items():
        try:
            override(trial, {place: value})
        except LookupError as error:
            faults.append(Fault(path_of(["overrides", place]), str(error.args[0])))
    return faults
