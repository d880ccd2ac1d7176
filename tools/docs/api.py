"""Generates docs/api.md and docs/errors.md from the schemas and the error registry. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from comfy_core.contract import ENVELOPE, GRAPH_KEYS
from comfy_core.error_codes import ErrorCode, Retry
from comfy_core.request.models_task import MODELS_KEYS
from comfy_core.workflows import Workflow, default_directory, load_workflows
from simulators.comfyui.version import pinned_version

NOTE = "<!-- Written by scripts/docs; edit the code that it describes instead. -->"

ACCEPTED_SPELLINGS = """\
Null means absent, also inside `images` and `loras`. Numbers and booleans may be text (`"64"`, `"true"`), choices may
be in upper or lower case (`"PNG"`), `"jpg"` means `"jpeg"`, and LoRAs may be names (`"pixel.safetensors:0.8"`, or a
list of them). Base64 may use the standard or the URL-safe alphabet, with or without padding, and may be in a data URI.
An ambiguous value is rejected.

A prompt in the syntax of another tool (`{a|b}`, `__animal__`, `<lora:a:1>`, `embedding:a`, `//`) is sent unchanged,
and `warnings` names it.
"""

GRAPHS = """\
## A graph of your own

`workflow` may be a graph in ComfyUI's API format, as File > Export (API) writes it. Requests of worker-comfyui need no
change. The graph may also be the whole `input`, its `prompt` (a body of POST /prompt), or text; `warnings` then names
the form. Links may be written `[1, 0]`.
"""

FILES = """\
Files for a graph:

- A file of `images` goes to each node that loads a file of that name from ComfyUI's input folder: LoadImage, LoadAudio,
  LoadVideo and other loaders, also of custom nodes. ` [input]` after the name and `\\` instead of `/` are accepted.
  Text, prefixes and choices are never replaced.
- A loader may also contain the file itself: base64, a data URI or an https URL.
- For LoadImage, LoadImageMask and LoadImageOutput the file must be an image. Any other file is uploaded unchanged.
- If no node loads a sent file, `warnings` names it. If a node also loads a file that was not sent, the request is
  rejected.

Only nodes that an output needs must be complete: a node with a broken link that feeds no output is removed, and
`warnings` names it. Notes of the editor are removed too. If ComfyUI's list of nodes is not available, an output is a
node whose class name suggests it (Save, Preview, Export, …) or that has a `filename_prefix`.
"""

OVERRIDES = """\
## Overrides

`{"Node title.input": value}` or `{"12.input": value}` sets an input after the graph has been rendered. The
text before one of the dots is the node's id or title; the rest is the input. Both may contain dots
(`3.resize_type.width`, `Resize v1.5.resize_type.width`), and `.0` at the end is an item of a list. If several dots are
possible, the node that has such an input is meant; if that leaves several inputs, the request is rejected, and the
error lists them. An id takes precedence over the same text as a title. An override sets one node, but a key such as
`width` may set several: the node that gives the image its size, and ModelSamplingFlux.

In a graph of your own an override may set anything, and add an input that the node does not have: newer versions of
ComfyUI require inputs that an older export lacks. In a template (a workflow selected by name),
the limits of its inputs apply:

| target of the override in a template | allowed values |
|---|---|
| an input that a key of the request sets, or one with the same name in another node | the values of that key |
| `seed` | also -1, for a random seed that increases by 1 from image to image |
| `batch_size` | at most the maximum of `num_images`, divided by `num_images` |
| another number | between 0 and the workflow's own value; a seed may have any value |
| a text | a text of at most 4,096 characters |
| a link | a link to a node of the workflow |
| a file that a node reads or writes | not set; only a `filename_prefix` may |
| an input that the node does not have | not set |
"""

ADDRESSES = """\
## Models by address

A LoRA may be a file that the worker downloads: one of `hf`, `civitai` and `url` in place of `name`, and optionally
`sha256`, the expected hash of the file. `name` may also be the address as text.

```json
{"prompt": "a knight", "loras": [{"hf": "owner/repository/path/knight.safetensors@main", "strength": 0.8}]}
```

