"""Types of inputs for editors and type checkers, and how a method passes its arguments on.

The types are not checked at run time: the schemas in workflows/ are. tests/client/test_inputs.py compares the two.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class Lora(TypedDict, total=False):
    """A LoRA and its strength. It is a file on the worker (`name`), or at an address: exactly one of the other keys.

    `sha256` is the expected hash of the file at the address, and is optional.
    """

    name: str
    hf: str
    civitai: int
    url: str
    sha256: str
    strength: float


class WebhookInput(TypedDict, total=False):
    """A URL that the worker calls when the job ends (docs/webhooks.md). Only `url` is required."""

    url: str
    secret_id: str
    events: list[Literal["completed", "failed", "progress"]]


class UnknownInputs(TypedDict):
    """No keys, so that a type checker rejects keywords that are not an input.

    At run time they are sent, and the workflow's schema rejects them; the error names the right input.
    """


def given(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a call's inputs and options from the `locals()` of a method with the keywords `**unknown`."""
    unknown: dict[str, Any] = arguments["unknown"]
    return {name: value for name, value in arguments.items() if name not in ("self", "unknown")} | unknown
