"""Assigns the `widgets_values` of a node in ComfyUI's editor format to the names of the node's inputs. Pure.

Facts about the editor (ComfyUI_frontend 1.48.7; the conversion of 110 templates of ComfyUI was compared with its own):

- `widgets_values` has one value for each widget, in the order of /object_info: required inputs, then optional ones. An
  input is a widget if its type has literals, unless it has `forceInput`, or if the node has no socket for it.
- After a seed follows the value of its widget `control_after_generate`, which is not an input of the node.
- A choice of a dynamic combo adds its own widgets directly after it. Their names have a dot: `resize_type.width`.
- Custom nodes may write an object of names and values instead of a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from comfy_core.comfyui.file_inputs import dynamic_choices
from comfy_core.contract import JsonObject

_LITERAL_TYPES = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
_DRAWN = frozenset({"LOAD_3D", "WEBCAM", "AUDIO_RECORD"})
"""Types of widgets that are more than a literal. Others of this kind are declared with `socketless`."""
_IMAGE_COMPARE = "IMAGECOMPARE"
_SEEDS = frozenset({"seed", "noise_seed"})
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_BUTTONS = ("upload3dmodel", "uploadExtraResources", "clear")
"""Values of the buttons of Load3D, which are not inputs of the node."""
CUSTOM_COMBO = "CustomCombo"
"""A node whose widgets are a choice, its index, and as many options as the user has entered."""
_CONTROLS = frozenset({"fixed", "increment", "decrement", "randomize"})
"""Values of the widget `control_after_generate`."""


def declared_inputs(node_type: JsonObject) -> Iterator[tuple[str, Any]]:
    """Yield the name and the declaration, `[type, options]`, of each input in /object_info, in the editor's order."""
    groups, order = node_type.get("input", {}), node_type.get("input_order", {})
    for group in ("required", "optional"):
        declared = groups.get(group) or {}
        for name in [*order.get(group, ()), *(name for name in declared if name not in order.get(group, ()))]:
            if name in declared:
                yield name, declared[name]


def widget_values(node: JsonObject, node_type: JsonObject | None) -> JsonObject:
    """Return the values of a node's widgets by the name of their inputs.

    `node_type` is the node's /object_info entry. Without it, the names in the node's own `inputs` are used, which newer
    editors write. Raises LookupError, with a message for the user, if they are missing.
    """
    values = node.get("widgets_values")
    if isinstance(values, dict):
        names = None if node_type is None else {name for name, _ in declared_inputs(node_type)}
        return {name: value for name, value in values.items() if names is None or name in names}
    given = list(values) if isinstance(values, list) else []
    if node["type"].startswith("Load3D"):
        given = [value for value in given if value not in _BUTTONS]
    if node["type"] == CUSTOM_COMBO:
        widgets = ["choice", "index", *(f"option{number}" for number in range(1, len(given)))]
        return dict(zip(widgets, given, strict=False))
    if node_type is None:
        return _by_own_names(node, given)
    sockets = {entry["name"] for entry in node.get("inputs") or () if "widget" not in entry}
    return dict(_assigned(declared_inputs(node_type), given, sockets, ""))


def exported_values(node: JsonObject, values: JsonObject, node_type: JsonObject | None) -> JsonObject:
    """Return a node's values as the editor exports them: prompts without comments, and the index of a CustomCombo."""
    exported = dict(values)
    for name, declaration in declared_inputs(node_type or {}):
        if isinstance(values.get(name), str) and _options(declaration).get("dynamicPrompts"):
            exported[name] = _COMMENT.sub("", values[name])
    if node["type"] == CUSTOM_COMBO:
        options = [value for name, value in values.items() if name.startswith("option")]
        exported["index"] = options.index(values["choice"]) if values.get("choice") in options else 0
    return exported


def _assigned(
    declared: Iterator[tuple[str, Any]], values: list[Any], sockets: set[str], prefix: str
) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each widget, and remove the values from `values`. Missing ones get defaults."""
    for short_name, declaration in declared:
        name = prefix + short_name
        if not _is_widget(name, declaration, sockets):
            continue
        value = values.pop(0) if values else _default(declaration)
        yield name, ["", ""] if declaration[0] == _IMAGE_COMPARE else value
        if _has_control(short_name, declaration) and values and values[0] in _CONTROLS:
            del values[0]
        chosen = dynamic_choices(declaration).get(str(value))
        if chosen is not None:
            yield from _assigned(declared_inputs(chosen), values, sockets, f"{name}.")


def _is_widget(name: str, declaration: Any, sockets: set[str]) -> bool:  # noqa: ANN401 - any JSON value
    kind, options = declaration[0], _options(declaration)
    if options.get("forceInput"):
        return False
    if isinstance(kind, list) or kind in _LITERAL_TYPES or dynamic_choices(declaration):
        return True
    return name not in sockets and (kind in _DRAWN or bool(options.get("socketless")))


def _has_control(name: str, declaration: Any) -> bool:  # noqa: ANN401 - any JSON value
    return bool(_options(declaration).get("control_after_generate", name in _SEEDS))


def _default(declaration: Any) -> object:  # noqa: ANN401 - any JSON value
    options = _options(declaration)
    choices = declaration[0] if isinstance(declaration[0], list) else options.get("options") or [None]
    first = choices[0] if choices else None
    return options.get("default", first["key"] if isinstance(first, Mapping) and "key" in first else first)


def _options(declaration: Any) -> JsonObject:  # noqa: ANN401 - any JSON value
    return declaration[1] if len(declaration) > 1 and isinstance(declaration[1], dict) else {}


def _by_own_names(node: JsonObject, values: list[Any]) -> JsonObject:
    """Return the values by the names of the widgets in the node's own `inputs`."""
    names = [entry["widget"]["name"] for entry in node.get("inputs") or () if "widget" in entry]
    assigned: JsonObject = {}
    for name in names:
        if values:
            assigned[name] = values.pop(0)
            if values and values[0] in _CONTROLS and isinstance(assigned[name], int):
                del values[0]
    if values or len(assigned) < len(names):
        raise LookupError("its class is not known")
    return assigned