| in `loras` | as text, also in place of a model's file name in a graph or an override | file |
|---|---|---|
| `{"hf": "owner/repo/dir/file.safetensors@main"}` | `hf:owner/repo/dir/file.safetensors@main` | at Hugging Face |
| `{"civitai": 123456}` | `civitai:123456` | the model version with this number (`modelVersionId` in a page's URL) |
| `{"url": "https://host/file.safetensors"}` | `https://host/file.safetensors` | at a host that the worker allows |
| `{…, "sha256": "9f86d081…"}` | `…#sha256=9f86d081…` | with this hash |

The default revision is `main`. The result has the addresses as text, with the files' hashes and without the queries of
URLs. `model_tokens` has the tokens for private files. docs/models.md says what the worker accepts, keeps and refuses.
Only this project's worker downloads models; the other providers refuse an address before they send anything.

"""

MODELS_TASK = """\
## A job that manages model files

With `"task": "models"` a job lists, downloads or deletes model files instead of generating images. It takes one of the
worker's `WORKER_CONCURRENCY` jobs, but not ComfyUI's queue or the GPU. docs/models.md says which files it may change;
`comfy-client models` sends such jobs. `webhook` reports the end of a long download.

```json
{"input": {"task": "models", "action": "list", "folder": "loras"}}
{"input": {"task": "models", "action": "download", "hf": "owner/repository/knight.safetensors@main", "folder": "loras"}}
{"input": {"task": "models", "action": "delete", "folder": "loras", "name": "knight.safetensors"}}
```

"""

MODELS_RESULT = """\
The result has no images. `models` is the list; a download and a delete have the one file as `model`, and a download has
`downloaded`, which is false if the file was there already:

```json
{"task": "models", "action": "list", "left_out": 0, "cache_limit_bytes": 10000000000,
 "models": [{"folder": "loras", "name": "knight.safetensors", "bytes": 38400000, "sha256": "9f86d081…",
             "source": "hf:owner/repository/knight.safetensors@main", "last_used": "2026-11-29T03:41:00+00:00",
             "in_use": false}],
 "disk": {"folder": "/runpod-volume/models", "free_bytes": 81234567890, "total_bytes": 107374182400},
 "gpu": "NVIDIA GeForce RTX 4090", "timings": {"queue_s": 0.0, "total_s": 0.21}, "cost": 0.0003}
```

`sha256` and `source` are null if they are not known. `left_out` is the number of files beyond the first 5,000. Files
that jobs named by address have the folder `by-address` and the first digits of their hash as `name`. While a file is
downloaded, the job's progress has the stage `model`.

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
  "versions": {"worker": "0.1.0", "comfyui": "COMFYUI_VERSION", "workflow": "ada2c8a810e9"},
  "gpu": "NVIDIA GeForce RTX 4090",
  "timings": {"queue_s": 0.004, "execute_s": 9.1, "fetch_s": 0.0, "encode_s": 0.009, "total_s": 9.12},
  "cost": 0.0031
}
```

- `images`: the images in order. `filename`, `type` and `data` are as in worker-comfyui. `seed` reproduces that image
  alone; it is null for a graph of your own. As in worker-comfyui, animations and videos that ComfyUI's own nodes save
  as images are in `images` too, unchanged; `mime_type` is their type; `width` and `height` are absent if unknown.
- `inputs`: the inputs that were used, with defaults, the size of an img2img and the seed, without images.
- `files` (if a graph wrote something else: a sound, a latent, a video of a custom node) has the same keys without
  `width`, `height` and `seed`; `texts` are texts that a graph displayed.
- `warnings`: differences from the request, such as an image that is too large for WebP and stays a PNG.
- `timings`: seconds in ComfyUI's queue, running, downloading files that did not arrive over the websocket, encoding,
  and in all; with models by address also `models_s`, the seconds until they were there.
- `cost`: US dollars for `total_s` without `queue_s`, or null if nothing is paid or the price is not known
  ([cost.md](cost.md#the-cost-of-a-job)). `gpu`: the driver's name of the worker's GPU, or null.
- `versions.workflow` changes with either file of the workflow.

While a job is IN_PROGRESS, `output` in the response of `/status` is its progress. Its `images` is always an empty list:

```json
{"images": [], "stage": "sampling", "picture": 1, "pictures": 4, "step": 7, "steps": 20, "percent": 8}
```

While models by address are downloaded, `stage` is `model`, and `done_bytes` of `total_bytes` were received.

A failed job returns `{"error": "<JSON text>"}` and nothing else; docs/errors.md lists the codes:

```json
{"code": "invalid_input", "message": "The request has 1 fault. steps: must be at least 1, not 0", "retryable": false,
 "details": {"faults": [{"path": "steps", "message": "must be at least 1, not 0"}]}}
