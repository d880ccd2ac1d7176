"""Checks a template against the node classes and the models of a ComfyUI. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from comfy_client.authoring.input_rules import declaration, declared_rule
from comfy_client.authoring.node_types import NodeTypes
from comfy_client.authoring.proposal import models_of
from comfy_client.authoring.widget_values import CUSTOM_COMBO
from comfy_core.comfyui.file_inputs import FileUse, file_use
from comfy_core.comfyui.graph_checks import check_structure, missing_inputs
from comfy_core.contract import JsonObject
from comfy_core.errors import JobError
from comfy_core.graphs import is_link
from comfy_core.targets import Target
from comfy_core.validation import schema_faults, shown
from comfy_core.workflows import Workflow

_NUMBERS = frozenset({"integer", "number"})


@dataclass(frozen=True)
class Findings:
    """What is wrong with one template, and what could not be checked."""

    faults: tuple[str, ...]
    notes: tuple[str, ...] = ()


def check_workflow(workflow: Workflow, node_types: NodeTypes, models: Collection[str] | None) -> Findings:
    """Return the faults of a template. `models` are the model files that exist, as `folder/file`, or None if unknown.

    The template's own files are valid: `load_workflows` has checked that every input reaches a node.
    """
    known = node_types.entries
    unknown = sorted({node["class_type"] for node in workflow.graph.values()} - known.keys())
    faults = [*_graph_faults(workflow, node_types), *_value_faults(workflow, known)]
    for name, rule in workflow.inputs.items():
        for target in workflow.targets(name):
            node_type = known.get(workflow.graph[target.node_id]["class_type"])
            faults += [f"input {name}: {problem}" for problem in _input_problems(workflow, target, rule, node_type)]
    notes = (
        []
        if node_types.is_complete or not unknown
        else [f"not checked, as {node_types.source} does not have them: {', '.join(unknown)}"]
    )
    notes += _mask_notes(workflow)
    faults += _model_faults(workflow, models)
    if models is None and workflow.schema.get("x-models"):
        notes.append("it was not checked whether its models exist: give --comfyui URL or --models models.txt")
    return Findings(tuple(faults), tuple(notes))


def _graph_faults(workflow: Workflow, node_types: NodeTypes) -> Iterator[str]:
    """Yield the reasons why ComfyUI would refuse the graph: missing classes, bad links, cycles, missing inputs."""
    known = node_types.entries
    graph = {
        node_id: node
        for node_id, node in workflow.graph.items()
        if node_types.is_complete or node["class_type"] in known
    }
    try:
        check_structure(graph, known)
    except JobError as error:
        for each in error.report.details["nodes"]:
            yield f"node {each['node_id']} ({each['node_type']}) {each['problem']}"
    for node_id, node in graph.items():
        for name in missing_inputs(node, known.get(node["class_type"], {})):
            yield f"node {node_id} ({node['class_type']}) has no {name}, which it requires"


def _value_faults(workflow: Workflow, known: Mapping[str, JsonObject]) -> Iterator[str]:
    """Yield a fault for each value of the graph that its node refuses, unless every request replaces the value."""
    required = workflow.schema.get("required", ())
    always_set = [name for name, rule in workflow.inputs.items() if "default" in rule or name in {"seed", *required}]
    bound = {target for name in always_set for target in workflow.targets(name)}
    for node_id, node in workflow.graph.items():
        for name, value in node["inputs"].items():
            if is_link(value) or Target(node_id, name) in bound:
                continue
            rule = _node_rule(node, name, known.get(node["class_type"]))
            for fault in schema_faults(value, rule)[:1]:
                yield f"node {node_id} ({node['class_type']}): {name} {fault.message}"


def _input_problems(
    workflow: Workflow, target: Target, rule: JsonObject, node_type: JsonObject | None
) -> Iterator[str]:
    """Yield what is wrong with one node input that an input of the template sets."""
    node = workflow.graph[target.node_id]
    place = f"{node['class_type']}.{target.input}"
    if "x-insert" in rule:
        return
    if is_link(target.get(workflow.graph)):
        yield f"{place} of node {target.node_id} is connected to another node, which it would replace"
    if node_type is None or target.index is not None:
        return
    if declaration(node, target.input, node_type) is None:
        # The items of a list, such as `images.image0`, and the options of a CustomCombo are not declared one by one.
        if "." not in target.input and node["class_type"] != CUSTOM_COMBO:
            yield f"{place} does not exist in this ComfyUI"
        return
    allowed = _node_rule(node, target.input, node_type)
    if rule.get("contentMediaType"):
        return
    yield from _range_problems(place, rule, allowed)
    values = rule.get("enum") or ([rule["default"]] if "default" in rule else [])
    for value in values:
        sent = value + rule["x-add"] if "x-add" in rule else value
        for fault in schema_faults(sent, allowed)[:1]:
            what = "choice" if "enum" in rule else "default"
            yield f"its {what} {shown(value)} is not valid for {place}: it {fault.message}"


def _range_problems(place: str, rule: JsonObject, allowed: JsonObject) -> Iterator[str]:
    """Yield how the type and the range of an input exceed those of the node."""
    kind, allowed_kind = rule.get("type"), allowed.get("type")
    if allowed_kind and kind and kind != allowed_kind and (kind, allowed_kind) != ("integer", "number"):
        yield f"its type is {kind}, and {place} takes {allowed_kind}"
    if kind not in _NUMBERS or allowed_kind not in _NUMBERS:
        return
    add = rule.get("x-add", 0)
    for limit, sign in (("minimum", 1), ("maximum", -1)):
        bound = allowed.get(limit)
        own = rule.get(limit, rule.get(f"exclusive{limit.capitalize()}"))
        if bound is not None and own is None:
            yield f"it has no {limit}, and that of {place} is {bound}"
        elif bound is not None and sign * (own + add) < sign * bound:
            yield f"its {limit} {own} is beyond that of {place}, {bound - add}"


def _node_rule(node: JsonObject, name: str, node_type: JsonObject | None) -> JsonObject:
    """Return the JSON Schema of the values that a node input accepts. Names of files are not checked here."""
    declared = declaration(node, name, node_type)
    if declared is None or file_use(node["class_type"], name, declared) in {FileUse.LOADS, FileUse.LOADS_FOLDER}:
        return {}
    return declared_rule(node["class_type"], name, declared) or {}


def _mask_notes(workflow: Workflow) -> Iterator[str]:
    """Yield a note for each image whose transparency the graph uses as a mask: images of a template become opaque."""
    masks = {value[0] for node in workflow.graph.values() for value in node["inputs"].values() if _is_mask(value)}
    for name in workflow.image_inputs:
        if name not in workflow.masks and any(target.node_id in masks for target in workflow.targets(name)):
            yield (
                f"input {name}: the graph uses the image's transparent areas as a mask, but the image becomes opaque. "
                "Load the mask with LoadImageMask, as an input with x-mask-of"
            )


def _is_mask(value: object) -> bool:
    """Return whether a value is a link to the second output of a node, which is the mask of LoadImage."""
    return is_link(value) and isinstance(value, list) and value[1] == 1


def _model_faults(workflow: Workflow, models: Collection[str] | None) -> Iterator[str]:
    listed = set(workflow.schema.get("x-models", ()))
    for model in models_of(workflow.graph):
        if model not in listed:
            yield f"its graph loads {model}, which x-models does not list"
    for model in sorted(listed - set(models or ())) if models is not None else ():
        yield f"its model {model} does not exist"
