"""Builds command line flags from the JSON Schema of workflow inputs, and parses flag values. Pure."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from comfy_core.contract import ENVELOPE, ErrorReport, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError

PICTURE = "PATH|URL"
_LAST_PORT = 65535


class UsageError(ComfyClientError):
    """The command line is wrong."""

    exit_status = 2

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorReport(ErrorCode.INVALID_INPUT, message))


@dataclass(frozen=True)
class Flag:
    """One command line argument, for argparse and for the generated documentation."""

    names: tuple[str, ...]
    help: str
    metavar: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Add the argument to a parser, or to a group of its arguments."""
        shown: dict[str, Any] = {"metavar": self.metavar} if self.metavar else {}
        parser.add_argument(*self.names, help=self.help.replace("%", "%%"), **shown, **self.settings)

    @property
    def field(self) -> str:
        """The name of the attribute in which argparse stores the argument's value."""
        return str(self.settings.get("dest", self.names[-1].lstrip("-").replace("-", "_")))

    @property
    def usage(self) -> str:
        """The argument in usage notation: `-o, --output FILE`, `PROMPT`, `[NAME]`."""
        if not self.names[0].startswith("-"):
            name = self.metavar or self.names[0].upper()
            return f"[{name}]" if self.settings.get("nargs") in ("?", "*") else name
        return f"{', '.join(self.names)} {self.metavar}".strip()


def input_flags(inputs: Mapping[str, JsonObject], excluded: tuple[str, ...] = ()) -> list[Flag]:
    """Return a flag for each workflow input, then for each common request field.

    There is no flag for the names in `excluded`, nor for `workflow`, `images`, `overrides`, `model_tokens` (secrets)
    and `webhook`: the flag --webhook is RunPod's own webhook.
    """
    without_flag = {"workflow", "images", "model_tokens", "webhook"}
    rules = {**inputs, **{name: rule for name, rule in ENVELOPE.items() if name not in without_flag}}
    return [_flag(name, rule, rules) for name, rule in rules.items() if name not in {*excluded, "overrides"}]


def _flag(name: str, rule: JsonObject, rules: Collection[str]) -> Flag:  # noqa: PLR0911 - one return per input type
    names = (f"--{name.replace('_', '-')}",)
    settings: dict[str, Any] = {"dest": name, "default": None}
    described = f"{_with_flags(rule.get('description', ''), rules)}{range_of(rule)}"
    match rule:
        case {"contentMediaType": "image/*"}:
            return Flag(names, described, PICTURE, settings)
        case {"enum": list(choices)}:
            return Flag(names, described, "|".join(map(str, choices)), {**settings, "choices": choices})
        case {"type": "integer"}:
            return Flag(names, described, "N", {**settings, "type": parse_whole_number})
        case {"type": "number"}:
            return Flag(names, described, "X", {**settings, "type": parse_number})
        case {"type": "boolean"}:
            return Flag((*names, f"--no-{names[0][2:]}"), described, "", {**settings, "action": OnOff})
        case {"type": "array"}:
            return Flag(names, described, "NAME[:X]", {**settings, "action": "append", "type": _item(rule)})
    return Flag(names, described, "TEXT", settings)


def _with_flags(text: str, rules: Collection[str]) -> str:
    """Return a description with the names of request fields replaced by flag names."""
    return re.sub(r"`(\w+)`", lambda found: f"--{found[1].replace('_', '-')}" if found[1] in rules else found[0], text)


def range_of(rule: JsonObject) -> str:
    """Return an input's range and default in brackets, or an empty string if it has neither."""
    match rule:
        case {"minimum": low, "maximum": high} if high < 2**53:
            parts = [f"{low} to {high}"]
        case {"maxItems": most}:
            parts = [f"at most {most}, one per flag"]
        case _:
            parts = []
    if rule.get("default") not in (None, "", []):
        default = rule["default"]
        parts.append(f"default {str(default).lower() if isinstance(default, bool) else default}")
    return f" [{'; '.join(parts)}]" if parts else ""


def parse_whole_number(text: str) -> int:
    """Parse an integer. Raises argparse.ArgumentTypeError."""
    return _converted(text, int, "a whole number")


def parse_number(text: str) -> float:
    """Parse a number. Raises argparse.ArgumentTypeError."""
    value = _converted(text, float, "a number")
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, not {text!r}")
    return value


_Number = TypeVar("_Number", int, float)


def _converted(text: str, kind: Callable[[str], _Number], name: str) -> _Number:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {name}, not {text!r}") from None


def _within(parse: Callable[[str], _Number], low: float, high: float, what: str) -> Callable[[str], _Number]:
    """Return a parser of numbers from `low` to `high`. It raises argparse.ArgumentTypeError."""

    def parsed(text: str) -> _Number:
        value = parse(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}")
        return value

    return parsed


parse_seconds = _within(parse_number, 0, math.inf, "a number of seconds from 0")
parse_count = _within(parse_whole_number, 1, math.inf, "at least 1")
parse_port = _within(parse_whole_number, 0, _LAST_PORT, f"from 0 to {_LAST_PORT}")


class OnOff(argparse.Action):
    """A `--name` / `--no-name` flag. Unlike argparse.BooleanOptionalAction, it adds no default to the help."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - argparse's
        super().__init__(nargs=0, **settings)

    def __call__(
        self, _parser: object, namespace: argparse.Namespace, _values: object, option_string: str | None = None
    ) -> None:
        """Store True or False."""
        setattr(namespace, self.dest, not (option_string or "").startswith("--no-"))


def _item(rule: JsonObject) -> Callable[[str], object]:
    """Return the parser of a list item.

    An item is JSON or text. If the schema has the keys `name` and `strength`, the text is `name` or `name:strength`.
    """
    keys = list(rule.get("items", {}).get("properties", {}))

    def item(text: str) -> object:
        if text.lstrip().startswith(("{", "[", '"')):
            return json.loads(text)
        name, colon, number = text.rpartition(":")
        if keys[:2] == ["name", "strength"]:
            return {"name": name, "strength": float(number)} if colon else {"name": text}
        return text

    item.__name__ = "name, name:number or JSON"
    return item


def parse_pair(text: str) -> tuple[str, str]:
    """Parse `key=value`. Raises argparse.ArgumentTypeError."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def value_of(text: str, rule: JsonObject | None = None) -> object:
    """Parse `text` as JSON if its schema is not a string and it is valid JSON. Otherwise return it unchanged."""
    if rule is not None and rule.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
