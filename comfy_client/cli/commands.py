"""The commands that make pictures and follow jobs, as data: name, purpose, flags, and the function that does it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from comfy_client.cli import reference
from comfy_client.cli.call import INTERRUPTED, JSON, Call, Command, served
from comfy_client.cli.doctor import Finding, find_endpoint, find_picture, find_settings
from comfy_client.cli.flags import PICTURE, Flag, UsageError, input_flags, pair, value_of
from comfy_client.cli.results import save, status_object
from comfy_client.client import Job, make_request
from comfy_client.contract import ENVELOPE, JsonObject
from comfy_client.errors import ComfyClientError, ConfigError, JobError, missing_extra
from comfy_client.job import Done
from comfy_client.providers.interface import GenerationRequest, GenerationResult, JobOptions
from comfy_client.workflows import Workflow, find_workflow

OUTPUT = Flag(
    ("-o", "--output"),
    "Where the picture goes: a file, a folder, or - for stdout. Several get -1, -2 behind the name. "
    "Absent: this folder, under the workflow's name and the seed.",
    "FILE",
    {"default": "."},
)
WAIT = Flag(("--wait-timeout",), "Stop waiting after so long; the job goes on.", "SECONDS", {"type": float})
JOB = Flag(("job_id",), "The job's id, as `submit` prints it.")
OPTIONS = (
    Flag(("--execution-timeout",), "RunPod ends the job after so long.", "SECONDS", {"type": float}),
    Flag(("--ttl",), "RunPod forgets the job so long after its submit.", "SECONDS", {"type": float}),
    Flag(("--low-priority",), "Wait for all other jobs, and start no worker.", settings={"action": "store_true"}),
    Flag(("--webhook",), "An address that RunPod tells of the job's end.", "URL"),
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
    Flag(("--graph",), "A graph in ComfyUI's API format, in place of a workflow.", "FILE"),
    Flag(
        ("--image",),
        "The workflow's picture; for a graph, one that it loads by that name.",
        "[NAME=]PATH|URL",
        {"action": "append", "default": []},
    ),
    SET,
)


def commands(workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return all commands; the flags of txt2img and img2img are those of their workflows."""
    txt2img, img2img = (find_workflow(name, workflows).inputs for name in ("txt2img", "img2img"))
    prompt = Flag(("prompt",), txt2img["prompt"]["description"], "PROMPT")
    end = (*OPTIONS, WAIT, OUTPUT, JSON)
    return (
        Command(
            "txt2img", "make pictures of a prompt", [prompt, *input_flags(txt2img, ("prompt",)), SET, *end], _txt2img
        ),
        Command(
            "img2img",
            "make pictures from a picture and a prompt",
            [
                prompt,
                Flag(("--image",), img2img["image"]["description"], PICTURE, {"required": True}),
                *input_flags(img2img, ("prompt", "image")),
                SET,
                *end,
            ],
            _img2img,
        ),
        Command("run", "run a workflow by its name, or a graph", [*RUN, *end], _run),
        Command("submit", "start a job and print its id", [*RUN, *OPTIONS, JSON], _submit),
        Command("status", "show how a job stands", [JOB, JSON], _status),
        Command("wait", "wait for a job and save its pictures", [JOB, WAIT, OUTPUT, JSON], _wait),
        Command("cancel", "end a job", [JOB, JSON], _cancel),
        Command("health", "show the endpoint's workers and jobs", [JSON], _health),
        *reference.COMMANDS,
        Command(
            "doctor",
            "look for what is wrong: variables, address, key, endpoint, workers, models",
            [Flag(("--generate",), "Make a tiny picture too.", settings={"action": "store_true"}), JSON],
            _doctor,
        ),
        Command(
            "simulate",
            "serve a ComfyUI that needs no GPU; its flags are those of `comfy-client simulate --help`",
            [],
            _simulate,
        ),
    )


def _txt2img(call: Call) -> int:
    return _make(call, _request(call, "txt2img", {"prompt": call.options.prompt}))


def _img2img(call: Call) -> int:
    return _make(call, _request(call, "img2img", {"prompt": call.options.prompt, "image": call.options.image}))


def _run(call: Call) -> int:
    return _make(call, _run_request(call))


def _submit(call: Call) -> int:
    with call.client() as client:
        job = client.submit_request(_run_request(call))
        call.screen.show({"job_id": job.id}, job.id)
    return 0


def _request(call: Call, name: str, inputs: JsonObject) -> GenerationRequest:
    """Return the request of a command whose flags are the inputs of its workflow."""
    known = {*find_workflow(name, call.workflows).inputs, *ENVELOPE} - {"overrides", "images", "workflow"}
    given = {key: value for key, value in vars(call.options).items() if key in known and value is not None}
    return make_request(name, options=_options(call), **{**_overrides(call), **given, **inputs})


def _run_request(call: Call) -> GenerationRequest:
    """Return the request of `run` and `submit`. Raises ConfigError for a graph that cannot be read."""
    options = call.options
    if (options.graph is None) == (options.name is None):
        raise ConfigError("Name either a workflow (comfy-client run txt2img …) or a graph (--graph file.json)")
    if options.graph is not None:
        images = dict(pair(image) if "=" in image else (Path(image).name, image) for image in options.image)
        inputs = {key: value_of(text, ENVELOPE.get(key)) for key, text in options.pairs}
        graph = _read_graph(Path(options.graph))
        return make_request(graph, options=_options(call), **{**_overrides(call), **_images(images), **inputs})
    workflow = call.workflows.get(options.name) or _alias(call, options.name)
    rules = {**ENVELOPE, **(workflow.inputs if workflow else {})}
    inputs = {key: value_of(text, rules.get(key)) for key, text in options.pairs}
    picture = {"image": options.image[-1]} if options.image else {}
    return make_request(options.name, options=_options(call), **{**_overrides(call), **picture, **inputs})


