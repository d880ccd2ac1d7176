"""Validation of a value against a schema: each fault once, with its path and a message without long values."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from comfy_core.contract import Fault
from comfy_core.validation import MAX_DEPTH, Faults, filled, nearest, path_of, plain, schema_faults, shown

LONG_TEXT = "x" * 10_000


def nested(levels: int) -> Any:  # noqa: ANN401 - a JSON value
    """Return `levels` nested lists."""
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("parts", "path"),
    [
        ([], ""),
        (["steps"], "steps"),
        (["loras", 0, "strength"], "loras[0].strength"),
        (["workflow", "12", "inputs", "text"], "workflow.12.inputs.text"),
        (["overrides", "KSampler.seed"], 'overrides["KSampler.seed"]'),
        (["größe", "a-b"], "größe.a-b"),
        ([0], "[0]"),
        ([""], '[""]'),
        (["a\nb"], r'["a\nb"]'),
        (["y" * 65], f'["{"y" * 56}...]'),
    ],
)
def test_paths_are_readable(parts: list[str | int], path: str) -> None:
    """A path has dots between names, brackets around numbers, and quotes around unusual names."""
    assert path_of(parts) == path


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", '"a"'),
        (1.5, "1.5"),
        (True, "true"),
        (None, "null"),
        ([1], "a list"),
        ({"a": 1}, "an object"),
        ("\ud800\0", r'"\ud800\u0000"'),
        (LONG_TEXT, f'"{"x" * 56}...'),
        ("x" * 58, f'"{"x" * 58}"'),
    ],
)
def test_a_quoted_value_is_short(value: object, text: str) -> None:
    """A message quotes a value as JSON of at most 60 ASCII characters."""
    assert shown(value) == text
    assert len(text) <= 60


def test_the_nearest_name_is_suggested() -> None:
    """The name that is similar is suggested; for a dissimilar or a very long name there is no suggestion."""
    assert nearest("stesp", ["steps", "seed"]) == '; did you mean "steps"?'
    assert nearest("banana", ["steps", "seed"]) == ""
    assert nearest(LONG_TEXT * 100, ["steps", "seed"]) == ""


def test_a_valid_value_is_copied() -> None:
    """JSON is returned unchanged in new lists and objects, down to the deepest allowed level."""
    value = {"a": [1, 2.5, "x", None, True, {"b": []}], "n": 10**300, "deep": nested(MAX_DEPTH - 1)}

    faults = Faults()
    copied = plain(value, faults)

    assert (copied, faults.listed()) == (value, [])
    assert copied is not value
    assert copied["a"] is not value["a"]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (math.nan, "must be a finite number"),
        (math.inf, "must be a finite number"),
        (-math.inf, "must be a finite number"),
        (10**309, "must be a finite number"),
        (-(10**5000), "must be a finite number"),
        ("a\ud800b", "must be Unicode text without NUL characters"),
        ("a\0b", "must be Unicode text without NUL characters"),
        (nested(MAX_DEPTH), "is nested deeper than 32 levels"),
        (nested(500), "is nested deeper than 32 levels"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_cannot_be_encoded_is_a_fault(value: object, problem: str) -> None:
    """A value that JSON cannot represent, or that is nested too deeply, is a fault, and None in the copy."""
    faults = Faults()
    copied = plain({"ok": 1, "bad": value}, faults)
    [fault] = faults.listed()

    assert fault.message == problem
    assert fault.path.startswith("bad")
    assert copied["ok"] == 1
    json.dumps(copied, allow_nan=False).encode("utf-8")


def test_a_name_that_cannot_be_encoded_is_a_fault() -> None:
    """A key with half a surrogate pair or a NUL is a fault; several such keys of an object are one fault."""
    faults = Faults()
    copied = plain({"a": {chr(0xD800): 1, chr(0xD801): 2, "\0": 3}, "é": 4}, faults)

    assert faults.listed() == [Fault('a["?"]', "has a name that is not Unicode text without NUL characters")]
    json.dumps(copied).encode("utf-8")


OBJECT_SCHEMA = {
    "type": "object",
    "required": ["prompt"],
    "additionalProperties": False,
    "properties": {
        "prompt": {"type": "string", "minLength": 1, "maxLength": 10, "pattern": r"\S"},
        "code": {"type": "string", "minLength": 3, "pattern": "^[a-z]+$"},
        "steps": {"type": "integer", "minimum": 1, "maximum": 100},
        "width": {"type": "integer", "multipleOf": 16},
        "strength": {"type": "number", "exclusiveMinimum": 0},
        "half": {"type": "number", "multipleOf": 0.5},
        "flag": {"type": ["boolean", "null"]},
        "format": {"enum": ["png", "webp"]},
        "loras": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "object", "required": ["name"]}},
        "empty": {"type": "object", "additionalProperties": False},
    },
}


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ({"prompt": 5}, "prompt", "must be text, not 5"),
        ({"prompt": None}, "prompt", "must be text, not null; leave the key out instead"),
        ({"prompt": ""}, "prompt", "must not be empty"),
        ({"prompt": " \n"}, "prompt", "must not be blank"),
        ({"prompt": LONG_TEXT}, "prompt", "has 10,000 characters; at most 10 are allowed"),
        ({"code": "ab"}, "code", "has 2 characters; at least 3 are needed"),
        ({"code": "abc!"}, "code", 'must match the pattern "^[a-z]+$", and "abc!" does not'),
        ({"steps": True}, "steps", "must be a whole number, not true"),
        ({"steps": "20"}, "steps", 'must be a whole number, not "20"'),
        ({"steps": 20.5}, "steps", "must be a whole number, not 20.5"),
        ({"steps": 0}, "steps", "must be at least 1, not 0"),
        ({"steps": 101}, "steps", "must be at most 100, not 101"),
        ({"width": 1000}, "width", "must be a multiple of 16; the nearest is 992"),
        ({"width": 1}, "width", "must be a multiple of 16; the nearest is 16"),
        ({"width": 10**300 + 1}, "width", "breaks the rule multipleOf: 16"),
        ({"half": 1.2}, "half", "must be a multiple of 0.5; the nearest is 1.0"),
        ({"strength": 0}, "strength", "must be above 0, not 0"),
        ({"flag": "yes"}, "flag", 'must be true or false or null, not "yes"'),
        ({"format": "wepb"}, "format", 'must be one of "png", "webp", not "wepb"; did you mean "webp"?'),
        ({"format": [LONG_TEXT]}, "format", 'must be one of "png", "webp", not a list'),
        ({"loras": []}, "loras", "must not be empty"),
        ({"loras": [{"name": 1}] * 3}, "loras", "has 3 items; at most 2 are allowed"),
        ({"loras": [{"name": 1}, "a"]}, "loras[1]", 'must be an object, not "a"'),
        ({"loras": [{}]}, "loras[0].name", "is missing"),
        ({"stepz": 1}, "stepz", 'is not known; did you mean "steps"?'),
        ({"empty": {"a": 1}}, "empty.a", "is not known"),
    ],
)
def test_each_fault_has_its_path_and_message(change: dict[str, Any], path: str, message: str) -> None:
    """A broken rule is one fault, with the path of the value and a message that states the rule."""
    assert schema_faults({"prompt": "x", **change}, OBJECT_SCHEMA) == [Fault(path, message)]


def test_all_faults_are_reported_once() -> None:
    """A value that breaks two rules is one fault, and the faults of all other values are reported too."""
    faults = schema_faults({"steps": -0.5, "width": "x", "aa": 1, "bb": 2}, OBJECT_SCHEMA)

    assert [fault.path for fault in faults] == ["prompt", "aa", "bb", "steps", "width"]


def test_a_condition_has_a_reason() -> None:
    """A requirement that depends on another input is reported with the schema's own description."""
    schema = {
        "if": {"required": ["a"]},
        "then": {"required": ["b"], "description": "a does nothing alone", "properties": {"b": {"minimum": 1}}},
    }

    assert schema_faults({"a": 1}, schema) == [Fault("b", "is missing: a does nothing alone")]
    assert schema_faults({"a": 1, "b": 0}, schema) == [Fault("b", "must be at least 1, not 0")]
    assert schema_faults({}, schema) == []


def test_defaults_are_filled_in() -> None:
    """A valid value gets copies of the defaults, and a whole number of type integer becomes an int, also in lists."""
    default: list[int] = []
    schema = {
        "properties": {
            "steps": {"type": "integer", "default": 20},
            "width": {"type": "integer"},
            "seed": {"type": "integer"},
            "guidance": {"type": "number"},
            "tags": {"type": "array", "default": default},
            "words": {"type": "array", "items": {"type": "string"}},
            "loras": {
                "type": "array",
                "items": {"type": "object", "properties": {"name": {}, "rank": {"type": "integer", "default": 4}}},
            },
        }
    }

    value = filled({"width": 64.0, "guidance": 2.0, "words": ["a"], "loras": [{"name": "b"}, {"rank": 8.0}]}, schema)

    assert value == {
        "steps": 20,
        "width": 64,
        "guidance": 2.0,
        "tags": [],
        "words": ["a"],
        "loras": [{"name": "b", "rank": 4}, {"rank": 8}],
    }
    assert isinstance(value["width"], int)
    assert value["tags"] is not default
