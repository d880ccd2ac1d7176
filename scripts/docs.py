"""Writes docs/api.md, errors.md and configure.md, and tables of other pages, from what they describe."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from comfy_client.cli.commands import commands
from comfy_client.contract import ENVELOPE, ERRORS
from comfy_client.providers import PROVIDERS
from comfy_client.providers import VARIABLES as CLIENT_VARIABLES
from comfy_client.scenario.fields import ROUTES
from comfy_client.scenario.settings import VARIABLES as SHIM_VARIABLES
from comfy_client.workflows import Workflow, default_directory, load_workflows
from tests.production.faults import ELSEWHERE, ROWS
from worker.settings import VARIABLES

DOCS = Path(__file__).resolve().parent.parent / "docs"
TABLE_BEGINS = "<!-- The table is written by scripts/docs from tests/production/faults.py. -->"
TABLE_ENDS = "<!-- The table ends. -->"
NOTE = "<!-- Written by scripts/docs; edit the code that it describes instead. -->"

RESULT = """\
## The result

```json
{
  "images": [
    {"filename": "flux-dev_00001_.png", "type": "base64", "data": "iVBORw0…", "mime_type": "image/png",
     "bytes": 1301234, "sha256": "9f2c…", "width": 1024, "height": 1024, "seed": 42}
  ],
  "workflow": "flux-dev-txt2img",
  "inputs": {"prompt": "a pixel art knight", "steps": 20, "seed": 42},
  "seed": 42,
  "prompt_ids": ["6f8a…"],
  "warnings": [],
  "versions": {"worker": "0.1.0", "comfyui": "0.3.64", "workflow": "ada2c8a810e9"},
  "timings": {"queue_s": 0.004, "execute_s": 9.1, "fetch_s": 0.0, "encode_s": 0.009, "total_s": 9.12}
}
```

- `images`: the pictures in order. `filename`, `type` and `data` are as worker-comfyui returns them. `seed` makes that
  picture again alone; it is null for a graph of your own.
- `inputs`: what was used, with defaults, the size of an img2img and the seed filled in, without pictures.
- `files` (where a graph wrote something else than still pictures: a video, an animation) has the same shape without
  `width`, `height` and `seed`; `texts` are texts that a graph showed.
- `timings`: seconds in ComfyUI's queue, running, fetching what did not come over the websocket, encoding, and in all.
- `versions.workflow` changes with either file of the workflow.

A failed job returns `{"error": "<JSON text>"}` and nothing else; docs/errors.md lists the codes:

```json
{"code": "invalid_input", "message": "The request has 1 fault. steps: must be at least 1, not 0", "retryable": false,
 "details": {"faults": [{"path": "steps", "message": "must be at least 1, not 0"}]}}
```
"""


def api() -> Iterator[str]:
    """Yield the parts of docs/api.md."""
    yield f"# The API\n\n{NOTE}\n"
    yield (
        "A job's `input` is one flat object: the keys for every request, and the inputs of its workflow. Unknown keys "
        "are refused by name. Every fault is found at once, before anything is sent to ComfyUI.\n"
    )
    yield '```json\n{"input": {"prompt": "a pixel art knight", "width": 1024, "height": 1024, "seed": 42}}\n```\n'
    yield "## For every request\n"
    yield inputs_table(ENVELOPE, required=())
    for workflow in load_workflows(default_directory()).values():
        yield from workflow_section(workflow)
    yield RESULT


def workflow_section(workflow: Workflow) -> Iterator[str]:
    """Yield the parts that describe one workflow."""
    yield f"## `{workflow.name}`: {workflow.schema['title']}\n"
    models = ", ".join(f"`{model}`" for model in workflow.schema["x-models"])
    yield f"{workflow.schema['description']} Models: {models}.\n"
    yield inputs_table(workflow.inputs, required=workflow.schema["required"])


def inputs_table(inputs: dict[str, Any], required: tuple[str, ...] | list[str]) -> str:
    """Return a table of inputs by their schemas."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, rule in inputs.items():
        default = "**required**" if name in required else shown(rule["default"]) if "default" in rule else ""
        rows.append(f"| `{name}` | {type_of(rule)} | {default} | {rule['description']} |")
    return "\n".join(rows) + "\n"


def shown(value: object) -> str:
    """Return a default as a cell shows it."""
    return "" if value in ("", []) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def type_of(rule: dict[str, Any]) -> str:
    """Return a schema's type and range in a few words."""
    if "enum" in rule:
        return ", ".join(f"`{choice}`" for choice in rule["enum"])
    kind = " or ".join(rule["type"]) if isinstance(rule["type"], list) else rule["type"]
    match rule:
        case {"minimum": low, "maximum": high}:
            return f"{kind}, {low} to {2**63 - 1 if high == 2**63 - 1 else high}"
        case {"items": {"properties": {**properties}}}:
            return f"list of `{{{', '.join(map(str, properties))}}}`, at most {rule['maxItems']}"
        case {"maxLength": length}:
            return f"{kind}, at most {length:,} characters"
    return kind


def errors() -> Iterator[str]:
    """Yield the parts of docs/errors.md."""
    yield f"# Errors\n\n{NOTE}\n"
    yield (
        'A failed job returns exactly `{"error": "<JSON text>"}`: `code`, `message` (names the culprit and the '
        "remedy), `retryable` (whether the same request may succeed when it is sent again) and `details`. Codes are "
        "added, never renamed; a client that does not know a code reads it as `unrecognized`.\n"
    )
    yield errors_table(is_of_client=False)
    yield "## Made by the client\n"
    yield "Of what the platform, the network or a setting did; the same report, `.report` of every exception.\n"
    yield errors_table(is_of_client=True)


