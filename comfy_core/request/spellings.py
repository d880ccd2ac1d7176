"""Normalises alternative spellings of values: `"64"`, `"PNG"`, `"jpg"`, null for absent, a LoRA as its name. Pure.

A value is only changed if its JSON Schema allows exactly one meaning. Any other value stays unchanged, and is rejected
by validation if it is not valid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from comfy_core.contract import JsonObject

_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?")
_BOOLEANS = {"true": True, "false": False}
_FORMATS = {"jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg"}


def respelled(value: Mapping[str, Any], rules: Mapping[str, JsonObject]) -> JsonObject:
    """Return `value` without nulls, with each entry normalised for its JSON Schema in `rules`, if there is one."""
    return {
        name: respelled_item(item, rules[name]) if name in rules else item
        for name, item in value.items()
        if item is not None
    }


def respelled_item(item: Any, rule: JsonObject) -> Any:  # noqa: ANN401, PLR0911 - any JSON value; one return a rule
    """Return `item` normalised for the JSON Schema `rule`, or unchanged if it is not a spelling of a valid value."""
    match rule, item:
        case {"type": "integer" | "number"}, str() if _NUMBER.fullmatch(item.strip()):
            return _number(item.strip())
        case {"type": "boolean"}, str() if item.strip().lower() in _BOOLEANS:
            return _BOOLEANS[item.strip().lower()]
        case {"enum": list(choices)}, str():
            return _choice(item, choices)
        case {"type": "array", "items": {"properties": {"name": _} as keys}}, str() if item.strip():
            return [_lora_object(item, keys)]
        case {"type": "array", "items": {"properties": dict(keys)}}, list():
            return [_element(each, keys) for each in item]
        case {"type": "object", "properties": dict(keys)}, dict():
            return respelled(item, keys)
    return item


def as_number(value: object) -> float | None:
    """Return `value` as a number, even if it is given as text; None if it is not a number."""
    if isinstance(value, str):
        return _number(value.strip()) if _NUMBER.fullmatch(value.strip()) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _number(text: str) -> float:
    return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else float(text)


def _choice(text: str, choices: list[Any]) -> Any:  # noqa: ANN401 - any JSON value
    """Return the choice that `text` means (in any case, or as a file extension or MIME type), else `text`."""
    word = text.strip().lower().removeprefix("image/").removeprefix(".")
    known = {str(choice).lower(): choice for choice in choices}
    return known.get(_FORMATS.get(word, word), text)


def _element(item: Any, keys: JsonObject) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(item, dict):
        return respelled(item, keys)
    return _lora_object(item, keys) if isinstance(item, str) and item.strip() and "name" in keys else item


def _lora_object(text: str, keys: JsonObject) -> JsonObject:
    """Return the object for a LoRA given as text: `pixel.safetensors`, or `pixel.safetensors:0.8` with a strength.

    The number in `civitai:123` is not a strength.
    """
    name, colon, strength = text.strip().rpartition(":")
    has_strength = bool(colon and name) and name.strip().lower() != "civitai"
    if has_strength and "strength" in keys and _NUMBER.fullmatch(strength.strip()):
        return {"name": name.strip(), "strength": _number(strength.strip())}
    return {"name": text.strip()}