```
"""


def api_page() -> Iterator[str]:
    """Yield the parts of docs/api.md."""
    yield f"# The API\n\n{NOTE}\n"
    yield (
        "What a request and its result contain, for developers of callers.\n\n"
        "A job's `input` is one flat object: the keys for every request, and the inputs of its workflow. Unknown keys "
        "are rejected, and the error names them; if the request has a graph of your own, they are listed in `warnings` "
        "instead. All faults are reported at "
        "once, before anything is sent to ComfyUI.\n"
    )
    yield '```json\n{"input": {"prompt": "a pixel art knight", "width": 1024, "height": 1024, "seed": 42}}\n```\n'
    yield "## For every request\n"
    yield inputs_table(ENVELOPE, required=())
    yield ACCEPTED_SPELLINGS
    yield GRAPHS
    yield inputs_table(GRAPH_KEYS, required=())
    yield FILES
    yield OVERRIDES
    yield ADDRESSES
    for workflow in load_workflows(default_directory()).values():
        yield from workflow_section(workflow)
    yield MODELS_TASK
    yield inputs_table(dict(MODELS_KEYS), required=("task", "action"))
    yield MODELS_RESULT
    yield RESULT.replace("COMFYUI_VERSION", pinned_version())


def workflow_section(workflow: Workflow) -> Iterator[str]:
    """Yield the parts that describe one workflow."""
    schema = workflow.schema
    title = f": {schema['title']}" if "title" in schema else ""
    yield f"## `{workflow.name}`{title}\n"
    models = ", ".join(f"`{model}`" for model in schema.get("x-models", ()))
    sentences = (schema.get("description", ""), f"Models: {models}." if models else "")
    yield " ".join(filter(None, sentences)) + "\n"
    yield inputs_table(workflow.inputs, required=schema.get("required", ()))


def inputs_table(inputs: dict[str, Any], required: Collection[str]) -> str:
    """Return a table of inputs, given by name and JSON Schema."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, rule in inputs.items():
        default = "**required**" if name in required else default_cell(rule["default"]) if "default" in rule else ""
        rows.append(f"| `{name}` | {type_and_range(rule)} | {default} | {rule.get('description', '')} |")
    return "\n".join(rows) + "\n"


def default_cell(value: object) -> str:
    """Return a default value as Markdown for a table cell; empty for an empty text or list."""
    return "" if value in ("", []) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def type_and_range(rule: dict[str, Any]) -> str:
    """Return a schema's type with its choices or its range."""
    if "enum" in rule:
        return ", ".join(f"`{choice}`" for choice in rule["enum"])
    kinds = rule.get("type", "any")
    kind = " or ".join(kinds) if isinstance(kinds, list) else kinds
    match rule:
        case {"minimum": low, "maximum": high}:
            return f"{kind}, {low} to {high}"
        case {"items": {"properties": {**properties}}}:
            limit = f", at most {rule['maxItems']}" if "maxItems" in rule else ""
            return f"list of `{{{', '.join(map(str, properties))}}}`{limit}"
        case {"properties": {**properties}}:
            return f"{kind} `{{{', '.join(map(str, properties))}}}`"
        case {"maxLength": length}:
            return f"{kind}, at most {length:,} characters"
    return kind


def errors_page() -> Iterator[str]:
    """Yield the parts of docs/errors.md."""
    yield f"# Errors\n\n{NOTE}\n"
    yield (
        "How a job fails and what its caller can do next, for developers of callers.\n\n"
        'A failed job returns exactly `{"error": "<JSON text>"}`: `code`, `message` (the cause and the remedy), '
        "`retryable` and `details`. Codes are added, never renamed; a client that does not know a code reads it as "
        "`unrecognized`. The column `retry` says what the caller can do next:\n"
    )
    yield "| retry | meaning | `retryable` |\n|---|---|---|"
    for word in Retry:
        yield f"| `{word.value}` | {word.meaning} | {'true' if word is Retry.RESEND else 'false'} |"
    yield (
        "\n`queue_timeout` is the only `wait`: the caller's wait ended, and the job did not. `network` and "
        "`rate_limited` are errors of one call, so `resend` means that call: after a failed poll, poll again. After a "
        "failed submit with `details.may_run`, `retryable` is false, because the job may run already.\n"
    )
    yield errors_table(is_raised_by_client=False)
    yield "## Raised by the client\n"
    yield (
        "Caused by the platform, the network or a setting. Every exception has the same report as `.report`, and its "
        "retry word as `.report.retry`.\n"
    )
    yield errors_table(is_raised_by_client=True)


def errors_table(*, is_raised_by_client: bool) -> str:
    """Return a table of the error codes that the client raises, or of those that the worker reports."""
    rows = [
        f"| `{code.value}` | {code.retry.value} | {code.cause} | {code.remedy} | {code.details} |"
        for code in ErrorCode
        if code.is_raised_by_client == is_raised_by_client
    ]
    return "\n".join(["| code | retry | cause | remedy | details |", "|---|---|---|---|---|", *rows]) + "\n"
