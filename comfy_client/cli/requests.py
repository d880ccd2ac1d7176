"""Builds a request from command line arguments. Reads graph and image files, but sends nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from comfy_client.cli.call import Call
from comfy_client.cli.flags import Flag, UsageError, parse_pair, parse_seconds, value_of
from comfy_client.input_images import image_text
from comfy_client.providers.interface import GenerationRequest, JobOptions
from comfy_client.tasks import make_request
from comfy_core.contract import ENVELOPE, EXPORT_MENU, GRAPH_KEYS, JsonObject
from comfy_core.errors import ConfigError, JobError
from comfy_core.request.encoded import is_data_uri, is_url
from comfy_core.workflows import Workflow, find_workflow

JOB_OPTION_FLAGS = (
    Flag(
        ("--execution-timeout",),
        "Maximum run time on a worker; RunPod then stops the job.",
        "SECONDS",
        {"type": parse_seconds},
    ),
    Flag(
        ("--ttl",),
        "Seconds after submission at which RunPod deletes the job, finished or not.",
        "SECONDS",
        {"type": parse_seconds},
    ),
    Flag(
        ("--low-priority",),
        "Only run when no other job is queued; never start a worker for this job.",
        settings={"action": "store_true"},
    ),
    Flag(("--webhook",), "URL that RunPod calls when the job ends.", "URL"),
)
SET = Flag(
    ("--set",),
    'Set a value of the graph, such as --set "KSampler.seed=5". Can be repeated.',
    "NODE.INPUT=VALUE",
    {"action": "append", "default": [], "type": parse_pair, "dest": "overrides"},
)
RUN_FLAGS = (
    Flag(("name",), "The workflow's name; `comfy-client workflows` lists them.", "NAME", {"nargs": "?"}),
    Flag(
        ("-i", "--input"),
        "An input of the workflow, such as -i prompt=knight. Can be repeated.",
        "KEY=VALUE",
        {"action": "append", "default": [], "type": parse_pair, "dest": "pairs"},
    ),
    Flag(("--graph",), "Run the graph in this file (ComfyUI's API format) instead of a workflow.", "FILE"),
    Flag(
        ("--image",),
        "The workflow's start image. For a graph: an image that a LoadImage node uses; can be repeated.",
        "[NAME=]PATH|URL",
        {"action": "append", "default": []},
    ),
    SET,
)


def template_request(call: Call, name: str, inputs: JsonObject) -> GenerationRequest:
    """Return the request of a workflow's own command, whose flags are the inputs of the workflow."""
    workflow = find_workflow(name, call.workflows)
    known = {*workflow.inputs, *ENVELOPE} - {"overrides", "images", "workflow", "webhook"}
    given = {key: value for key, value in vars(call.options).items() if key in known and value is not None}
    given = _with_images(given, workflow)
    return make_request(name, options=_options(call), **{**_overrides(call), **given, **inputs})


def run_request(call: Call) -> GenerationRequest:
    """Return the request of `run` or `submit`.

    Raises UsageError, ConfigError if the graph cannot be read, and JobError (invalid_image) if an image cannot be read.
    """
    options = call.options
    if (options.graph is None) == (options.name is None):
        raise UsageError("give either a workflow (comfy-client run txt2img …) or a graph (--graph file.json)")
    pairs = _unique("-i", options.pairs)
    if options.graph is not None:
        images = {"images": images} if (images := _unique("--image", map(_named_image, options.image))) else {}
        known = {**ENVELOPE, **GRAPH_KEYS}
        if unknown := next((key for key in pairs if key not in known), ""):
            raise UsageError(
                f"-i {unknown}: a graph has no such input. Set values of the graph with --set NODE.INPUT=VALUE"
            )
        inputs = {key: value_of(text, known[key]) for key, text in pairs.items()}
        graph = _read_graph(Path(options.graph))
        return make_request(graph, options=_options(call), **{**_overrides(call), **images, **inputs})
    workflow = _find_known_workflow(call, options.name)
    rules = {**ENVELOPE, **(workflow.inputs if workflow else {})}
    inputs = {key: value_of(text, rules.get(key)) for key, text in pairs.items()}
    _unique("--image", [("", image) for image in options.image], *([("", "")] if "image" in inputs else []))
    inputs = _with_images(inputs, workflow) if workflow else inputs
    image = {"image": options.image[0]} if options.image else {}
    return make_request(options.name, options=_options(call), **{**_overrides(call), **image, **inputs})


def _with_images(inputs: JsonObject, workflow: Workflow) -> JsonObject:
    """Return the inputs with the text of each image. Raises JobError (invalid_image) if a file cannot be read."""
    images = {*workflow.image_inputs} - {"image"}  # make_request reads `image`
    return {name: image_text(value, name) if name in images else value for name, value in inputs.items()}


def _named_image(text: str) -> tuple[str, str]:
    """Return the name and the source of `NAME=SOURCE`, or of a source without a name. A URL may contain `=`."""
    name, equals, _ = text.partition("=")
    if is_url(name) or is_data_uri(name) or not equals:
        return Path(urlsplit(text).path if is_url(text) else text).name, text
    return parse_pair(text)


def _unique(flag: str, pairs: Iterable[tuple[str, str]], *more: tuple[str, str]) -> dict[str, str]:
    """Return the pairs as a mapping. Raises UsageError if a name is given twice."""
    given: dict[str, str] = {}
    for name, value in (*pairs, *more):
        if name in given:
            twice = f"{flag} {name}=" if name else f"{flag} takes one image, and it"
            raise UsageError(f"{twice} is given twice. Nothing was sent")
        given[name] = value
    return given


def _find_known_workflow(call: Call, name: str) -> Workflow | None:
    """Return a workflow, or None if only the worker may have it. Raises UsageError if `name` is a file."""
    try:
        return find_workflow(name, call.workflows)
    except JobError:
        if name.lower().endswith(".json") or Path(name).is_file():
            raise UsageError(f"{name!r} is a file. To run a graph, use --graph {name}") from None
        return None


def _overrides(call: Call) -> JsonObject:
    overrides = {place: value_of(text) for place, text in _unique("--set", call.options.overrides).items()}
    return {"overrides": overrides} if overrides else {}


def _read_graph(file: Path) -> JsonObject:
    try:
        graph = json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"--graph {file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--graph {file} is not valid JSON: {error}") from error
    if not isinstance(graph, dict):
        raise ConfigError(f"--graph {file} does not have a graph. Export one with {EXPORT_MENU}")
    return graph


def one_image(images: list[str]) -> str:
    """Return the value of `--image`. Raises UsageError if it was given more than once."""
    _unique("--image", [("", image) for image in images])
    return images[0]


def _options(call: Call) -> JobOptions:
    options: Mapping[str, object] = vars(call.options)
    return JobOptions(
        execution_timeout_s=call.options.execution_timeout,
        ttl_s=call.options.ttl,
        low_priority=bool(options["low_priority"]),
        webhook=call.options.webhook,
    )
