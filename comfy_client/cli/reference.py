"""The commands `workflows` and `errors`, which list and explain workflows and error codes. They send no request."""

from __future__ import annotations

import json
from collections.abc import Mapping

from comfy_client.cli.call import JSON, Call, Command
from comfy_client.cli.flags import Flag, range_of
from comfy_core.contract import JsonObject
from comfy_core.error_codes import ErrorCode, Retry
from comfy_core.errors import ConfigError
from comfy_core.validation import nearest
from comfy_core.workflows import Workflow, find_workflow


def _list_workflows(call: Call) -> int:
    if call.options.name is None:
        listed = {name: workflow.schema.get("title", "") for name, workflow in call.workflows.items()}
        call.screen.show({"workflows": listed}, *(f"{name:24}{title}" for name, title in listed.items()))
        return 0
    workflow = find_workflow(call.options.name, call.workflows)
    if call.options.schema:
        call.screen.show(workflow.schema, json.dumps(workflow.schema, indent=2, ensure_ascii=False))
        return 0
    required = workflow.schema.get("required", [])
    lines = []
    for name, rule in workflow.inputs.items():
        description = f"{'required. ' if name in required else ''}{rule.get('description', '')}{range_of(rule)}"
        lines.append(f"  {name:18}{_type(rule):14}{description}".rstrip())
    value = {"name": workflow.name, "version": workflow.version, "schema": workflow.schema}
    call.screen.show(value, f"{workflow.name}: {workflow.schema.get('title', '')}", *lines)
    return 0


def _type(rule: JsonObject) -> str:
    match rule:
        case {"contentMediaType": "image/*"}:
            return "image"
        case {"type": str(kind)}:
            return kind
    return "one of"


def _errors(call: Call) -> int:
    known = {code.value: code for code in ErrorCode}
    if call.options.code is None:
        listed = {name: code.cause for name, code in known.items()}
        lines = (f"{name:22}{code.retry.value:8}{code.cause}" for name, code in known.items())
        call.screen.show({"errors": listed}, *lines)
        return 0
    if call.options.code not in known:
        raise ConfigError(f"{call.options.code!r} is not an error code{nearest(call.options.code, known)}")
    code = known[call.options.code]
    value = {
        "code": code.value,
        "retry": code.retry.value,
        "retryable": code.retry is Retry.RESEND,
        "cause": code.cause,
        "remedy": code.remedy,
        "details": code.details,
    }
    retry = f"  {code.retry.value}: {code.retry.meaning}"
    call.screen.show(value, code.value, f"  {code.cause}", f"  {code.remedy}", retry)
    return 0


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the commands `workflows` and `errors`."""
    name = Flag(("name",), "The workflow's name.", "NAME", {"nargs": "?"})
    schema = Flag(("--schema",), "Print the JSON Schema of its inputs.", settings={"action": "store_true"})
    code = Flag(("code",), "The error code.", "CODE", {"nargs": "?"})
    return Command("workflows", [name, schema, JSON], _list_workflows), Command("errors", [code, JSON], _errors)