def errors_table(*, is_of_client: bool) -> str:
    """Return a table of the codes that the client makes, or of the others."""
    rows = ["| code | retryable | cause | remedy | details |", "|---|---|---|---|---|"]
    for code, facts in ERRORS.items():
        if facts.is_of_client == is_of_client:
            retryable = "yes" if facts.retryable else "no"
            rows.append(f"| `{code.value}` | {retryable} | {facts.cause} | {facts.remedy} | {facts.details} |")
    return "\n".join(rows) + "\n"


def configure() -> Iterator[str]:
    """Yield the parts of docs/configure.md."""
    yield f"# The worker's variables\n\n{NOTE}\n"
    yield "Each is read once at start; a bad value ends it with an error that names the variable. Empty is absent.\n"
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for variable in VARIABLES:
        default = f"`{variable.default}`" if variable.default else ""
        rows.append(f"| `{variable.name}` | {default} | {variable.meaning} |")
    yield "\n".join(rows) + "\n"


def operate() -> Iterator[str]:
    """Yield docs/operate.md as it is, with its fault table made anew between the two marks."""
    page = (DOCS / "operate.md").read_text()
    before, _, rest = page.partition(TABLE_BEGINS)
    after = rest.partition(TABLE_ENDS)[2]
    rows = ["| fault | what happens | the caller gets | within | the next job works |", "|---|---|---|---|---|"]
    for row in ROWS:
        gets = "a result" if row.code is None else row.code if row.code == "no output" else f"`{row.code}`"
        works = "yes" if row.next_job_works else "on another worker"
        rows.append(f"| {row.fault} | {row.happens} | {gets} | {row.within_s:g} s | {works} |")
    rows += [
        f"| {other.fault} | {other.happens} | {other.gets} | {other.within_s:g} s | {other.next_job} |"
        for other in ELSEWHERE
    ]
    yield f"{before}{TABLE_BEGINS}\n{chr(10).join(rows)}\n{TABLE_ENDS}{after}"


def with_tables(name: str, tables: Mapping[str, str]) -> Iterator[str]:
    """Yield the page `name` as it is, with its tables made anew, each between two marks."""
    page = (DOCS / name).read_text()
    for each, table in tables.items():
        mark = f"<!-- {each}: written by scripts/docs -->"
        before, _, rest = page.partition(mark)
        page = f"{before}{mark}\n{table}<!-- end -->{rest.partition('<!-- end -->')[2]}"
    yield page


def client() -> Iterator[str]:
    """Yield docs/client.md."""
    tables = {"providers": providers_table(), "variables": variables_table(), "commands": commands_table()}
    yield from with_tables("client.md", tables)


def scenario() -> Iterator[str]:
    """Yield docs/scenario.md."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for variable in SHIM_VARIABLES:
        default = f"`{variable.default}`" if variable.default else ""
        rows.append(f"| `{variable.name}` | {default} | {variable.meaning} |")
    yield from with_tables("scenario.md", {"fields": fields_tables(), "variables": "\n".join(rows) + "\n"})


def fields_tables() -> str:
    """Return a table of fields for each generate call of the shim."""
    parts = []
    for route in ROUTES.values():
        rows = [f"### `POST {route.path}`\n", "| field | default | becomes |", "|---|---|---|"]
        for name, field in route.fields.items():
            default = f"`{route.defaults[name]}`" if name in route.defaults else ""
            why = f"**{'refused' if field.is_refused else 'left out'}**: {field.why_not}"
            rows.append(f"| `{name}` | {default} | {field.becomes or why} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def providers_table() -> str:
    """Return a table of the client's providers."""
    rows = ["| value | reaches | needs |", "|---|---|---|"]
    rows += [f"| `{name}` | {row.reaches} | {row.needs} |" for name, row in PROVIDERS.items()]
    return "\n".join(rows) + "\n"


def variables_table() -> str:
    """Return a table of the variables that the client reads."""
    rows = ["| variable | meaning | where |", "|---|---|---|"]
    rows += [f"| `{variable.name}` | {variable.meaning} | {variable.where} |" for variable in CLIENT_VARIABLES.values()]
    return "\n".join(rows) + "\n"


def commands_table() -> str:
    """Return each command of comfy-client with its flags."""
    parts = []
    for command in commands(load_workflows(default_directory())):
        parts.append(f"### `comfy-client {command.name}`\n\n{command.summary[0].upper()}{command.summary[1:]}.\n")
        if command.flags:
            cells = [(flag.usage.replace("|", "\\|"), flag.help.replace("|", "\\|")) for flag in command.flags]
            rows = ["| argument | meaning |", "|---|---|", *(f"| `{usage}` | {meaning} |" for usage, meaning in cells)]
            parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def main() -> None:
    """Write the pages, or with --check exit 1 where one is not current."""
    pages = {
        "api.md": api(),
        "errors.md": errors(),
        "configure.md": configure(),
        "operate.md": operate(),
        "client.md": client(),
        "scenario.md": scenario(),
    }
    for name, parts in pages.items():
        path, text = DOCS / name, "\n".join(parts)
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"docs/{name} is not current: run scripts/docs")


if __name__ == "__main__":
    main()
