"""Validates the `overrides` of a template, so that they cannot exceed the limits of its inputs. Pure.

Templates are also available to callers who may not send graphs (WORKER_ALLOW_GRAPHS=false). So these rules apply:

- An override can only change inputs that exist in the template's graph.
- It cannot set inputs that name a file to read. Of the inputs that name a file to write, it can only set
  `filename_prefix`.
- A node input that is bound to an input of the template must satisfy that input's schema. The same applies to a node
  input of the same name in another node, such as the `width` of a second node.
- `batch_size` times `num_images` must not exceed the maximum of `num_images`.
- Any other number must lie between 0 and the graph's own value. Seeds can have any value.
- Text must stay text of at most MAX_OVERRIDE_TEXT characters, a boolean must stay a boolean, and a link must point to
  a node of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_core.comfyui.file_inputs import FileUse, file_use
from comfy_core.contract import JsonObject
from comfy_core.graphs import is_link
from comfy_core.request.spellings import as_number, respelled_item
from comfy_core.targets import Target, TargetFinder
from comfy_core.validation import Faults, path_of, schema_faults, shown
from comfy_core.workflows import Workflow

MAX_OVERRIDE_TEXT = 4096
"""Maximum length of text in an override, in characters."""
_SEEDS = frozenset({"seed", "noise_seed"})
_MAX_COMFYUI_SEED = 2**64 - 1
_LIMIT = "a number that no input of the workflow sets may not exceed the workflow's own"
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def read_overrides(
    template: Workflow, overrides: Mapping[str, Any], num_images: object, faults: Faults
) -> dict[str, tuple[Target, Any]]:
    """Return the input and the normalised value of each override, by key. Add the faults of invalid ones to `faults`.

    A seed of -1 (random) is left out. `num_images` is the request's value; if it is not a number, it counts as 1.
    """
    rules = _Rules(template, num_images)
    finder = TargetFinder(template.graph)
    read: dict[str, tuple[Target, Any]] = {}
    for place, value in overrides.items():
        if faults.is_full:
            break
        path = path_of(["overrides", place])
        try:
            target = finder.target(place)
        except LookupError as error:
            faults.add(path, str(error.args[0]))
            continue
        if target in rules.seeds and as_number(value) == -1:
            continue
        normalised, problem = rules.read(target, value)
        if problem:
            faults.add(path, problem)
        read[place] = target, normalised
    return read


class _Rules:
    """The rules for overrides of one template, derived from the JSON Schemas of its inputs."""

    def __init__(self, template: Workflow, num_images: object) -> None:
        self._graph = template.graph
        self._bound: dict[Target, tuple[str, JsonObject]] = {}
        for name, rule in template.inputs.items():
            if "x-insert" not in rule:
                self._bound |= dict.fromkeys(template.targets(name), (name, _shifted(rule)))
        self._rules_by_name = {
            target.input: rule
            for target, (_, rule) in reversed(self._bound.items())
            if rule.get("type") in {"integer", "number"}
        }
        max_images = template.inputs.get("num_images", {}).get("maximum", 1)
        image_count = as_number(num_images) or 1
        self._rules_by_name["batch_size"] = {
            "type": "integer",
            "minimum": 1,
            "maximum": int(max_images // image_count) if 1 <= image_count <= max_images else max_images,
        }
        self.seeds = frozenset(template.targets("seed") if "seed" in template.inputs else ())

    def read(self, target: Target, value: Any) -> tuple[Any, str]:  # noqa: ANN401 - any JSON value
        """Return the normalised value, and the problem with the value or an empty string."""
        class_type = self._graph[target.node_id]["class_type"]
        use = file_use(class_type, target.input)
        name, rule = self._bound.get(target, ("", None))
        if rule is None and target.index is not None:
            rule = self._bound.get(Target(target.node_id, target.input), ("", {}))[1].get("items")
        if rule is not None and rule.get("contentMediaType"):
            return value, f"names a file; send the image itself as `{name}`"
        if rule is not None:
            return _read_with_schema(rule, value)
        if use in {FileUse.LOADS, FileUse.LOADS_FOLDER}:
            return value, "names a file that the node reads, which overrides of a workflow cannot set"
        if use is FileUse.WRITES and target.input != "filename_prefix":
            return value, "names a file that the node writes, which overrides of a workflow cannot set"
        # The width of a nested input such as `resize_type.width` has the limits of any width.
        return self._read_unbound(target.input.rpartition(".")[2], target.get(self._graph), value)

    def _read_unbound(self, name: str, current: Any, value: Any) -> tuple[Any, str]:  # noqa: ANN401, PLR0911 - a return for each kind
        """Return the same as `read`, for a node input that is not bound to an input of the template."""
        if is_link(current):
            is_valid = is_link(value) and value[0] in self._graph and value[1] >= 0
            return value, "" if is_valid else 'must be a link to a node of the workflow, such as ["4", 0]'
        match current:
            case bool():
                return _read_with_schema({"type": "boolean"}, value)
            case int() | float() if name in self._rules_by_name:
                return _read_with_schema(self._rules_by_name[name], value)
            case int() | float() if name in _SEEDS:
                return _read_with_schema({"type": "integer", "minimum": 0, "maximum": _MAX_COMFYUI_SEED}, value)
            case int() | float():
                limited = {"type": "number", "minimum": min(0, current), "maximum": max(0, current)}
                read, problem = _read_with_schema(limited, value)
                return read, f"{problem}; {_LIMIT}" if problem else ""
            case str():
                return _read_with_schema({"type": "string", "maxLength": MAX_OVERRIDE_TEXT}, value)
            case list() if isinstance(value, list) and len(value) <= len(current):
                read = [self._read_unbound(name, old, new) for old, new in zip(current, value, strict=False)]
                return [each for each, _ in read], next((problem for _, problem in read if problem), "")
        return value, f"must be like {shown(current)}, which the workflow has there, not {shown(value)}"


def _shifted(rule: JsonObject) -> JsonObject:
    """Return a template input's schema, shifted by `x-add` so that it applies to the node input."""
    if "x-add" not in rule:
        return rule
    shifted = {key: limit + rule["x-add"] if key in _BOUNDS else limit for key, limit in rule.items()}
    shifted.pop("multipleOf", None)
    return shifted


def _read_with_schema(rule: JsonObject, value: Any) -> tuple[Any, str]:  # noqa: ANN401 - any JSON value
    read = respelled_item(value, rule)
    if faults := schema_faults(read, rule):
        return read, faults[0].message
    return int(read) if rule.get("type") == "integer" else read, ""
