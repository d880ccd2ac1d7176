"""Generates the methods of `Client` and `AsyncClient` that run the shipped workflows, from their schemas. No I/O."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

from comfy_client.cli.main import SUMMARIES
from comfy_core.contract import ALIASES, ENVELOPE, JsonObject
from comfy_core.workflows import Workflow, default_directory, load_workflows

HEADER = '''\
"""A method for each shipped workflow, with all its inputs. Written by scripts/docs from workflows/*.inputs.json."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from comfy_client.inputs import given
from comfy_client.providers.interface import NO_OPTIONS, GenerationResult, JobOptions

if TYPE_CHECKING:
    from typing import Unpack

    from comfy_client.input_images import ImageInput
    from comfy_client.inputs import Lora, UnknownInputs, WebhookInput
    from comfy_client.job import Observer
    from comfy_core.graphs import Graph


class CLASS(ABC):
    """The methods of `CLIENT` that run the shipped workflows."""

    @abstractmethod
    DEFrun(
        self,
        workflow: str | Graph | None = None,
        *,
        options: JobOptions = NO_OPTIONS,
        wait_timeout_s: float | None = None,
        observer: Observer | None = None,
        **inputs: Any,  # noqa: ANN401 - types depend on the workflow's schema
    ) -> GenerationResult:
        """Run a workflow. See `CLIENT.run`."""
'''

_POSITIONAL = ("image", "prompt")
_NOT_PARAMETERS = ("workflow", "images")
_TYPES = {"integer": "int", "number": "float", "string": "str", "boolean": "bool"}
_TYPES_BY_NAME = {
    "loras": "list[Lora | str]",
    "overrides": "dict[str, Any]",
    "model_tokens": "dict[str, str]",
    "webhook": "WebhookInput",
}
_DESCRIPTIONS = {"overrides": 'Node inputs to set in the graph, such as `{"KSampler.seed": 5}`.'}
"""Descriptions that replace those of the schemas, which refer to tables of docs/api.md."""
_CALL_OPTIONS = {
    "options: JobOptions = NO_OPTIONS": "RunPod's options for the job.",
    "wait_timeout_s: float | None = None": "How long to wait. The job continues after that.",
    "observer: Observer | None = None": "Called with each event of the job; see `Job.events`.",
}
_LARGEST_SHOWN = 2**53


def client_methods(*, is_async: bool) -> Iterator[str]:
    """Yield the parts of comfy_client/workflow_methods.py, or of async_workflow_methods.py."""
    client, definition = ("AsyncClient", "async def ") if is_async else ("Client", "def ")
    names = {"CLASS": f"{'Async' if is_async else ''}WorkflowMethods", "CLIENT": client, "DEF": definition}
    header = HEADER
    for mark, name in names.items():
        header = header.replace(mark, name)
    yield header
    workflows = load_workflows(default_directory())
    for alias, name in ALIASES.items():
        yield _method(alias, workflows[name], is_async=is_async)


def _method(alias: str, workflow: Workflow, *, is_async: bool) -> str:
    rules = workflow.inputs | {name: rule for name, rule in ENVELOPE.items() if name not in _NOT_PARAMETERS}
    required = workflow.schema.get("required", ())
    order = [*(name for name in _POSITIONAL if name in rules), *(name for name in rules if name not in _POSITIONAL)]
    parameters = ["self"]
    described = []
    for name in order:
        kind = _python_type(name, rules[name])
        parameters.append(f"{name}: {kind}" if name in required else f"{name}: {kind} | None = None")
        described.append(f"{name}: {_description(name, rules[name])}")
    described += [f"{parameter.partition(':')[0]}: {text}" for parameter, text in _CALL_OPTIONS.items()]
    parameters += [*_CALL_OPTIONS, "**unknown: Unpack[UnknownInputs]"]
    parameters.insert(1 + sum(name in rules for name in _POSITIONAL), "*")
    lines = [
        f"    {'async ' if is_async else ''}def {alias}(  # noqa: PLR0913 - all inputs, most of them keywords",
        *(f"        {parameter}," for parameter in parameters),
        "    ) -> GenerationResult:",
        f'        """{SUMMARIES[alias].capitalize()}.',
        "",
        "        An input that is None is omitted. Raises the same errors as `run`.",
        "",
        "        Args:",
        *(line for text in described for line in _wrapped(text)),
        *_wrapped("**unknown: Sent unchanged. Only a template of your own that replaces the shipped one accepts it."),
        '        """',
        f'        return {"await " if is_async else ""}self.run("{alias}", **given(locals()))',
    ]
    return "\n".join(lines) + "\n"


def _python_type(name: str, rule: JsonObject) -> str:
    match rule:
        case {"contentMediaType": "image/*"}:
            return "ImageInput"
        case {"enum": list(choices)}:
            return f"Literal[{', '.join(map(json.dumps, choices))}]"
    return _TYPES_BY_NAME.get(name) or _TYPES[rule["type"]]


def _description(name: str, rule: JsonObject) -> str:
    """Return an input's description with its range and default, in one paragraph."""
    text = _DESCRIPTIONS[name] if name in _DESCRIPTIONS else str(rule["description"])
    text = text.replace("as an https URL", "as a path, bytes, a PIL image, a Scenario asset id, an https URL")
    limits = []
    match rule:
        case {"minimum": low, "maximum": high} if high < _LARGEST_SHOWN:
            limits.append(f"{low} to {high}")
        case {"maxItems": most}:
            limits.append(f"at most {most}")
    if rule.get("default") not in (None, "", []):
        limits.append(f"default {rule['default']}")
    return f"{text} [{'; '.join(limits)}]" if limits else text


def _wrapped(text: str) -> list[str]:
    """Return the lines of one entry of `Args`."""
    return textwrap.wrap(
        text, 120, initial_indent=" " * 12, subsequent_indent=" " * 16, break_on_hyphens=False, break_long_words=False
    )
