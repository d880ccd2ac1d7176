"""Environment variables: parsers, defaults and errors. docs/configure.md has every variable that the source reads."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from comfy_client.gateway.scenario.settings import ShimSettings
from comfy_core.environment import (
    Parse,
    Variable,
    base_url,
    choice,
    names,
    number,
    optional,
    positive,
    read,
    switch,
    table,
    variable,
    variables_of,
)
from comfy_core.errors import ConfigError
from tools.docs.__main__ import VARIABLE_TABLES
from worker.settings import Settings

ROOT = Path(__file__).parent.parent.parent
SOURCES = ("comfy_core", "comfy_client", "worker", "simulators", "bench", "scripts", "tools")
UNDECLARED = {
    ("tools/demo.py", "COMFYUI_URL"),
    ("worker/snapshot/__main__.py", "PATH"),
    ("bench/gpu/machine.py", "CUDA_VISIBLE_DEVICES"),
    ("comfy_client/cli/main.py", "COMP_LINE"),
}
"""Files that read a variable without a declaration.

The worker declares COMFYUI_URL, the operating system sets PATH, CUDA_VISIBLE_DEVICES is NVIDIA's, and a shell sets
COMP_LINE for completion.
"""
ENVIRONMENT = re.compile(r"(os\.)?_?env(iron(ment)?)?|.*\._?environment")
"""Expressions whose value is an environment."""


@dataclass(frozen=True)
class Group:
    """Two variables, and a field that is not a variable."""

    port: int = variable("PORT", number(int, 1, 9), "Port of the API.", "8")
    key: str = variable("KEY", str, "Key of the API.", secret=True)
    other: str = "x"


def test_a_variable_that_is_not_set_has_its_default() -> None:
    """An empty value counts as not set; a dataclass without arguments has the same defaults."""
    assert read(Group, {}) == read(Group, {"PORT": "", "KEY": "  "}) == Group() == Group(8, "", "x")


def test_a_group_is_read_from_its_variables() -> None:
    """White space around a value is ignored, other fields are passed as arguments, and the repr has no secret."""
    group = read(Group, {"PORT": " 3\n", "KEY": "s3cret", "other": "ignored"}, other="y")

    assert group == Group(3, "s3cret", "y")
    assert repr(group) == "Group(port=3, other='y')"
    assert [each.name for each in variables_of(Group)] == ["PORT", "KEY"]


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        *((switch, text, True) for text in ("true", "1", "yes", "on", "TRUE", "On")),
        *((switch, text, False) for text in ("false", "0", "no", "off", "False")),
        (number(int, 1), "7", 7),
        (number(float, 0, 1), "0.5", 0.5),
        (positive(1), "0.1", 0.1),
        (choice({"A": 1, "b": 2}), "a", 1),
        (names, "a, b,,", ("a", "b")),
        (optional(number(int, 1)), "", None),
        (base_url, "https://host.example/x/", "https://host.example/x"),
        (table, '{"a": "b"}', {"a": "b"}),
        (table, "", {}),
    ],
)
def test_values_are_parsed(parse: Parse[Any], text: str, value: object) -> None:
    """Each parser returns the value of a valid text."""
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (switch, "maybe", "must be one of true, 1, yes, on, false, 0, no, off"),
        (number(int, 1, 8), "9", "must be a whole number from 1 to 8"),
        (number(int, 1, 8), "1.5", "must be a whole number from 1 to 8"),
        (number(int, 1), "0", "must be a whole number of at least 1"),
        (number(float, 1, 86_400), "nan", "must be a number from 1 to 86400"),
        (positive(1), "0", "must be a number above 0 and below 1"),
        (choice({"A": 1, "b": 2}), "c", "must be one of A, b"),
        (base_url, "host.example", "must be a URL such as https://host.example"),
        (table, '{"a": 1}', "must be a JSON object of non-empty strings"),
    ],
)
def test_an_error_has_the_variable_s_help(parse: Parse[Any], text: str, expected: str) -> None:
    """The error has the variable's name and value, the rule that the value breaks, and the variable's help text."""
    with pytest.raises(ConfigError, match=re.escape(f"NAME={text!r}: {expected}")) as info:
        Variable("NAME", parse, "Help.").read({"NAME": text})

    assert str(info.value).endswith(". Help.")


@pytest.mark.parametrize(
    ("declared", "text"),
    [
        (Variable("NAME", number(int, 1), "Help.", secret=True), "s3cret"),
        (Variable("NAME", base_url, "Help."), "https://user:s3cret@host"),
        (Variable("NAME", base_url, "Help."), "https://host?key=s3cret"),
    ],
)
def test_an_error_shows_no_secret(declared: Variable[Any], text: str) -> None:
    """The error shows neither the value of a secret variable nor a URL that may contain a password."""
    with pytest.raises(ConfigError, match=re.escape("NAME=(not shown)")) as info:
        declared.read({"NAME": text})

    assert "s3cret" not in str(info.value)
    assert info.value.__suppress_context__


@pytest.mark.parametrize("text", ["true", "1", "yes", "on"])
def test_a_switch_accepts_the_same_values_everywhere(text: str) -> None:
    """A switch accepts the same values in the worker and in the shim."""
    assert Settings.from_env({"COMFYUI_URL": "http://gpu:8188", "WORKER_PREVIEWS": text}).previews
    assert ShimSettings.from_env({"SCENARIO_SHIM_STRICT": text}).is_strict


def source_nodes() -> Iterator[tuple[str, ast.AST]]:
    """Yield each syntax node of our source files, after the file's path. scripts/release/ is left out."""
    for path in (ROOT / "handler.py", *(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py"))):
        name = str(path.relative_to(ROOT))
        if not name.startswith("scripts/release/"):
            yield from ((name, node) for node in ast.walk(ast.parse(path.read_text())))


def declared_name(node: ast.AST) -> str | None:
    """Return the name of the variable that a node declares."""
    match node:
        case ast.Call(func=ast.Name("variable" | "Variable"), args=[ast.Constant(str(name)), *_]):
            return name
    return None


def read_name(node: ast.AST) -> str | None:
    """Return the name of the variable that a node reads from an environment without declaring it."""
    match node:
        case ast.Call(
            func=ast.Attribute(holder, "get" | "setdefault"), args=[ast.Constant(str(name)), *_]
        ) | ast.Subscript(holder, ast.Constant(str(name)), ast.Load()) if ENVIRONMENT.fullmatch(ast.unparse(holder)):
            return name
        case ast.Call(func=ast.Attribute(attr="getenv"), args=[ast.Constant(str(name)), *_]):
            return name
    return None


@pytest.mark.slow
def test_every_variable_is_documented() -> None:
    """docs/configure.md has a row for each variable that the source declares or reads, except those of others."""
    page = (ROOT / "docs" / "configure.md").read_text()
    found = {name for _, node in source_nodes() if (name := declared_name(node) or read_name(node))}

    assert {"WORKER_CONCURRENCY", "HF_TOKEN_FILE", "BUCKET_NAME", "RUNPOD_API_KEY", "COLUMNS"} <= found
    assert {name for name in found if f"| `{name}` |" not in page} == {"PATH", "CUDA_VISIBLE_DEVICES", "COMP_LINE"}


@pytest.mark.parametrize("title", VARIABLE_TABLES)
def test_every_variable_has_a_description(title: str) -> None:
    """A table has each variable once, with a help text that ends as a sentence."""
    variables = list(VARIABLE_TABLES[title])

    assert len({each.name for each in variables}) == len(variables)
    assert [each.name for each in variables if not each.help.endswith(".")] == []


@pytest.mark.slow
def test_every_variable_is_declared() -> None:
    """Only the files in UNDECLARED read a variable that is not declared with `comfy_core.environment`."""
    undeclared = {(file, name) for file, node in source_nodes() if (name := read_name(node))}

    assert undeclared == UNDECLARED
