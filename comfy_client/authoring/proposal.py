"""Proposes the inputs of a template for a graph: their names, and the node inputs that each sets. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from comfy_client.authoring.input_rules import SEEDS, input_rule
from comfy_core.comfyui.model_inputs import model_folder
from comfy_core.contract import ENVELOPE, JsonObject
from comfy_core.errors import ConfigError
from comfy_core.graphs import Graph, is_link, title_of
from comfy_core.targets import Target, TargetFinder
from comfy_core.validation import nearest, schema_faults, shown

_NAMES = {
    "seed": "seed",
    "noise_seed": "seed",
    "steps": "steps",
    "cfg": "cfg",
    "guidance": "guidance",
    "width": "width",
    "height": "height",
    "sampler_name": "sampler",
    "scheduler": "scheduler",
    "denoise": "strength",
}
"""The name of a template's input for an input of a node. Other inputs keep their own name."""
_TEXT_CLASSES = re.compile(r"text|prompt|string", re.IGNORECASE)
_TEXT_INPUTS = re.compile(r"text|prompt|string|value|clip_[lg]|t5xxl|llama", re.IGNORECASE)
_PROMPT_INPUTS = frozenset({"text", "prompt", "positive", "negative"})
_SIZE_CLASSES = re.compile(r"latent|size|flux|resolution|scale", re.IGNORECASE)
_NUM_IMAGES: JsonObject = {
    "description": "Number of images. Image i uses seed + i.",
    "type": "integer",
    "minimum": 1,
    "maximum": 8,
    "default": 1,
}
_MODEL_FILE = re.compile(r".+\.(safetensors|sft|ckpt|pt|pth|bin|gguf|onnx)", re.IGNORECASE)


@dataclass(frozen=True)
class ProposedInput:
    """One input of a template, and the node inputs that it sets, as `x-node` names them.

    `is_usual` is set for the inputs that most workflows have: a prompt, a seed, an image.
    """

    name: str
    places: tuple[str, ...]
    rule: JsonObject
    is_usual: bool

    @property
    def schema(self) -> JsonObject:
        """The input's JSON Schema, with `x-node`."""
        return {**self.rule, "x-node": self.places[0] if len(self.places) == 1 else list(self.places)}


def proposed_inputs(graph: Graph, node_types: Mapping[str, JsonObject]) -> list[ProposedInput]:
    """Return an input for each node input of `graph` that has a value of its own, the usual ones first.

    Node inputs with the same meaning and the same value become one input, such as the two widths of a Flux workflow.
    """
    merged: dict[tuple[str, str], ProposedInput] = {}
    has_image = False
    for found in _found(graph, node_types):
        key = (found.name, repr(_value(graph, found.places[0]))) if found.is_usual else (found.places[0], "")
        has_image = has_image or "contentMediaType" in found.rule
        before = merged.get(key)
        merged[key] = found if before is None else _joined(before, found)
    inputs = [
        each if each.name != "strength" or has_image else replace(each, is_usual=False) for each in merged.values()
    ]
    return sorted(_uniquely_named(inputs, graph), key=lambda each: not each.is_usual)


def selected_inputs(graph: Graph, proposed: Sequence[ProposedInput], wanted: Sequence[str]) -> list[ProposedInput]:
    """Return the inputs that `wanted` names: by their proposed name, or by node and input as in `KSampler.seed`.

    `NAME=KSampler.seed` also sets the name. Raises ConfigError for an input that does not exist.
    """
    finder = TargetFinder(graph)
    by_name = {each.name: each for each in proposed}
    by_target = {finder.target(place): each for each in proposed for place in each.places}
    chosen: dict[str, ProposedInput] = {}
    for text in wanted:
        own_name, _, place = text.rpartition("=")
        found = by_name.get(place)
        if found is None:
            target = _target(graph, finder, place, by_name)
            if target not in by_target:
                raise ConfigError(f"--expose {text}: this input is connected to another node, or loads no image")
            found = by_target[target]
            if len(found.places) > 1 and own_name:
                found = replace(found, places=(place,))
        named = replace(found, name=own_name or found.name)
        chosen[named.name] = named
    return list(chosen.values())


def inputs_schema(graph: Graph, title: str, inputs: Sequence[ProposedInput]) -> JsonObject:
    """Return the content of the inputs file."""
    names = {each.name for each in inputs}
    has_image = any("contentMediaType" in each.rule for each in inputs)
    properties = {each.name: each.schema for each in inputs}
    if "seed" in names:
        properties["num_images"] = _NUM_IMAGES
    task = {"x-task": "img2img" if has_image else "txt2img"} if "prompt" in names else {}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **task,
        "x-models": models_of(graph),
        "type": "object",
        "required": [each.name for each in inputs if each.name == "prompt" or "contentMediaType" in each.rule],
        "properties": properties,
    }


def models_of(graph: Graph) -> list[str]:
    """Return the model files that the nodes of a graph load, as `folder/file`, if the folder is known."""
    found = {
        f"{folder}/{value}".replace("\\", "/")
        for node in graph.values()
        for name, value in node["inputs"].items()
        if isinstance(value, str)
        and _MODEL_FILE.fullmatch(value)
        and (folder := model_folder(node["class_type"], name))
    }
    return sorted(found)


