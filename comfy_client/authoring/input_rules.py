"""Derives the JSON Schema of a template's input from a node input's declaration in /object_info and its value. Pure."""

from __future__ import annotations

from typing import Any

from comfy_core.comfyui.file_inputs import FileUse, declared_input, dynamic_choices, file_use
from comfy_core.comfyui.model_inputs import declared_choices, model_folder
from comfy_core.contract import MAX_SEED, JsonObject
from comfy_core.validation import schema_faults

SEEDS = frozenset({"seed", "noise_seed"})
_SIDES = frozenset({"width", "height"})
_MAX_TEXT = 4096
_MAX_NAME = 255
_NUMBERS = {"INT": "integer", "FLOAT": "number"}
_KINDS = {bool: "boolean", int: "integer", float: "number", str: "string"}
"""The types of JSON Schema for values whose node class is not known."""


def declaration(node: JsonObject, name: str, node_type: JsonObject | None) -> Any:  # noqa: ANN401 - any JSON value
    """Return the declaration, `[type, options]`, of an input of a node in API format, or None if it is not known.

    The choice of a dynamic combo of the node declares the inputs whose names begin with the combo's name and a dot.
    """
    if node_type is None:
        return None
    combo, _, nested = name.rpartition(".")
    choices = dynamic_choices(declaration(node, combo, node_type)) if combo else {}
    chosen = choices.get(str(node["inputs"].get(combo)))
    return declared_input(node_type if chosen is None else chosen, name if chosen is None else nested)


def input_rule(node: JsonObject, name: str, node_type: JsonObject | None) -> JsonObject | None:
    """Return the JSON Schema of an input of a node in API format, or None if a template cannot have it as an input.

    `node_type` is the /object_info entry of the node's class. Without it, the type is that of the value, and there is
    no range. The default is the value, except for a seed (random) and an image (required).
    """
    class_type, value = node["class_type"], node["inputs"][name]
    declared = declaration(node, name, node_type)
    if file_use(class_type, name, declared) in {FileUse.LOADS, FileUse.LOADS_FOLDER}:
        return _image() if _is_image(class_type, name, declared) else None
    rule = _typed(class_type, name, declared, value)
    if rule is None:
        return None
    if name in SEEDS and rule.get("type") == "integer":
        limits = {"minimum": max(0, rule.get("minimum", 0)), "maximum": rule.get("maximum", MAX_SEED)}
        return {**_described(declared), **rule, **limits}
    if name in _SIDES:
        rule |= _multiple(declared, value)
    default = {} if schema_faults(value, rule) else {"default": value}
    return {**_described(declared), **rule, **default}


def _image() -> JsonObject:
    return {"type": "string", "minLength": 1, "contentMediaType": "image/*"}


def _is_image(class_type: str, name: str, declared: Any) -> bool:  # noqa: ANN401 - any JSON value
    match declared:
        case [_, {"image_upload": True}, *_]:
            return True
        case [_, {"video_upload": True} | {"audio_upload": True}, *_]:
            return False
    return name == "image" and "image" in class_type.lower()


def declared_rule(class_type: str, name: str, declared: Any) -> JsonObject | None:  # noqa: ANN401 - any JSON value
    """Return the JSON Schema of the values that a node input allows, or None if it needs a link.

    The name of a model is any text, because the files differ from one ComfyUI to another.
    """
    match declared:
        case [_, {"forceInput": True}, *_]:
            return None
        case [("INT" | "FLOAT") as kind, *_]:
            return {"type": _NUMBERS[kind], **_range(declared)}
        case [("BOOLEAN" | "STRING") as kind, *_]:
            return {"type": kind.lower()}
        case [[*choices], *_] | ["COMBO", {"options": [*choices]}, *_]:
            return {"enum": choices} if choices and not _names_models(class_type, name, declared) else _model_name()
    return {"enum": list(keys)} if (keys := dynamic_choices(declared)) else None


def _names_models(class_type: str, name: str, declared: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Return whether an input's choices are the names of model files."""
    if file_use(class_type, name, declared) is not FileUse.LOADS_MODEL:
        return False
    choices = declared_choices(declared) or ()
    return model_folder(class_type, name) is not None or not choices or any("." in choice for choice in choices)


def _model_name() -> JsonObject:
    return {"type": "string", "minLength": 1, "maxLength": _MAX_NAME}


def _typed(class_type: str, name: str, declared: Any, value: Any) -> JsonObject | None:  # noqa: ANN401 - any JSON value
    """Return the JSON Schema of a node input by its declaration, or else by its value."""
    rule = declared_rule(class_type, name, declared)
    if declared is None:
        rule = {"type": _KINDS[type(value)]} if type(value) in _KINDS else None
    if rule == {"type": "string"}:
        return {**rule, "maxLength": max(_MAX_TEXT, len(value) if isinstance(value, str) else 0)}
    return rule


def _range(declared: Any) -> JsonObject:  # noqa: ANN401 - any JSON value
    options = declared[1] if len(declared) > 1 else {}
    limits = {"minimum": options.get("min"), "maximum": options.get("max")}
    kept = {name: limit for name, limit in limits.items() if isinstance(limit, int | float)}
    if declared[0] == "INT" and kept.get("maximum", 0) > MAX_SEED:
        kept["maximum"] = MAX_SEED
    return kept


def _multiple(declared: Any, value: Any) -> JsonObject:  # noqa: ANN401 - any JSON value
    """Return `multipleOf` if the node declares a step that its minimum and the value are multiples of."""
    match declared:
        case ["INT", {"step": int(step), "min": int(low)}, *_] if step > 1 and low % step == value % step == 0:
            return {"multipleOf": step}
    return {}


def _described(declared: Any) -> JsonObject:  # noqa: ANN401 - any JSON value
    match declared:
        case [_, {"tooltip": str(text)}, *_] if text.strip():
            return {"description": " ".join(text.split())}
    return {}
