"""A JSON value against a JSON Schema: every fault at once, each with its path and what to do about it.

The rules are jsonschema's. What is ours: sentences that never repeat a long value, the nearest known name beside an
unknown one, and the values that JSON Schema lets through (NaN and infinity, numbers that no double holds, text that
cannot be encoded, endless nesting).
"""

from __future__ import annotations

import copy
import difflib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jsonschema

from comfy_client.contract import Fault, JsonObject

MAX_DEPTH = 32
"""Levels of nesting that a request may have. A graph with its links needs five."""

_TYPE_NAMES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def path_of(parts: Iterable[str | int]) -> str:
    """Return the path as people write it: `loras[0].strength`, `overrides["KSampler.seed"]`."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[\w-]{1,64}", part):
            text += f".{part}" if text else part
        else:
            text += f"[{shown(part)}]"
    return text


def shown(value: object) -> str:
    """Return `value` as JSON of at most 60 characters, fit for an error's sentence."""
    text = json.dumps(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - the number is in the docstring


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean "steps"?` for the known name nearest to `name`, or nothing."""
    close = difflib.get_close_matches(name[:64], list(known), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def plain(value: object) -> tuple[Any, list[Fault]]:
    """Return a copy of `value` that every JSON encoder takes, and the faults for what was left out (None stands there).

    Left out are NaN and infinity (as other decoders read a whole number that no double holds), text that is no Unicode
    or holds a NUL, and what is nested deeper than MAX_DEPTH.
    """
    faults: list[Fault] = []
    copied = _plain(value, [], faults)
    return copied, list({fault.path: fault for fault in faults}.values())


def _plain(value: object, path: list[str | int], faults: list[Fault]) -> object:
    problem = ""
    match value:
        case int() | float() if not abs(value) <= sys.float_info.max:
            problem = "must be a finite number"
        case str() if not _is_text(value):
            problem = "must be Unicode text without NUL characters"
        case dict() | list() if len(path) >= MAX_DEPTH:
            problem = f"is nested deeper than {MAX_DEPTH} levels"
        case dict():
            named = [path_of([*path, _key(key)]) for key in value if _key(key) != key]
            faults += [Fault(name, "has a name that is no Unicode text without NUL characters") for name in named]
            return {_key(key): _plain(item, [*path, _key(key)], faults) for key, item in value.items()}
        case list():
            return [_plain(item, [*path, index], faults) for index, item in enumerate(value)]
        case _:
            return value
    faults.append(Fault(path_of(path), problem))
    return None


def _is_text(value: str) -> bool:
    return "\0" not in value and not re.search("[\ud800-\udfff]", value)


def _key(key: object) -> str:
    return str(key).encode("utf-8", "replace").decode().replace("\0", "?")


def schema_faults(value: object, schema: JsonObject) -> list[Fault]:
    """Return every fault of `value` against `schema` (2020-12), at most one a path, in the order of the schema."""
    found: dict[str, Fault] = {}
    for error in jsonschema.Draft202012Validator(schema).iter_errors(value):
        for fault in _faults_of(error, schema):
            found.setdefault(fault.path, fault)
    return list(found.values())


def _faults_of(error: jsonschema.ValidationError, schema: JsonObject) -> Iterator[Fault]:
    path = list(error.absolute_path)
    rule: Any = error.schema
    instance: Any = error.instance
    match error.validator:
        case "required":
            why = schema.get("then", {}).get("description", "") if "then" in error.absolute_schema_path else ""
            for name in (name for name in rule["required"] if name not in instance):
                yield Fault(path_of([*path, name]), f"is missing{': ' + why if why else ''}")
        case "additionalProperties":
            known = rule.get("properties", {})
            for name in sorted(instance.keys() - known.keys()):
                yield Fault(path_of([*path, name]), f"is not known{nearest(name, known)}")
        case _:
            yield Fault(path_of(path), _sentence(error))


def _sentence(error: jsonschema.ValidationError) -> str:  # noqa: PLR0911 - one return a rule
    limit: Any = error.validator_value
    instance: Any = error.instance
    match error.validator:
        case "type":
            kinds = [limit] if isinstance(limit, str) else limit
            wanted = " or ".join(_TYPE_NAMES[kind] for kind in kinds)
            absent = "; leave the key out instead" if instance is None else ""
            return f"must be {wanted}, not {shown(instance)}{absent}"
        case "minimum" | "maximum":
            word = "at least" if error.validator == "minimum" else "at most"
            return f"must be {word} {limit}, not {shown(instance)}"
        case "exclusiveMinimum":
            return f"must be above {limit}, not {shown(instance)}"
        case "multipleOf" if abs(instance) < 2**53:
            return f"must be a multiple of {limit}; the nearest is {max(1, round(instance / limit)) * limit}"
        case "enum":
            known = ", ".join(shown(item) for item in limit)
            close = nearest(instance, map(str, limit)) if isinstance(instance, str) else ""
            return f"must be one of {known}, not {shown(instance)}{close}"
        case "minLength" | "minItems" if limit == 1:
            return "must not be empty"
        case "maxLength" | "maxItems":
            unit = "characters" if error.validator == "maxLength" else "items"
            return f"has {len(instance):,} {unit}; at most {limit:,} are taken"
        case "pattern" if limit == r"\S":
            return "must not be blank"
    return f"breaks the rule {error.validator}: {shown(limit)}"


def filled(value: JsonObject, schema: JsonObject) -> JsonObject:
    """Return valid `value` with the schema's defaults filled in and whole numbers as ints (JSON's 20.0 is 20)."""
    properties: JsonObject = schema["properties"]
    result: JsonObject = {}
    for name, rule in properties.items():
        if name in value:
            result[name] = _filled_item(value[name], rule)
        elif "default" in rule:
            result[name] = copy.deepcopy(rule["default"])
    return result


def _filled_item(item: Any, rule: JsonObject) -> Any:  # noqa: ANN401 - any JSON value
    match rule:
        case {"type": "integer"}:
            return int(item)
        case {"type": "array", "items": {"type": "object", "properties": _} as each}:
            return [filled(element, each) for element in item]
    return item
