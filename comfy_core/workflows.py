"""Loads workflow templates (an exported graph and the JSON Schema of its inputs) and renders them with values.

A workflow consists of two files: `<name>.json` (an unmodified "Export (API)") and `<name>.inputs.json`.
docs/workflows.md documents the keywords of an inputs file that JSON Schema does not have.

`seed` and `num_images` apply to the job: image i (from 0) is a separate prompt with the seed plus i.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jsonschema

from comfy_core.contract import ALIASES, ENVELOPE, MAX_SEED, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, JobError
from comfy_core.files import read_json
from comfy_core.graphs import Graph, graph_faults
from comfy_core.targets import Target, TargetFinder
from comfy_core.validation import Faults, nearest, plain, schema_faults, shown

_KEYWORDS_SCHEMA: JsonObject = {
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
                    "x-mask-of": {"type": "string"},
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
        "x-size": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "scale": {"type": "number", "minimum": 0.01, "maximum": 16},
                "max_pixels": {"type": "integer", "minimum": 1, "maximum": 64 * 1024 * 1024},
            },
        },
        "x-name": {"type": "string", "pattern": r"^\w[\w.-]{0,63}$"},
    },
}
"""JSON Schema of the additional keywords in an inputs file."""
_MAX_DIGITS = 18
INPUTS_SUFFIX = ".inputs.json"
_TOP_LEVEL_KEYWORDS = frozenset({"x-task", "x-models", "x-size", "x-name"})
_INPUT_KEYWORDS = frozenset({"x-node", "x-add", "x-insert", "x-mask-of"})
KEYWORDS = _TOP_LEVEL_KEYWORDS | _INPUT_KEYWORDS
"""All keywords that an inputs file may have in addition to those of JSON Schema."""


@dataclass(frozen=True)
class Workflow:
    """A workflow template: its graph, and the schema of its inputs."""

    name: str
    graph: Graph
    schema: JsonObject
    is_inline: bool = False
    """Whether the template is part of a request, so that its graph is the caller's own."""

    @cached_property
    def version(self) -> str:
        """A hash of the graph and the inputs file. Neither their format nor `x-name` changes it."""
        content = [self.graph, {key: value for key, value in self.schema.items() if key != "x-name"}]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def inputs(self) -> JsonObject:
        """The schema of each input, by name."""
        properties: JsonObject = self.schema["properties"]
        return properties

    @property
    def image_inputs(self) -> tuple[str, ...]:
        """The names of the inputs that are images."""
        return tuple(name for name, rule in self.inputs.items() if rule.get("contentMediaType") == "image/*")

    @property
    def masks(self) -> dict[str, str]:
        """The inputs that are masks, each with the image input that it masks."""
        return {name: rule["x-mask-of"] for name, rule in self.inputs.items() if "x-mask-of" in rule}

    @property
    def size(self) -> JsonObject:
        """How the default width and height follow from the image: `x-size`."""
        size: JsonObject = self.schema.get("x-size", {})
        return size

    def targets(self, name: str) -> tuple[Target, ...]:
        """Return the node inputs that the input `name` is bound to."""
        places = self.inputs[name].get("x-node", [])
        return tuple(self._finder.target(place) for place in ([places] if isinstance(places, str) else places))

    @cached_property
    def _finder(self) -> TargetFinder:
        return TargetFinder(self.graph)


def default_directory() -> Path:
    """Return the folder of the bundled workflows: inside the wheel, or next to the package in a checkout."""
    package = Path(__file__).parent
    bundled = package / "templates"
    return bundled if bundled.is_dir() else package.parent / "workflows"


def load_workflows(directory: Path) -> dict[str, Workflow]:
    """Return the workflows in a folder, by name. Raises ConfigError with the name of an invalid file."""
    names = template_names(directory)
    if not names:
        raise ConfigError(f"{directory} contains no workflow: each consists of <name>.json and <name>.inputs.json")
    return {name: load_workflow(directory, name) for name in names}


def template_names(directory: Path) -> list[str]:
    """Return the names of the workflows in a folder, which may be invalid."""
    return sorted(path.name.removesuffix(INPUTS_SUFFIX) for path in directory.glob(f"*{INPUTS_SUFFIX}"))


def load_workflow(directory: Path, name: str) -> Workflow:
    """Return one workflow in a folder. Raises ConfigError with the name of the invalid file."""
    graph_file, inputs_file = directory / f"{name}.json", directory / f"{name}{INPUTS_SUFFIX}"
    graph, schema = _read_plain_json(graph_file), _read_plain_json(inputs_file)
    if faults := graph_faults(graph):
        raise ConfigError(f"{graph_file}: {faults[0].path} {faults[0].message}")
    try:
        return make_workflow(name, graph, schema)
    except LookupError as error:
        raise ConfigError(f"{inputs_file}: {error.args[0]}") from error


