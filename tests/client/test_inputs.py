"""The input types and the docstrings of `Client` match the workflow schemas."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import get_type_hints

import pytest

from comfy_client import Client, inputs
from comfy_client.inputs import CallOptions, EnvelopeInputs, Img2ImgInputs, Lora, Txt2ImgInputs, WebhookInput
from comfy_client.job import Observer
from comfy_client.providers.interface import JobOptions
from comfy_core.contract import ENVELOPE
from comfy_core.request.model_address import OBJECT_KEYS
from comfy_core.workflows import Workflow

NAMES = {"JobOptions": JobOptions, "Observer": Observer}
TYPES = {"integer": int, "number": float, "string": str, "boolean": bool, "object": dict, "array": list}


def keys_of(kind: type) -> set[str]:
    """Return the keys of a TypedDict."""
    return set(get_type_hints(kind, None, {**vars(inputs), **NAMES}))


def test_the_types_have_the_keys_of_the_schemas(workflows: Mapping[str, Workflow]) -> None:
    """The types have the keys of the schemas, except for positional arguments, and the call options."""
    call = keys_of(CallOptions) | (ENVELOPE.keys() - {"workflow", "images"})
    txt2img, img2img = workflows["flux-dev-txt2img"].inputs, workflows["flux-dev-img2img"].inputs

    assert keys_of(EnvelopeInputs) == ENVELOPE.keys() - {"workflow", "images"}
    assert keys_of(Txt2ImgInputs) == call | (txt2img.keys() - {"prompt"})
    assert keys_of(Img2ImgInputs) == call | (img2img.keys() - {"prompt", "image"})
    assert keys_of(WebhookInput) == ENVELOPE["webhook"]["properties"].keys()
    assert keys_of(Lora) == {*txt2img["loras"]["items"]["properties"], *OBJECT_KEYS, "sha256"}


@pytest.mark.parametrize(("name", "method"), [("txt2img", Client.txt2img), ("img2img", Client.img2img)])
def test_the_docstring_has_each_input_with_its_range_and_default(
    workflows: Mapping[str, Workflow], name: str, method: Callable[..., object]
) -> None:
    """The docstrings match the schemas; img2img documents only its additional inputs."""
    schemas = {each: workflows[f"flux-dev-{each}"].inputs for each in ("txt2img", "img2img")}
    shared = {} if name == "txt2img" else {**schemas["txt2img"], **ENVELOPE}
    lines = inspect.getdoc(method) or ""
    for each, rule in {**schemas[name], **ENVELOPE}.items():
        if each in {"workflow", "images"} or each in shared:
            continue
        [documented] = re.findall(rf"^ *(?:- )?{each}: (.*)$", lines, re.MULTILINE)
        bounds = [rule[bound] for bound in ("minimum", "maximum", "maxItems") if bound in rule]
        default = [rule["default"]] if rule.get("default") not in (None, "", []) else []
        for value in [*(bound for bound in bounds if bound not in (0, 2**63 - 1)), *default]:
            assert str(value) in documented, (each, value)


def test_the_types_are_those_of_the_schemas(workflows: Mapping[str, Workflow]) -> None:
    """Each input has the Python type of its schema, or is None, which omits the input."""
    hints = get_type_hints(Img2ImgInputs, None, {**vars(inputs), **NAMES})
    for name, rule in {**workflows["flux-dev-img2img"].inputs, **ENVELOPE}.items():
        if name in hints and "type" in rule:
            kind = WebhookInput if name == "webhook" else TYPES[rule["type"]]
            assert kind.__name__ in str(hints[name]), name
            assert type(None) in hints[name].__args__
