"""The commands that start jobs (one for each aliased workflow, run, submit), and health."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping

from comfy_client.cli.call import JSON, STREAM, Call, Command
from comfy_client.cli.flags import PICTURE, Flag, input_flags
from comfy_client.cli.following import WAIT_TIMEOUT, cancel_interrupted, run_and_save, submission_of
from comfy_client.cli.output import FORCE, OUTPUT
from comfy_client.cli.requests import JOB_OPTION_FLAGS, RUN_FLAGS, SET, one_image, run_request, template_request
from comfy_client.cli.tables import Column, table_lines
from comfy_client.cli.terminal_images import SHOW
from comfy_core.contract import ALIASES
from comfy_core.workflows import Workflow, find_workflow

IMAGE = Flag(
    ("--image",),
    "Path or https URL of the start image: PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF, at most 25 MB and 64 megapixels.",
    PICTURE,
    {"required": True, "action": "append"},
)


_WAITING_FLAGS = (*JOB_OPTION_FLAGS, WAIT_TIMEOUT, OUTPUT, FORCE, SHOW, JSON, STREAM)
"""The flags of a command that runs a job and saves its images."""


def commands(workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the commands. The flags of the commands of workflows are derived from the inputs of the workflows."""
    return (
        *(_workflow_command(name, find_workflow(name, workflows)) for name in ALIASES),
        Command("run", [*RUN_FLAGS, *_WAITING_FLAGS], _run),
        Command("submit", [*RUN_FLAGS, *JOB_OPTION_FLAGS, JSON], _submit),
        Command("health", [JSON], _health),
    )


def _workflow_command(name: str, workflow: Workflow) -> Command:
    """Return the command of a workflow. Its prompt is an argument, and --image is required if the workflow has it."""
    is_optional = "prompt" not in workflow.schema.get("required", [])
    description = f"{workflow.inputs['prompt'].get('description', '')} `-` stands for stdin.".strip()
    prompt = Flag(("prompt",), description, "PROMPT", {"nargs": "?"} if is_optional else {})
    image = [IMAGE] if "image" in workflow.inputs else []
    flags = [prompt, *image, *input_flags(workflow.inputs, ("prompt", "image")), SET, *_WAITING_FLAGS]
    return Command(name, flags, functools.partial(_run_workflow, name))


def _run_workflow(name: str, call: Call) -> int:
    image = {"image": one_image(call.options.image)} if "image" in vars(call.options) else {}
    prompt = sys.stdin.read().strip() if call.options.prompt == "-" else call.options.prompt
    return run_and_save(call, template_request(call, name, {"prompt": prompt, **image}))


def _run(call: Call) -> int:
    return run_and_save(call, run_request(call))


def _submit(call: Call) -> int:
    with call.client() as client:
        submission = submission_of(client, run_request(call))
        try:
            job = submission.run()
            call.screen.show({"job_id": job.id}, job.id)
        except KeyboardInterrupt as interrupt:
            return cancel_interrupted(call, submission, interrupt)
    return 0


def _health(call: Call) -> int:
    with call.client() as client:
        health = client.health()
    value = {"jobs": dict(health.jobs), "workers": dict(health.workers), "why": health.why, "sentence": health.sentence}
    rows = [
        (f"{kind}:", ", ".join(f"{n} {state}" for state, n in counts.items()))
        for kind, counts in (("workers", health.workers), ("jobs", health.jobs))
    ]
    columns = (Column(), Column(is_prose=True))
    call.screen.show(value, health.sentence, *table_lines(call.screen, columns, rows))
    return 0
