"""The text of docs/api.md and docs/errors.md, from the schemas and the registry of errors. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from comfy_core.contract import ENVELOPE, ERRORS, GRAPH_KEYS
from comfy_core.workflows import Workflow, default_directory, load_workflows

NOTE = "<!-- Written by scripts/docs; edit the code that it describes instead. -->"

SPELLINGS = """\
Null means absent, also inside `images` and `loras`. Numbers and booleans are read from text (`"64"`, `"true"`), choices
in any case (`"PNG"`, `"jpg"`), LoRAs from their names (`"pixel.safetensors:0.8"`, or a list of such). Base64 is read in
both alphabets, with or without padding, in a data URI or not. What has more than one meaning is refused.

A prompt in the syntax of another tool (`{a|b}`, `__animal__`, `<lora:a:1>`, `embedding:a`, `//`) is sent as it is, with
a line in `warnings`.
"""

GRAPHS = """\
## A graph of your own

`workflow` may be a graph in ComfyUI's API format, as File > Export (API) writes it. Requests of worker-comfyui need no
change. The graph is also found if it is the whole `input`, the `prompt` of it (a body of POST /prompt), or text; a line
in `warnings` says so. Links may be written `[1, 0]`.
"""

FILES = """\
Files for a graph:

- A file of `images` goes to each node that loads a file of that name from ComfyUI's input folder: LoadImage, LoadAudio,
  LoadVideo and other loaders, also of custom nodes. ` [input]` behind the name and `\\` in place of `/` do not matter.
  Text, prefixes and choices are never replaced.
- A loader may also hold the file itself: base64, a data URI or an https address.
- For LoadImage, LoadImageMask and LoadImageOutput the file must be a picture. Any other file is uploaded as it is.
- A file that no node loads is a line in `warnings`; if a node loads another file that was not sent, the request is
  refused.

Only what an output needs must be whole: a node with a broken link that feeds no output is left out, with a line in
`warnings`. Notes of the editor are left out too. Without a list of ComfyUI's nodes, an output is a node whose class
sounds like one (Save, Preview, Export, …) or that has a `filename_prefix`.
"""

OVERRIDES = """\
## Overrides

`{"Node title.input": value}` or `{"12.input": value}` sets an input after the graph has been rendered. The node is the
longest part in front of a dot that is an id or a title; the rest is the input, which may have dots
(`3.resize_type.width`), with `.0` behind it for an item of a list.

In a graph of your own an override may set anything, and add an input that the node does not have: newer versions of
ComfyUI require inputs that an older export lacks. In a workflow by name, the limits of its inputs hold:

| an override of a workflow | may |
|---|---|
| of a place that an input sets, or of a place with the same name in another node | be what the input may be |
| of `seed` | also be -1, for a random seed that counts on from picture to picture |
| of `batch_size` | be at most the maximum of `num_images`, divided by `num_images` |
| of another number | lie between 0 and the workflow's own value; seeds take any value |
| of a text | be a text of at most 4,096 characters |
| of a link | be a link to a node of the workflow |
| of a file that a node reads or writes | not be; only a `filename_prefix` may |
| of an input that the node does not have | not be |
"""

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
  picture again alone; it is null for a graph of your own. As there, what ComfyUI's own nodes save as images but is no
  still picture (an animation, a video) is in `images` too, as it was saved; `mime_type` says what it is; `width` and
  `height` are absent if they are not known.
- `inputs`: what was used, with defaults, the size of an img2img and the seed filled in, without pictures.
- `files` (if a graph wrote something else: a sound, a latent, a video of a custom node) has the same shape without
  `width`, `height` and `seed`; `texts` are texts that a graph showed.
- `warnings`: what is not as it was asked for, such as a picture that is too large for WebP and stays a PNG.
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
        "are refused by name (beside a graph of your own they are a line in `warnings`). Every fault is found at once, "
        "before anything is sent to ComfyUI.\n"
    )
    yield '```json\n{"input": {"prompt": "a pixel art knight", "width": 1024, "height": 1024, "seed": 42}}\n```\n'
    yield "## For every request\n"
    yield inputs_table(ENVELOPE, required=())
    yield SPELLINGS
    yield GRAPHS
    yield inputs_table(GRAPH_KEYS, required=())
    yield FILES
    yield OVERRIDES
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
