"""Declares and reads environment variables.

Imports only the standard library and small modules of this package, because the health check uses it.

A group of variables is a frozen dataclass with one field for each variable, and `read` returns an instance of it:

    @dataclass(frozen=True)
    class Settings:
        port: int = variable("PORT", number(int, 1, 65535), "Port of the API.", "8000")

A variable that is not part of a group is a `Variable` constant with its own `read`. The value of a variable that is
not set, or empty, is what its parser returns for its default text. docs/configure.md is generated from the variables.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar, cast

from comfy_core.errors import ConfigError
from comfy_core.urls import is_base_url

T = TypeVar("T")
Number = TypeVar("Number", bound=float)
Parse: TypeAlias = Callable[[str], T]
"""Returns the value for a variable's text. Raises ValueError with the required form, without repeating the text."""


@dataclass(frozen=True)
class Variable(Generic[T]):
    """One environment variable."""

    name: str
    parse: Parse[T]
    help: str
    default: str = ""
    secret: bool = False

    def read(self, environment: Mapping[str, str]) -> T:
        """Return the variable's value.

        Raises ConfigError with the variable's name, text, help and default. A text that is secret, or may be a URL with
        a password, is left out.
        """
        text = environment.get(self.name, "").strip() or self.default
        try:
            return self.parse(text)
        except ValueError as error:
            printed_value = "(not shown)" if self.secret or re.search("[@?#]", text) else repr(text[:80])
            default = f" Default: {self.default}" if self.default else ""
            raise ConfigError(f"{self.name}={printed_value}: {error}. {self.help}{default}") from None


def variable(name: str, parse: Parse[T], help: str, default: str = "", *, secret: bool = False) -> T:  # noqa: A002 - argparse has the same name for it
    """Return the dataclass field for a variable. The repr of the dataclass does not contain secrets."""
    declared = Variable(name, parse, help, default, secret)
    field: Any = dataclasses.field(
        default_factory=lambda: parse(default), repr=not secret, metadata={"variable": declared}
    )
    value: T = field
    return value


def variables_of(*groups: type[Any]) -> list[Variable[Any]]:
    """Return the variables that the dataclasses `groups` declare, in the order of their fields."""
    fields = [each for group in groups for each in dataclasses.fields(group)]
    return [each.metadata["variable"] for each in fields if "variable" in each.metadata]


def read(group: type[T], environment: Mapping[str, str], **others: object) -> T:
    """Return an instance of the dataclass `group`. `others` are the values of the fields that are not variables."""
    declared = {each.name: each.metadata.get("variable") for each in dataclasses.fields(cast("Any", group))}
    return group(**{name: each.read(environment) for name, each in declared.items() if each}, **others)


def optional(parse: Parse[T]) -> Parse[T | None]:
    """Return a parser that returns None for a variable that is not set."""
    return lambda text: parse(text) if text else None


def number(kind: type[Number], low: float, high: float = math.inf) -> Parse[Number]:
    """Return a parser of an int or a float from `low` to `high`."""

    def parse(text: str) -> Number:
        with contextlib.suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        limits = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"must be a {'whole ' if kind is int else ''}number {limits}")

    return parse


def positive(below: float) -> Parse[float]:
    """Return a parser of a number above 0 and below `below`."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if 0 < (value := float(text)) < below:
                return value
        raise ValueError(f"must be a number above 0 and below {below:g}")

    return parse


def choice(values: Mapping[str, T]) -> Parse[T]:
    """Return a parser that turns a key of `values`, in any case, into its value."""
    by_name = {name.lower(): value for name, value in values.items()}

    def parse(text: str) -> T:
        if text.lower() not in by_name:
            raise ValueError(f"must be one of {', '.join(values)}")
        return by_name[text.lower()]

    return parse


switch = choice(
    {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
)
"""Parses a boolean: true, 1, yes or on; false, 0, no or off."""


def names(text: str) -> tuple[str, ...]:
    """Return the parts of a list that is separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def folder(text: str) -> Path:
    """Return the absolute path of a folder."""
    return Path(text).absolute()


def base_url(text: str) -> str:
    """Return a base URL without a slash at its end, or an empty text."""
    if text and not is_base_url(text):
        raise ValueError("must be a URL such as https://host.example, without user name, password or query")
    return text.rstrip("/")


def table(text: str) -> dict[str, str]:
    """Return a JSON object whose values are non-empty strings. An empty text gives an empty object."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = None
    if not isinstance(value, dict) or not all(isinstance(each, str) and each for each in value.values()):
        raise ValueError("must be a JSON object of non-empty strings")
    return value
