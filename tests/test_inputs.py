"""The types of the inputs say what the schemas say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_type_hints

from comfy_client import client, inputs
from comfy_client.contract import ENVELOPE
from comfy_client.inputs import CallOptions, EnvelopeInputs, Img2ImgInputs, Lora, Txt2ImgInputs
from comfy_client.providers.interface import JobOptions
from comfy_client.workflows import Workflow

NAMES = {"JobOptions": JobOptions, "Observer": client.Observer}
TYPES = {"integer": int, "number": float, "string": str, "boolean": bool, "object": dict, "array": list}


def keys_of(kind: type) -> set[str]:
    """Return the keys of a TypedDict."""
    return set(get_type_hints(kind, None, {**vars(inputs), **NAMES}))


def test_the_types_have_the_keys_of_the_schemas(workflows: Mapping[str, Workflow]) -> None:
    """Neither has a key that the other lacks."""
    call = keys_of(CallOptions) | (ENVELOPE.keys() - {"workflow", "images"})
    txt2img, img2img = workflows["flux-dev-txt2img"].inputs, workflows["flux-dev-img2img"].inputs

    assert keys_of(EnvelopeInputs) == ENVELOPE.keys() - {"workflow", "images"}
    assert keys_of(Txt2ImgInputs) == call | (txt2img.keys() - {"prompt"})
    assert keys_of(Img2ImgInputs) == call | (img2img.keys() - {"prompt", "image"})
    assert keys_of(Lora) == txt2img["loras"]["items"]["properties"].keys()


def test_the_types_are_those_of_the_schemas(workflows: Mapping[str, Workflow]) -> None:
    """A whole number is an int, text is a str, and so on; each may be None, which leaves it out."""
    hints = get_type_hints(Img2ImgInputs, None, {**vars(inputs), **NAMES})
    for name, rule in {**workflows["flux-dev-img2img"].inputs, **ENVELOPE}.items():
        if name in hints and "type" in rule:
            assert str(TYPES[rule["type"]].__name__) in str(hints[name]), name
            assert type(None) in hints[name].__args__
