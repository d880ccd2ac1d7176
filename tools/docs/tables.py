"""Generates the tables of the pages in docs/ from the code that they describe. No I/O."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from bench.faults import FAULT_ROWS, FAULTS_TESTED_ELSEWHERE
from comfy_client.cli.main import SUMMARIES, all_commands
from comfy_client.cli.progress import EVENT_NAMES
from comfy_client.deploy.description import SCHEMA
from comfy_client.gateway.openai.fields import PARAMETERS, QUALITY_STEPS
from comfy_client.gateway.scenario.fields import ROUTES
from comfy_client.providers import PROVIDERS
from comfy_core.environment import Variable
from comfy_core.error_codes import ErrorCode
from comfy_core.prices import AS_OF, POOLS
from comfy_core.workflows import default_directory, load_workflows
from tools.docs.api import default_cell, type_and_range
from worker.job_record import FIELDS

LICENCE = (
    "The FLUX.1 [dev] model is under a licence for non-commercial use only.",
    "Black Forest Labs offers a commercial licence for hosting the model yourself.",
    "Whether the images may be used commercially without that licence is disputed: ask Black Forest Labs.",
)
"""The licence in three sentences, for pages that explain how to generate images."""


def licence_box() -> str:
    """Return the note about the model's licence, in GitHub's syntax for alerts."""
    return "> [!IMPORTANT]\n" + "".join(f"> {sentence}\n" for sentence in LICENCE)


def variables_table(variables: Iterable[Variable[Any]]) -> str:
    """Return a table of environment variables with their defaults."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for variable in variables:
        default = f"`{variable.default}`" if variable.default else ""
        rows.append(f"| `{variable.name}` | {default} | {variable.help} |")
    return "\n".join(rows) + "\n"


def faults_table() -> str:
    """Return the table of faults. The column `within` has the time limit in the fault's test."""
    rows = ["| fault | what happens | the caller gets | within | the next job works |", "|---|---|---|---|---|"]
    for row in FAULT_ROWS:
        caller_gets = "a result" if row.code is None else row.code
        if row.code in set(ErrorCode):
            caller_gets = f"`{row.code}` ({ErrorCode(row.code).retry.value})"
        next_job = "yes" if row.next_job_works else "on another worker"
        rows.append(f"| {row.fault} | {row.reaction} | {caller_gets} | {row.within_s:g} s | {next_job} |")
    rows += [
        f"| {other.fault} | {other.reaction} | {other.caller_gets} | {other.within_s:g} s | {other.next_job} |"
        for other in FAULTS_TESTED_ELSEWHERE
    ]
    return "\n".join(rows) + "\n"


def job_record_table() -> str:
    """Return the table of the fields of a job's record in the worker's log."""
    rows = ["| field | meaning |", "|---|---|", *(f"| `{name}` | {meaning} |" for name, meaning in FIELDS.items())]
    return "\n".join(rows) + "\n"


def flags_table(reasons: Mapping[str, str]) -> str:
    """Return a table of ComfyUI's launch flags with the reason for each."""
    rows = ["| flag | reason |", "|---|---|", *(f"| `{flag}` | {reason} |" for flag, reason in reasons.items())]
    return "\n".join(rows) + "\n"


def fields_tables() -> str:
    """Return a table of fields for each route of the shim that generates images."""
    parts = []
    for route in ROUTES.values():
        rows = [f"### `POST {route.path}`\n", "| field | default | becomes |", "|---|---|---|"]
        for name, field in route.fields.items():
            default = f"`{route.defaults[name]}`" if name in route.defaults else ""
            why = f"**{'rejected' if field.is_rejected else 'ignored'}**: {field.why_not}"
            rows.append(f"| `{name}` | {default} | {field.becomes or why} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def openai_parameters_table() -> str:
    """Return a table of the parameters of OpenAI's image calls."""
    rows = ["| parameter | becomes |", "|---|---|"]
    for name, field in PARAMETERS.items():
        why = f"**{'rejected' if field.is_rejected else 'ignored'}**: {field.why_not}"
        rows.append(f"| `{name}` | {field.becomes or why} |")
    return "\n".join(rows) + "\n"


def openai_quality_table() -> str:
    """Return a table of the steps of each quality."""
    rows = [f"| `{name}` | {steps} |" for name, steps in QUALITY_STEPS.items()]
    head = ["| `quality` | steps |", "|---|---|", "| `auto`, `standard` | the workflow's default |"]
    return "\n".join([*head, *rows]) + "\n"


def providers_table() -> str:
    """Return a table of the client's providers."""
    rows = ["| value | reaches | needs |", "|---|---|---|"]
    rows += [f"| `{name}` | {row.description} | {row.needs} |" for name, row in PROVIDERS.items()]
    return "\n".join(rows) + "\n"


def description_table() -> str:
    """Return a table of the keys of deploy.toml, written as `table.key`."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, rule in SCHEMA["properties"].items():
        inner = rule.get("properties")
        keys = {f"{name}.{key}": each for key, each in inner.items()} if inner else {name: rule}
        required = {f"{name}.{key}" for key in rule.get("required", ())} if inner else set(SCHEMA["required"])
        for key, each in keys.items():
            default = "**required**" if key in required else default_cell(each.get("default", ""))
            kind = "list of text" if each.get("type") == "array" else type_and_range(each)
            rows.append(f"| `{key}` | {kind} | {default} | {each['description']} |")
    return "\n".join(rows) + "\n"


def prices_table() -> str:
    """Return the date of the prices, and the table of prices by GPU pool."""
    rows = [
        "| pool | GPUs | GB | flex, $ a second | flex, $ an hour | active, $ a second |",
        "|---|---|---|---|---|---|",
    ]
    for price in POOLS.values():
        active = f"{price.active_usd_per_s:.5f}" if price.active_usd_per_s is not None else "not known"
        rows.append(
            f"| `{price.pool}` | {', '.join(price.gpus)} | {price.memory_gb} | {price.flex_usd_per_s:.5f} "
            f"| {price.flex_usd_per_s * 3600:.3f} | {active} |"
        )
    return f"As of {AS_OF}.\n\n" + "\n".join(rows) + "\n"


def events_table() -> str:
    """Return the table of the events of --stream: name, fields besides `job_id`, and when the event occurs."""
    rows = ["| `event` | fields | meaning |", "|---|---|---|"]
    for kind, name in EVENT_NAMES.items():
        fields = ", ".join(f"`{field.name}`" for field in dataclasses.fields(kind) if field.name != "job_id")
        meaning = (inspect.getdoc(kind) or "").partition("\n")[0]
        rows.append(f"| `{name}` | {fields} | {meaning} |")
    return "\n".join(rows) + "\n"


def commands_table() -> str:
    """Return a section for each command of comfy-client, with a table of the command's arguments."""
    parts = []
    for command in all_commands(load_workflows(default_directory())):
        summary = SUMMARIES[command.name]
        parts.append(f"## `comfy-client {command.name}`\n\n{summary[0].upper()}{summary[1:]}.\n")
        if command.flags:
            cells = [(flag.usage.replace("|", "\\|"), flag.help.replace("|", "\\|")) for flag in command.flags]
            rows = ["| argument | meaning |", "|---|---|", *(f"| `{usage}` | {meaning} |" for usage, meaning in cells)]
            parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)