def _found(graph: Graph, node_types: Mapping[str, JsonObject]) -> Iterator[ProposedInput]:
    """Yield an input for each node input that a template can set."""
    titles = [title_of(node) for node in graph.values()]
    finder = TargetFinder(graph)
    for node_id, node in graph.items():
        title, class_type = title_of(node), node["class_type"]
        for name, value in node["inputs"].items():
            if is_link(value) or isinstance(value, list | dict):
                continue
            rule = input_rule(node, name, node_types.get(class_type))
            if rule is None:
                continue
            place = f"{title if titles.count(title) == 1 else node_id}.{name}"
            if not _names(finder, place, Target(node_id, name)):
                place = f"{node_id}.{name}"
            meaning = _meaning(graph, node_id, name, rule)
            yield ProposedInput(meaning or name, (place,), rule, is_usual=bool(meaning))


def _names(finder: TargetFinder, place: str, target: Target) -> bool:
    try:
        return finder.target(place) == target
    except LookupError:
        return False


def _meaning(graph: Graph, node_id: str, name: str, rule: JsonObject) -> str:
    """Return the usual name of an input, or an empty string for an input that is not usual."""
    class_type = graph[node_id]["class_type"]
    if "contentMediaType" in rule:
        return "mask" if "mask" in class_type.lower() else "image"
    if rule.get("type") == "string" and _is_prompt(class_type, name, graph[node_id]["inputs"][name]):
        direct = {"positive": "prompt", "negative": "negative_prompt"}.get(name)
        return direct or _text_role(graph, node_id)
    if name in {"width", "height"} and not _SIZE_CLASSES.search(class_type):
        return ""
    if name == "cfg" and graph[node_id]["inputs"][name] == 1:
        return ""  # Guidance-distilled models run at 1; another value doubles the time.
    return "" if name in SEEDS and rule.get("type") != "integer" else _NAMES.get(name, "")


def _is_prompt(class_type: str, name: str, value: object) -> bool:
    """Return whether the text of an input is for the model, judging by the names, and not the name of a model file."""
    is_text = _TEXT_CLASSES.search(class_type) and _TEXT_INPUTS.search(name)
    return bool(is_text or name in _PROMPT_INPUTS) and not _MODEL_FILE.fullmatch(str(value))


def _text_role(graph: Graph, node_id: str) -> str:
    """Return `prompt` or `negative_prompt`, depending on the input of a sampler that the text reaches, or nothing."""
    consumers: dict[str, list[tuple[str, str]]] = {}
    for each_id, node in graph.items():
        for name, value in node["inputs"].items():
            if is_link(value):
                consumers.setdefault(value[0], []).append((each_id, name))
    seen, pending = {node_id}, [node_id]
    reaches_any = False
    while pending:
        for each_id, name in consumers.get(pending.pop(0), ()):
            if name in {"positive", "negative"}:
                return "prompt" if name == "positive" else "negative_prompt"
            reaches_any = reaches_any or name in {"conditioning", "guider", "text"}
            if each_id not in seen:
                seen.add(each_id)
                pending.append(each_id)
    return "prompt" if reaches_any else ""


def _joined(first: ProposedInput, second: ProposedInput) -> ProposedInput:
    """Return one input that sets the node inputs of both. Its range is what both allow."""
    rule = {**second.rule, **first.rule}
    for limit, choose in (("minimum", max), ("maximum", min)):
        given = [each.rule[limit] for each in (first, second) if limit in each.rule]
        rule |= {limit: choose(given)} if given else {}
    return replace(first, places=(*first.places, *second.places), rule=rule)


def _uniquely_named(inputs: Sequence[ProposedInput], graph: Graph) -> Iterator[ProposedInput]:
    """Yield the inputs with names that differ from each other and from the keys of every request."""
    taken = {*ENVELOPE, "num_images"}
    for each in sorted(inputs, key=lambda proposed: not proposed.is_usual):
        title = each.places[0].rpartition(".")[0]
        own_title = "" if title in graph else re.sub(r"\W+", "_", title.lower()).strip("_")
        name = re.sub(r"\W+", "_", each.name.lower()).strip("_") or "value"
        candidates = [name, *([f"{own_title}_{name}"] if own_title else [])]
        numbered = (f"{name}_{number}" for number in range(2, len(inputs) + 3))
        reserved = taken if each.rule.get("type") == "integer" else {*taken, "seed"}
        chosen = next(word for word in [*candidates, *numbered] if word not in reserved)
        taken.add(chosen)
        yield replace(each, name=chosen, rule=_named_rule(chosen, each.rule, _value(graph, each.places[0])))


def _named_rule(name: str, rule: JsonObject, value: object) -> JsonObject:
    """Return an input's rule. The prompt has no default, so that a request without it is refused.

    Of several seeds only `seed` is random; the others have the graph's value as the default.
    """
    if name == "prompt":
        return {**{key: limit for key, limit in rule.items() if key != "default"}, "minLength": 1}
    is_seed = name != "seed" and rule.get("type") == "integer" and "default" not in rule
    return {**rule, "default": value} if is_seed and not schema_faults(value, rule) else rule


def _value(graph: Graph, place: str) -> object:
    return TargetFinder(graph).target(place).get(graph)


def _target(graph: Graph, finder: TargetFinder, place: str, names: Mapping[str, ProposedInput]) -> Target:
    """Return the node input that `place` names. The node may also be named by its class, if only one node has it."""
    head, _, name = place.rpartition(".")
    ids = [node_id for node_id, node in graph.items() if node["class_type"] == head]
    try:
        return finder.target(place)
    except LookupError as error:
        if len(ids) == 1 and name in graph[ids[0]]["inputs"]:
            return Target(ids[0], name)
        near = nearest(place, names) if "." not in place else ""
        raise ConfigError(f"--expose {shown(place)}: {error.args[0]}{near}") from error
