"""The methods of the clients, and the types of their inputs, match the workflow schemas."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, get_type_hints

import pytest

from comfy_client import AsyncClient, Client, GenerationResult, inputs
from comfy_client.inputs import Lora, WebhookInput
from comfy_client.workflow_methods import WorkflowMethods
from comfy_core.contract import ALIASES, ENVELOPE
from comfy_core.request.model_address import OBJECT_KEYS
from comfy_core.workflows import Workflow

CALL_OPTIONS = {"options", "wait_timeout_s", "observer"}
TYPES = {"integer": "int", "number": "float", "string": "str", "boolean": "bool", "object": "dict", "array": "list"}
OTHER_TYPES = {"image": "ImageInput", "mask": "ImageInput", "webhook": "WebhookInput"}


class Recorder(WorkflowMethods):
    """Records the arguments of `run`."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, dict[str, Any]]] = []

    def run(self, workflow: object = None, **arguments: Any) -> GenerationResult:  # noqa: ANN401 - any argument
        """Record the arguments that are not None."""
        self.calls.append((workflow, {name: each for name, each in arguments.items() if each is not None}))
        return GenerationResult((), "recorder", "1")


def keys_of(kind: type) -> set[str]:
    """Return the keys of a TypedDict."""
    return set(get_type_hints(kind, None, vars(inputs)))


def test_the_types_of_objects_have_the_keys_of_the_schemas(workflows: Mapping[str, Workflow]) -> None:
    """A LoRA and a webhook have the keys that a request may have."""
    lora = workflows["flux-dev-txt2img"].inputs["loras"]["items"]["properties"]
    assert keys_of(Lora) == {*lora, *OBJECT_KEYS, "sha256"}
    assert keys_of(WebhookInput) == ENVELOPE["webhook"]["properties"].keys()


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("name", ALIASES)
def test_a_method_has_each_input_of_its_workflow(
    workflows: Mapping[str, Workflow], name: str, client: type[Client | AsyncClient]
) -> None:
    """The signature has each input with its type, and the docstring has its range and default."""
    method = getattr(client, name)
    parameters = inspect.signature(method).parameters
    documented = re.sub(r"\n {8,}", " ", inspect.getdoc(method) or "")
    schema = workflows[ALIASES[name]]
    rules = {**schema.inputs, **{key: rule for key, rule in ENVELOPE.items() if key not in {"workflow", "images"}}}

    assert parameters.keys() == {"self", "unknown", *rules, *CALL_OPTIONS}
    for each, rule in rules.items():
        assert (parameters[each].default is inspect.Parameter.empty) == (each in schema.schema["required"]), each
        expected = OTHER_TYPES.get(each) or TYPES.get(rule.get("type", ""), "Literal")
        assert parameters[each].annotation.startswith(expected), each
        [text] = re.findall(rf"^ *{each}: (.*)$", documented, re.MULTILINE)
        limits = [rule[bound] for bound in ("minimum", "maximum", "maxItems") if rule.get(bound, 2**63) < 2**53]
        default = [rule["default"]] if rule.get("default") not in (None, "", []) else []
        assert each != "image" or "as a path, bytes, a PIL image" in text
        for value in [*(limits if each != "seed" else []), *default]:
            assert str(value) in text, (each, value)


def test_a_method_passes_on_what_it_got() -> None:
    """Inputs and options reach `run`, and so does an unknown keyword, so that the schema can name the right one."""
    recorder = Recorder()
    recorder.inpaint("knight.png", "a shield", mask=b"mask", seed=5, wait_timeout_s=9)
    recorder.txt2img("a knight", sed=5)  # type: ignore[call-arg] # a type checker rejects the misspelt keyword

    calls = [(name, {key: each for key, each in given.items() if key != "options"}) for name, given in recorder.calls]
    sent = {"image": "knight.png", "prompt": "a shield", "mask": b"mask", "seed": 5, "wait_timeout_s": 9}
    assert calls == [("inpaint", sent), ("txt2img", {"prompt": "a knight", "sed": 5})]
