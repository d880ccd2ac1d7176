"""Reads the parts of a request that are about model files by address: `model_tokens`, and LoRAs that are objects. Pure.

A token is a secret, so no fault contains a value or a key of `model_tokens`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from comfy_core.contract import JsonObject
from comfy_core.request.model_address import OBJECT_KEYS, address_text, is_address, parse_address
from comfy_core.validation import Faults, path_of

MAX_TOKENS = 16
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z]{2,63}", re.ASCII)
_TOKEN = re.compile(r"[!-~]{1,2048}")
_TOKENS_FORM = 'must be an object of hosts and their tokens, like {"huggingface.co": "hf_…", "civitai.com": "…"}'


def read_tokens(value: object, faults: Faults) -> dict[str, str]:
    """Return `model_tokens`, the token for each host. Add a fault without any part of `value` if it is not valid."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_TOKENS:
        faults.add("model_tokens", _TOKENS_FORM)
        return {}
    given = {str(host).strip().lower(): token for host, token in value.items() if token is not None}
    if not all(map(_HOST.fullmatch, given)):
        faults.add("model_tokens", f"has a key that is not a host such as huggingface.co; it {_TOKENS_FORM}")
    if not all(isinstance(token, str) and _TOKEN.fullmatch(token) for token in given.values()):
        faults.add("model_tokens", "has a token that is not one word of ASCII characters")
    return {} if "model_tokens" in faults else given


def with_address_names(value: JsonObject, rules: Mapping[str, JsonObject], faults: Faults) -> JsonObject:
    """Return `value` with each list item that is an address, such as `{"civitai": 123}`, as an item with a `name`.

    Only inputs that are lists of named files, such as `loras`, are changed. Add faults for invalid addresses.
    """
    return {name: _named_items(name, item, rules.get(name, {}), faults) for name, item in value.items()}


def _named_items(input_name: str, items: Any, rule: JsonObject, faults: Faults) -> Any:  # noqa: ANN401 - any JSON value
    match rule, items:
        case {"x-insert": _, "items": {"properties": {"name": _}}}, list():
            return named_loras(items, faults, [input_name])
    return items


def named_loras(items: list[Any], faults: Faults, path: Sequence[str | int] = ("loras",)) -> list[Any]:
    """Return the `items` at `path`, those that are addresses with a `name`. Add faults for invalid addresses."""
    return [_named(item, [*path, number], faults) for number, item in enumerate(items)]


def _named(item: Any, path: list[str | int], faults: Faults) -> Any:  # noqa: ANN401 - any JSON value
    if not isinstance(item, dict):
        return item
    named = {key: value for key, value in item.items() if key not in {*OBJECT_KEYS, "sha256"}}
    is_object_address = any(item.get(key) is not None for key in OBJECT_KEYS)
    if not is_object_address and item.get("sha256") is None and not is_address(item.get("name")):
        return item if named.keys() == item.keys() else named
    try:
        named["name"] = address_text(item)
        parse_address(named["name"])
    except ValueError as error:
        faults.add(path_of([*path, "name"] if is_address(item.get("name")) else path), str(error))
        named["name"] = "invalid"
    return named
