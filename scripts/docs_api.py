"""The text of docs/api.md and docs/errors.md, from the schemas and the registry of errors. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from comfy_client.contract import ENVELOPE, ERRORS
from comfy_client.workflows import Workflow, default_directory, load_workflows

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

While a job is IN_PROGRESS, `output` in the answer of `/status` is its progress. Its `images` is always an empty list:

```json
{"images": [], "stage": "sampling", "picture": 1, "pictures": 4, "step": 7, "steps": 20, "percent": 8}
```

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
