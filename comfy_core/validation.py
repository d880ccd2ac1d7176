"""Validates a JSON value against a JSON Schema and returns all faults, each with its path and the remedy.

Validation is done by jsonschema. This module adds messages that never contain long values, a suggestion for each
unknown name, defaults, and checks for values that JSON Schema accepts but other software does not: NaN and infinity,
numbers too large for a double, text that cannot be encoded, deep nesting.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jsonschema
from referencing import Registry
from referencing.exceptions import Unresolvable

from comfy_core.contract import MAX_FAULTS, Fault, JsonObject
from comfy_core.errors import invalid_input

MAX_DEPTH = 32
"""Maximum nesting of a request. A graph with its links needs five levels."""

_SHOWN_CHARACTERS = 60
_MAX_CANDIDATES = 200
"""Maximum number of known names that an unknown name is compared with; a graph can have thousands of nodes."""

_INVALID_TEXT = re.compile("[\\0\\ud800-\\udfff]")
"""Matches NUL, and halves of surrogate pairs."""

_TYPE_NAMES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


class Faults:
    """Collects the faults of a request, at most one for each path, and the warnings for its result."""

    def __init__(self) -> None:
        self._found: dict[str, Fault] = {}
        self.warnings: list[str] = []

    def __contains__(self, path: str) -> bool:
        return path in self._found

    def __len__(self) -> int:
        return len(self._found)

    @property
    def is_full(self) -> bool:
        """Whether an error report has no room for more faults."""
        return len(self._found) >= MAX_FAULTS

    def add(self, path: str, message: str) -> None:
        """Add a fault, unless `path` already has one."""
        self._found.setdefault(path, Fault(path, message))

    def extend(self, faults: Iterable[Fault]) -> None:
        """Add several faults."""
        for fault in faults:
            self._found.setdefault(fault.path, fault)

    def listed(self) -> list[Fault]:
        """Return the faults in the order in which they were added, at most MAX_FAULTS."""
        return list(itertools.islice(self._found.values(), MAX_FAULTS))

    def raise_if_any(self) -> None:
        """Raise JobError (invalid_input) with all faults, if there are any."""
        if self._found:
            raise invalid_input(self.listed())


def path_of(parts: Iterable[str | int]) -> str:
    """Return the path as text: `loras[0].strength`, `overrides["KSampler.seed"]`."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[\w-]{1,60}", part):
            text += f".{part}" if text else part
        else:
            text += f"[{shown(part)}]"
    return text


