"""The arguments of a command as a request. Files are read; nothing is sent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from comfy_client.cli.call import Call
from comfy_client.cli.flags import Flag, UsageError, pair, seconds, value_of
from comfy_client.client import make_request
from comfy_client.providers.interface import GenerationRequest, JobOptions
from comfy_core.contract import ENVELOPE, EXPORT_MENU, GRAPH_KEYS, JsonObject
from comfy_core.errors import ConfigError, JobError
from comfy_core.workflows import Workflow, find_workflow

OPTIONS = (
    Flag(("--execution-timeout",), "RunPod ends the job after this time on a worker.", "SECONDS", {"type": seconds}),
    Flag(
        ("--ttl",), "RunPod drops the job, finished or not, this long after submission.", "SECONDS", {"type": seconds}
    ),
    Flag(
        ("--low-priority",),
        "Run only when nothing else is queued; never starts a worker.",
        settings={"action": "store_true"},
    ),
    Flag(("--webhook",), "RunPod calls this address when the job ends.", "URL"),
)
SET = Flag(
    ("--set",),
    'Set a value of the graph, as in --set "KSampler.seed=5".',
    "NODE.INPUT=VALUE",
    {"action": "append", "default": [], "type": pair, "dest": "overrides"},
)
RUN = (
    Flag(("name",), "The workflow's name; `comfy-client workflows` lists them.", "NAME", {"nargs": "?"}),
    Flag(
        ("-i", "--input"),
        "An input of the workflow, as in -i prompt=knight.",
        "KEY=VALUE",
        {"action": "append", "default": [], "type": pair, "dest": "pairs"},
    ),
    Flag(("--graph",), "Run the graph in this file (ComfyUI's API format) instead of a workflow.", "FILE"),
    Flag(
        ("--image",),
        "The workflow's start picture. For a graph: a picture that a LoadImage node names; may be repeated.",
        "[NAME=]PATH|URL",
        {"action": "append", "default": []},
    ),
    SET,
)


def template_request(call: Call, name: str, inputs: JsonObject) -> GenerationRequest:
    """Return the request of a command whose flags are the inputs of its workflow."""
    known = {*find_workflow(name, call.workflows).inputs, *ENVELOPE} - {"overrides", "images", "workflow"}
    given = {key: value for key, value in vars(call.options).items() if key in known and value is not None}
    return make_request(name, options=_options(call), **{**_overrides(call), **given, **inputs})


def run_request(call: Call) -> GenerationRequest:
    """Return the request of `run` and `submit`. Raises UsageError, and ConfigError for a graph that cannot be read."""
    options = call.options
    if (options.graph is None) == (options.name is None):
        raise UsageError("name either a workflow (comfy-client run txt2img …) or a graph (--graph file.json)")
    pairs = _once("-i", options.pairs)
    if options.graph is not None:
        named = [pair(image) if "=" in image else (Path(image).name, image) for image in options.image]
        images = {"images": images} if (images := _once("--image", named)) else {}
        known = {**ENVELOPE, **GRAPH_KEYS}
        if unknown := next((key for key in pairs if key not in known), ""):
            raise UsageError(
                f"-i {unknown}: a graph has no inputs of that kind; set its values with --set NODE.INPUT=VALUE"
            )
        inputs = {key: value_of(text, known[key]) for key, text in pairs.items()}
        graph = _read_graph(Path(options.graph))
        return make_request(graph, options=_options(call), **{**_overrides(call), **images, **inputs})
    workflow = _known(call, options.name)
    rules = {**ENVELOPE, **(workflow.inputs if workflow else {})}
    inputs = {key: value_of(text, rules.get(key)) for key, text in pairs.items()}
    _once("--image", [("", image) for image in options.image], *([("", "")] if "image" in inputs else []))
    picture = {"image": options.image[0]} if options.image else {}
    return make_request(options.name, options=_options(call), **{**_overrides(call), **picture, **inputs})


def _once(flag: str, pairs: Iterable[tuple[str, str]], *more: tuple[str, str]) -> dict[str, str]:
    """Return the pairs as a mapping. Raises UsageError for a name that is given twice: no value is dropped."""
    given: dict[str, str] = {}
    for name, value in (*pairs, *more):
        if name in given:
            twice = f"{flag} {name}=" if name else f"{flag} takes one picture, and it"
            raise UsageError(f"{twice} is given twice. Nothing was sent")
        given[name] = value
    return given


def _known(call: Call, name: str) -> Workflow | None:
    """Return the workflow of that name, or None for one that the worker alone may have. UsageError for a file."""
    try:
        return find_workflow(name, call.workflows)
    except JobError:
        if name.lower().endswith(".json") or Path(name).is_file():
            raise UsageError(f"{name!r} is a file. A graph is run with --graph {name}") from None
        return None


def _overrides(call: Call) -> JsonObject:
    overrides = {place: value_of(text) for place, text in _once("--set", call.options.overrides).items()}
    return {"overrides": overrides} if overrides else {}


def _read_graph(file: Path) -> JsonObject:
    try:
        graph = json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"--graph {file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--graph {file} is not JSON: {error}") from error
    if not isinstance(graph, dict):
        raise ConfigError(f"--graph {file} holds no graph: export one with {EXPORT_MENU}")
    return graph


def one_picture(images: list[str]) -> str:
    """Return the only picture of `--image`. Raises UsageError for several."""
    _once("--image", [("", image) for image in images])
    return images[0]


def _options(call: Call) -> JobOptions:
    options: Mapping[str, object] = vars(call.options)
    return JobOptions(
        execution_timeout_s=call.options.execution_timeout,
        ttl_s=call.options.ttl,
        low_priority=bool(options["low_priority"]),
        webhook=call.options.webhook,
    )
