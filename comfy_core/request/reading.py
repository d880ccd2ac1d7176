"""Parses and validates a job's `input` (untrusted JSON) into a Request that can be rendered. No I/O.

`read_request` reports all faults of a request at once. Unambiguous variants are accepted: null for an absent key,
numbers as text, and everything that worker-comfyui accepts next to a graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from comfy_core.contract import ENVELOPE, MAX_FAULTS, Fault, JsonObject
from comfy_core.errors import invalid_input
from comfy_core.graphs import graph_faults, has_only_nodes, normalise_links, remove_unneeded
from comfy_core.request.encoded import bare_url, decode_base64, is_https
from comfy_core.request.foreign_keys import advice
from comfy_core.request.graph_files import FileSource, graph_files
from comfy_core.request.inline_template import inline_template
from comfy_core.request.model_keys import read_tokens, with_address_names
from comfy_core.request.models_task import is_models_task
from comfy_core.request.prompt_syntax import graph_warnings, syntax_warnings
from comfy_core.request.rendering import Request
from comfy_core.request.spellings import as_number, respelled
from comfy_core.request.template_overrides import read_overrides
from comfy_core.request.webhook import Webhook, webhook_faults
from comfy_core.request.wrappers import parsed, split_graph_request, unwrapped, with_parsed_graph
from comfy_core.targets import override
from comfy_core.validation import Faults, Suggestions, filled, path_of, plain, schema_faults
from comfy_core.workflows import Workflow, find_workflow

_GRAPH_KEYS = {name: ENVELOPE[name] for name in ENVELOPE if name != "workflow"}
_TEMPLATE_KEYS = {name: ENVELOPE[name] for name in ENVELOPE if name != "images"}
_MAX_WARNINGS = 20


def read_request(raw: object, workflows: Mapping[str, Workflow]) -> Request:
    """Return the valid request in `raw`, the parsed `input` of a job.

    JSON text is also accepted, as by worker-comfyui. A graph under another key, as some ComfyUI clients send it, is
    read with a warning.

    Raises JobError: invalid_input with all faults, or unknown_workflow.
    """
    faults = Faults()
    value = plain(with_parsed_graph(parsed(raw) if isinstance(raw, str) else raw), faults)
    if not isinstance(value, dict):
        raise invalid_input([Fault("", 'must be a JSON object, like {"prompt": "a pixel art knight"}')])
    if is_models_task(value):
        raise invalid_input([Fault("task", "models is a job that only this project's worker on RunPod runs")])
    value = unwrapped({name: item for name, item in value.items() if item is not None}, faults.warnings)
    tokens = read_tokens(value.pop("model_tokens", None), faults)
    default = "img2img" if "image" in faults else default_workflow(value)
    workflow = value.get("workflow", default)
    if isinstance(workflow, dict) or (isinstance(workflow, str) and workflow.lstrip()[:1] == "{"):
        if "inputs_schema" not in value:
            return replace(_read_graph(value, faults), model_tokens=tokens)
        graph, schema = value.pop("workflow"), value.pop("inputs_schema")
        inline = inline_template(graph, schema, value, faults)
        return replace(_read_template(value, inline, faults), model_tokens=tokens)
    # A `workflow` of any other type breaks the template's schema, and is reported with the other faults.
    template = find_workflow(workflow if isinstance(workflow, str) else default, workflows)
    return replace(_read_template(value, template, faults), model_tokens=tokens)


def default_workflow(request: JsonObject) -> str:
    """Return the workflow of a request that names none."""
    return "img2img" if request.get("image") is not None else "txt2img"


def _read_template(value: JsonObject, template: Workflow, faults: Faults) -> Request:
    rules = {**_TEMPLATE_KEYS, **template.inputs}
    if "images" in value:
        faults.add("images", "is only valid with a graph; a template takes `image`")
    _check_names(value.keys() - rules.keys() - {"images"}, rules, faults)
    value = with_address_names(respelled(value, rules), rules, faults)
    if "seed" in template.inputs and as_number(value.get("seed")) == -1:
        del value["seed"]
    _check_schema(value, {**template.schema, "properties": rules}, faults)
    files = _template_files(template, value, faults)
    wanted = _without_nulls(value.get("overrides"))
    overrides = read_overrides(template, wanted, value.get("num_images", 1), faults)
    faults.raise_if_any()
    values = filled(value, {"properties": rules})
    inputs = {name: values[name] for name in template.inputs if name in values and name not in template.image_inputs}
    if len(overrides) < len(wanted):  # an override of the seed was -1, which requests a random seed
        inputs.pop("seed", None)
    for name, text in inputs.items():
        if "prompt" in name and isinstance(text, str):
            faults.warnings += syntax_warnings(name, text)
    return Request(
        template=template,
        graph=template.graph,
        inputs=inputs,
        files=files,
        overrides={place: value for place, (_, value) in overrides.items()},
        override_targets={place: target for place, (target, _) in overrides.items()},
        warnings=tuple(faults.warnings),
        **_common_arguments(values),
    )


def _check_names(names: Iterable[str], rules: Mapping[str, JsonObject], faults: Faults) -> None:
    suggestions = Suggestions()
    for name in sorted(names)[:MAX_FAULTS]:
        faults.add(path_of([name]), advice(name, rules) or f"is not known{suggestions.nearest(name, rules)}")


def _check_schema(value: JsonObject, schema: JsonObject, faults: Faults) -> None:
    """Validate `value`. Null list items count as absent. Items of a list that is too long are skipped."""
    null_paths: set[str] = set()
    for name, items in value.items():
        limit = schema["properties"].get(name, {}).get("maxItems")
        if isinstance(items, list) and limit is not None and len(items) > limit:
            faults.add(path_of([name]), f"has {len(items):,} items; at most {limit:,} are allowed")
            value = {**value, name: []}
        elif isinstance(items, list):
            null_paths |= {path_of([name, number]) for number, item in enumerate(items) if item is None}
    if "webhook" in value:
        faults.extend(webhook_faults(value["webhook"]))
    faults.extend(fault for fault in schema_faults(value, schema) if fault.path not in null_paths)


def _template_files(template: Workflow, value: JsonObject, faults: Faults) -> dict[str, FileSource]:
    """Return the image for each image input of the template, by the input's name."""
    sources = {}
    for name in template.image_inputs:
        text = value.get(name)
        if isinstance(text, str) and text:
            try:
                sources[name] = FileSource(name, bare_url(text) if is_https(text) else decode_base64(text))
            except ValueError as error:
                faults.add(name, str(error))
    return sources