def _read_plain_json(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    """Return the content of a file that every JSON encoder accepts. Raises ConfigError."""
    faults = Faults()
    content = plain(read_json(path), faults)
    if listed := faults.listed():
        raise ConfigError(f"{path}: {listed[0].path or 'it'} {listed[0].message}")
    return content


def make_workflow(name: str, graph: Graph, schema: Any, *, is_inline: bool = False) -> Workflow:  # noqa: ANN401 - any JSON value
    """Return the workflow of a valid graph and the content of its inputs file.

    Raises LookupError, with a message for the user, if the schema is not usable for a template.
    """
    try:
        validator = jsonschema.Draft202012Validator
        validator.check_schema(schema, format_checker=validator.FORMAT_CHECKER)  # it checks regular expressions
    except jsonschema.SchemaError as error:
        raise LookupError(f"it is not a JSON Schema: {error.message}") from error
    if faults := schema_faults(schema, _KEYWORDS_SCHEMA):
        raise LookupError(f"{faults[0].path or 'it'} {faults[0].message}")
    workflow = Workflow(name, graph, schema, is_inline)
    _check_keywords(schema, _TOP_LEVEL_KEYWORDS, "it")
    for input_name, rule in workflow.inputs.items():
        _check_keywords(rule, _INPUT_KEYWORDS, f"input {shown(input_name)}")
        _check_rule(input_name, rule)
        _check_is_bound(workflow, input_name, rule)
    _check_images(workflow)
    return workflow


def _check_keywords(rule: JsonObject, known: frozenset[str], subject: str) -> None:
    """Raise LookupError, with a message for the user, for an unknown `x-` keyword."""
    for keyword in rule:
        if keyword.lower().startswith("x-") and keyword not in known:
            raise LookupError(f"{subject} has the unknown keyword {shown(keyword)}{nearest(keyword, known)}")


def _check_is_bound(workflow: Workflow, name: str, rule: JsonObject) -> None:
    """Raise LookupError, with a message for the user, for an input that is not bound to a node."""
    if not workflow.targets(name) and name != "num_images":
        raise LookupError(f"input {shown(name)} reaches no node: {_unbound_reason(rule)}")


def _check_images(workflow: Workflow) -> None:
    """Raise LookupError, with a message for the user, for `x-mask-of` or `x-size` without the inputs that it needs."""
    images = workflow.image_inputs
    for mask, image in workflow.masks.items():
        if mask not in images or image not in images or image in workflow.masks:
            raise LookupError(
                f"input {shown(mask)} has x-mask-of {shown(image)}: both must be images (contentMediaType image/*)"
            )
    if workflow.size and not (images and {"width", "height"} <= workflow.inputs.keys()):
        raise LookupError("it has x-size, but not the inputs width and height and an image (contentMediaType image/*)")


def _unbound_reason(rule: JsonObject) -> str:
    """Return the reason why an input is not bound to a node."""
    if "x-node" in rule:
        return "its x-node is an empty list"
    for keyword in rule:
        if near := nearest(keyword, ["x-node"]):
            return f"it has {shown(keyword)}{near}"
    return 'it has no x-node, such as "x-node": "KSampler.seed"'


def _check_rule(name: str, rule: JsonObject) -> None:
    """Raise LookupError, with a message for the user, if the schema of an input is not usable for a template."""
    if name in ENVELOPE:
        raise LookupError(f"input {shown(name)} has the same name as a key of every request; rename it")
    if name in {"seed", "num_images"} and rule.get("type") != "integer":
        raise LookupError(f"input {shown(name)} must have the type integer")
    if name == "num_images" and rule.get("minimum", 0) < 1:
        raise LookupError(f"input {shown(name)} must have a minimum of at least 1")
    if "x-add" in rule and rule.get("type") not in {"integer", "number"}:
        raise LookupError(f"input {shown(name)} has x-add and must have the type integer or number")
    if "default" in rule and (faults := schema_faults(rule["default"], rule)):
        raise LookupError(f"the default of input {shown(name)} {faults[0].message}")
    match rule:
        case {"x-insert": {"inputs": bound}, "type": "array", "items": {"type": "object", "properties": dict(keys)}}:
            if keys.keys() - bound.keys():
                raise LookupError(f"input {shown(name)}: x-insert does not bind every key of an item")
        case {"x-insert": _}:
            raise LookupError(f"input {shown(name)} has x-insert and must be a list of objects with properties")


def find_workflow(name: str, workflows: Mapping[str, Workflow]) -> Workflow:
    """Return the workflow with this name or alias. Raises JobError (unknown_workflow)."""
    workflow = workflows.get(ALIASES.get(name, name))
    if workflow is None:
        known = sorted(workflows)
        raise JobError.because(
            ErrorCode.UNKNOWN_WORKFLOW,
            f"There is no workflow {shown(name)}{nearest(name, [*known, *ALIASES]) or '.'} Known: {', '.join(known)}",
            known=known,
        )
    return workflow


def render(workflow: Workflow, values: Mapping[str, Any]) -> list[Graph]:
    """Return the graphs of a job, one for each image. Image i (from 0) has the seed plus i, and 0 follows MAX_SEED.

    `values` are the template's validated inputs with defaults, including `seed`. An image, if given, is a file name.
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
    # Longer ids are left out: no sequence reaches them, and Python does not convert numbers of more than 4,300 digits.
    first_id = max((int(key) for key in graph if key.isdecimal() and len(key) < _MAX_DIGITS), default=0) + 1
    for node_id, item in zip(map(str, itertools.count(first_id)), items, strict=False):
        inputs = {node["inputs"][key]: value for key, value in item.items()}
        link = graph[target.node_id]["inputs"][target.input]
        graph[node_id] = {"class_type": node["class_type"], "inputs": {node["link"]: link, **inputs}}
        target.set(graph, [node_id, 0])