def shown(value: object) -> str:
    """Return `value` for an error message: as JSON of at most 60 characters, or as `an object` or `a list`."""
    match value:
        case dict():
            return "an object"
        case list():
            return "a list"
        case str():
            text = json.dumps(value[:_SHOWN_CHARACTERS] + "x" * (len(value) > _SHOWN_CHARACTERS))
        case int() | float() | bool() | None:
            text = json.dumps(value)
        case _:
            text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean "steps"?` with the known name closest to `name`, or an empty string if none is close.

    The comparison ignores case. Only the first _MAX_CANDIDATES known names are compared.
    """
    candidates = {each.lower(): each for each in reversed([*itertools.islice(known, _MAX_CANDIDATES)])}
    close = difflib.get_close_matches(name[:48].lower(), candidates, n=1)
    return f"; did you mean {shown(candidates[close[0]])}?" if close else ""


class Suggestions:
    """Suggests the closest known name, but only for the first few unknown names, because each search takes time."""

    def __init__(self, max_searches: int = 3) -> None:
        self._searches_left = max_searches

    def nearest(self, name: str, known: Iterable[str]) -> str:
        """Return the result of the function `nearest`, or an empty string after the maximum number of searches."""
        if self._searches_left == 0:
            return ""
        self._searches_left -= 1
        return nearest(name, known)


def plain(value: object, faults: Faults) -> Any:  # noqa: ANN401 - any JSON value
    """Return a copy of `value` that every JSON encoder accepts. Add a fault for each value replaced by None.

    Replaced are NaN and infinity, integers too large for a double (other decoders read them as infinity), text that is
    not valid Unicode or contains NUL, and values nested deeper than MAX_DEPTH. A key that is not valid text is
    changed, which is also a fault.
    """
    return _plain(value, [], faults)


def _plain(value: object, path: list[str | int], faults: Faults) -> object:
    problem = ""
    match value:
        case int() | float() if not abs(value) <= sys.float_info.max:
            problem = "must be a finite number"
        case str() if not _is_text(value):
            problem = "must be Unicode text without NUL characters"
        case dict() | list() if len(path) >= MAX_DEPTH:
            problem = f"is nested deeper than {MAX_DEPTH} levels"
        case dict():
            keys = [_key(key) for key in value]
            for key, given in zip(keys, value, strict=True):
                if key != given:
                    faults.add(path_of([*path, key]), "has a name that is not Unicode text without NUL characters")
            items = zip(keys, value.values(), strict=True)
            return {key: _plain(item, [*path, key], faults) for key, item in items}
        case list():
            return [_plain(item, [*path, index], faults) for index, item in enumerate(value)]
        case _:
            return value
    faults.add(path_of(path), problem)
    return None


def _is_text(value: str) -> bool:
    return not _INVALID_TEXT.search(value)


def _key(key: object) -> str:
    text = str(key)
    return text if _is_text(text) else text.encode("utf-8", "replace").decode().replace("\0", "?")


def schema_faults(value: object, schema: JsonObject) -> list[Fault]:
    """Return the faults of `value` against `schema` (2020-12), at most one for each path.

    Validation stops after MAX_FAULTS faults. References to other files or servers are not followed.
    """
    found = Faults()
    suggestions = Suggestions()
    try:
        for error in jsonschema.Draft202012Validator(schema, registry=Registry()).iter_errors(value):
            found.extend(_faults_of(error, schema, suggestions))
            if found.is_full:
                break
    except (Unresolvable, RecursionError):
        found.add("", "cannot be validated: a reference of the schema ($ref) does not exist in it, or forms a circle")
    return found.listed()


def _faults_of(error: jsonschema.ValidationError, schema: JsonObject, suggestions: Suggestions) -> Iterator[Fault]:
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
                yield Fault(path_of([*path, name]), f"is not known{suggestions.nearest(name, known)}")
        case _:
            yield Fault(path_of(path), _sentence(error))


def _type_name(kinds: Any) -> str:  # noqa: ANN401 - one type of JSON Schema, or a list of them
    return " or ".join(_TYPE_NAMES[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _sentence(error: jsonschema.ValidationError) -> str:  # noqa: C901, PLR0911 - one return a rule
    limit: Any = error.validator_value
    instance: Any = error.instance
    match error.validator:
        case "type":
            absent = "; leave the key out instead" if instance is None else ""
            return f"must be {_type_name(limit)}, not {shown(instance)}{absent}"
        case "minimum" | "maximum":
            word = "at least" if error.validator == "minimum" else "at most"
            return f"must be {word} {limit}, not {shown(instance)}"
        case "exclusiveMinimum" | "exclusiveMaximum":
            word = "above" if error.validator == "exclusiveMinimum" else "below"
            return f"must be {word} {limit}, not {shown(instance)}"
        case "multipleOf" if abs(instance) < 2**53:
            return f"must be a multiple of {limit}; the nearest is {max(1, round(instance / limit)) * limit}"
        case "enum":
            known = ", ".join(shown(item) for item in limit)
            close = nearest(instance, map(str, limit)) if isinstance(instance, str) else ""
            return f"must be one of {known}, not {shown(instance)}{close}"
        case "minLength" | "minItems" if limit == 1:
            return "must not be empty"
        case "minLength" | "minItems":
            return f"has {len(instance):,} {_unit(error)}; at least {limit:,} are needed"
        case "maxLength" | "maxItems":
            return f"has {len(instance):,} {_unit(error)}; at most {limit:,} are allowed"
        case "pattern" if limit == r"\S":
            return "must not be blank"
        case "pattern":
            return f"must match the pattern {shown(limit)}, and {shown(instance)} does not"
    return f"breaks the rule {error.validator}: {shown(limit)}"


def _unit(error: jsonschema.ValidationError) -> str:
    return "characters" if str(error.validator).endswith("Length") else "items"


def filled(value: JsonObject, schema: JsonObject) -> JsonObject:
    """Return the valid `value` with the schema's defaults added, and integers as int (JSON's 20.0 becomes 20).

    List items that are null are removed.
    """
    properties: JsonObject = schema["properties"]
    result: JsonObject = {}
    for name, rule in properties.items():
        if name in value:
            result[name] = _filled_item(value[name], rule)
        elif isinstance(rule, dict) and "default" in rule:  # a schema may also be true or false
            result[name] = copy.deepcopy(rule["default"])
    return result


def _filled_item(item: Any, rule: JsonObject) -> Any:  # noqa: ANN401 - any JSON value
    match rule:
        case {"type": "integer"}:
            return int(item)
        case {"type": "array", "items": {"type": "object", "properties": _} as each}:
            return [filled(element, each) for element in item if element is not None]
        case {"type": "object", "properties": _}:
            return filled(item, rule)
    return item