def _without_nulls(overrides: object) -> JsonObject:
    """Return overrides without nulls; empty if `overrides` is not an object."""
    given = overrides.items() if isinstance(overrides, dict) else ()
    return {place: value for place, value in given if value is not None}


def _read_graph(value: JsonObject, faults: Faults) -> Request:
    graph = value["workflow"]
    key_warnings: list[str] = []
    value, extra_data = split_graph_request(value, key_warnings)
    value = respelled(value, _GRAPH_KEYS)
    _check_schema(value, {"properties": {"workflow": {}, **_GRAPH_KEYS}}, faults)
    files: dict[str, FileSource] = {}
    overrides = _without_nulls(value.get("overrides"))
    if graph and has_only_nodes(graph):
        written = override(graph, overrides, faults)
        normalise_links(graph)
        remove_unneeded(graph, faults)
        files = graph_files(graph, value.get("images"), written, faults)
        faults.warnings += graph_warnings(graph)
        overrides = {
            place: target.get(graph) if path_of(["overrides", place]) in files else overrides[place]
            for place, target in written.items()
            if target.node_id in graph
        }
    else:
        faults.extend(graph_faults(graph))
    faults.raise_if_any()
    warnings = [*faults.warnings, *key_warnings]
    if len(warnings) > _MAX_WARNINGS:
        warnings = [*warnings[:_MAX_WARNINGS], f"and {len(warnings) - _MAX_WARNINGS:,} more warnings"]
    return Request(
        template=None,
        graph=graph,
        inputs={},
        files=files,
        overrides=overrides,
        warnings=tuple(warnings),
        extra_data=extra_data,
        **_common_arguments(filled(value, {"properties": _GRAPH_KEYS})),
    )


def _common_arguments(values: JsonObject) -> JsonObject:
    """Return the arguments of Request that a template and a graph have in common."""
    names = ("output_format", "output_quality", "metadata", "ai_mark", "delivery", "timeout_s")
    return {**{name: values.get(name) for name in names}, "webhook": Webhook.of(values.get("webhook"))}