def _alias(call: Call, name: str) -> Workflow | None:
    try:
        return find_workflow(name, call.workflows)
    except JobError:
        return None  # a workflow of the worker's own: it checks the name


def _images(images: Mapping[str, str]) -> JsonObject:
    return {"images": images} if images else {}


def _overrides(call: Call) -> JsonObject:
    overrides = {place: value_of(text) for place, text in call.options.overrides}
    return {"overrides": overrides} if overrides else {}


def _read_graph(file: Path) -> JsonObject:
    try:
        graph = json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"--graph {file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--graph {file} is not JSON: {error}") from error
    if not isinstance(graph, dict):
        raise ConfigError(f"--graph {file} holds no graph: export one with Workflow > Export (API)")
    return graph


def _options(call: Call) -> JobOptions:
    options = call.options
    return JobOptions(
        execution_timeout_s=options.execution_timeout,
        ttl_s=options.ttl,
        low_priority=options.low_priority,
        webhook=options.webhook,
    )


def _make(call: Call, request: GenerationRequest) -> int:
    """Run a job and save what it made. Ctrl-C cancels it and says so."""
    with call.client() as client:
        job = None
        try:
            with call.screen.bar() as bar:
                job = client.submit_request(request, is_followed=True)
                result = _followed(call, job, bar.show)
        except KeyboardInterrupt:
            return _interrupted(call, job)
        return save(call, result)


def _followed(call: Call, job: Job, show: Callable[..., None]) -> GenerationResult:
    for event in job.events(call.options.wait_timeout):
        show(event)
        if isinstance(event, Done):
            return event.result
    raise AssertionError("events end with Done, or raise")


def _interrupted(call: Call, job: Job | None) -> int:
    if job is None:
        message = "Interrupted while the job was sent: RunPod may have it, and nobody knows its id."
    else:
        try:
            job.cancel()
            message = f"Interrupted: job {job.id} was cancelled."
        except ComfyClientError as error:
            message = f"Interrupted, and job {job.id} could not be cancelled: {error}"
    call.screen.interrupted(message, job.id if job else None)
    return INTERRUPTED


def _status(call: Call) -> int:
    with call.client() as client:
        status = client.job(call.options.job_id).status()
    progress = status.progress
    percent = f", {progress.percent}% (step {progress.step} of {progress.steps})" if progress else ""
    problem = f": {status.error.message}" if status.error else ""
    call.screen.show(status_object(status), f"{status.job_id}  {status.state.value}{percent}{problem}")
    return 0


def _wait(call: Call) -> int:
    """Wait for a job that was sent before. Ctrl-C ends the wait alone, since another process may wait for it too."""
    with call.client() as client:
        job = client.job(call.options.job_id)
        try:
            with call.screen.bar() as bar:
                result = _followed(call, job, bar.show)
        except KeyboardInterrupt:
            call.screen.interrupted(
                f"Interrupted: job {job.id} goes on; `comfy-client cancel {job.id}` ends it.", job.id
            )
            return INTERRUPTED
        return save(call, result)


def _cancel(call: Call) -> int:
    with call.client() as client:
        job = client.job(call.options.job_id)
        job.cancel()
        state = job.status().state.value
    call.screen.show({"job_id": job.id, "state": state}, f"{job.id}  {state}")
    return 0


def _health(call: Call) -> int:
    with call.client() as client:
        health = client.health()
    value = {"jobs": dict(health.jobs), "workers": dict(health.workers), "why": health.why, "sentence": health.sentence}
    lines = [
        f"{kind}: {', '.join(f'{n} {state}' for state, n in counts.items())}"
        for kind, counts in (("workers", health.workers), ("jobs", health.jobs))
    ]
    call.screen.show(value, health.sentence, *lines)
    return 0


def _doctor(call: Call) -> int:
    findings = list(find_settings(call.environment))
    try:
        with call.client() as client:
            findings += find_endpoint(client)
            if call.options.generate and not any(finding.error for finding in findings):
                findings.append(find_picture(client))
    except ConfigError as error:
        if not any(finding.error for finding in findings):
            findings.append(Finding("variables", str(error), error))
    found = [{"what": each.what, "mark": each.mark, "sentence": each.sentence} for each in findings]
    failed = next((finding.error for finding in findings if finding.error), None)
    report = {"error": json.loads(failed.report.to_json())} if failed else {}
    call.screen.show(
        {"findings": found, **report}, *(f"{each.mark}  {each.what:11}{each.sentence}" for each in findings)
    )
    return failed.exit_status if failed else 0


def _simulate(call: Call) -> int:
    try:
        simulator = importlib.import_module("comfy_client.simulator.__main__")
    except ImportError as error:
        raise missing_extra("The simulator", "simulator") from error
    try:
        status: int = simulator.main(call.options.arguments, on_ready=lambda url: served(call, url))
    except SystemExit as ended:
        if not ended.code:  # --help
            raise
        if isinstance(ended.code, str):
            raise ConfigError(ended.code) from ended
        raise UsageError("The simulator was called in a wrong way; what it says of that stands on stderr") from ended
    return status
