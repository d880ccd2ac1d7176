"""Runs one job: read the request, fetch its images, render and run the graphs, deliver the outputs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import comfy_core
from comfy_core.comfyui.outputs import JobOutput, JobOutputs, job_outputs
from comfy_core.comfyui.prompt_monitor import Observe, WaitLimits
from comfy_core.comfyui.run import Hooks, RunResult, run_graphs
from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import Fault, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, invalid_input
from comfy_core.models.address_fetcher import JobHooks
from comfy_core.models.store import ModelStore
from comfy_core.object_store import Bucket, ObjectStore
from comfy_core.phase_deadline import PhaseDeadline, ignoring_comfyui_death
from comfy_core.prices import busy_s, job_usd
from comfy_core.request import intake
from comfy_core.request.reading import read_request
from comfy_core.request.rendering import Rendered, Request
from comfy_core.safe_connection import FetchRules
from comfy_core.workflows import Workflow
from worker.job_bucket import job_bucket
from worker.job_models import ModelFetcher, placed_models
from worker.job_record import JobNotes
from worker.png import start_encoding
from worker.result_packer import ResultPacker
from worker.settings import Settings
from worker.webhooks import Webhooks

log = logging.getLogger(__name__)

PackResult: TypeAlias = Callable[[JobOutputs, JsonObject], tuple[list[JsonObject], list[JsonObject]]]
"""Returns the entries for a job's images and other files, given the outputs and the rest of the result."""


@dataclass(frozen=True)
class Worker:
    """Configuration and connections shared by all jobs of this process."""

    server: ComfyServer
    workflows: Mapping[str, Workflow]
    settings: Settings
    fetch_rules: FetchRules = field(default_factory=FetchRules)
    models: ModelFetcher | None = None
    store: ModelStore | None = None
    """The model files of the worker's folders; None if the folders are not known."""
    min_store_s: float = 15.0
    """Minimum seconds that a job has for storing its results, even after its deadline: the GPU work is already done."""
    webhooks: Webhooks = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "webhooks", Webhooks(self.settings.webhooks, self.settings.job_timeout_s))


@dataclass(frozen=True)
class Control:
    """Hooks for one job.

    Attributes:
        stop_error: returns the error if the job must end now, for example because it was cancelled.
        observe: called with the job's progress.
        ticket: entered while the job queues its prompts, so that jobs queue them in order of arrival.
        note_run: called when all prompts have finished.
        set_aside: returns a context in which the job waits for something else than its turn, so that jobs that arrived
            later can queue their prompts.
        notes: gets the job's workflow and models.
    """

    stop_error: Callable[[], JobError | None] = lambda: None
    observe: Observe = lambda _: None
    ticket: AbstractContextManager[object] = field(default_factory=nullcontext)
    note_run: Callable[[], None] = lambda: None
    set_aside: Callable[[], AbstractContextManager[object]] = nullcontext
    notes: JobNotes = field(default_factory=JobNotes)


def run_job(worker: Worker, job: Mapping[str, Any], control: Control) -> JsonObject:
    """Run a job, given as RunPod's SDK passes it, and return its result (docs/api.md). Raises JobError."""
    begun_at, settings = time.monotonic(), worker.settings
    request = read_request(job.get("input"), worker.workflows)
    bucket = _permitted_bucket(worker, request, job)
    timeout_s = min(request.timeout_s or settings.job_timeout_s, settings.job_timeout_s)
    intake_deadline = PhaseDeadline(
        control.stop_error, begun_at, begun_at + timeout_s, "its input images were not fetched and decoded"
    )
    rendered = intake.render_request(request, worker.fetch_rules, intake_deadline.check)
    control.notes.workflow = rendered.workflow
    log.info("%s, %d prompts, %d input images", rendered.workflow, len(rendered.graphs), len(rendered.uploads))
    limits = WaitLimits(timeout_s=timeout_s, queue_timeout_s=settings.job_timeout_s)
    hooks = Hooks(control.observe, control.ticket, start_encoding)
    models_deadline = replace(intake_deadline, unfinished="its models were not downloaded")
    model_hooks = JobHooks(models_deadline.check, control.observe, control.set_aside)
    models_begun_at = time.monotonic()
    with placed_models(worker.models, worker.server, rendered, request.model_tokens, model_hooks) as placed:
        models_s = time.monotonic() - models_begun_at
        with worker.store.held(placed.graphs) if worker.store else nullcontext() as models:
            control.notes.models = models
            run = run_graphs(
                worker.server, placed.graphs, rendered.uploads, limits, control.stop_error, hooks, rendered.extra_data
            )
    rendered = placed.rendered
    control.note_run()
    encode_begun_at = time.monotonic()
    started_at = encode_begun_at - run.execute_s - run.fetch_s
    # The outputs have been fetched, so the death of ComfyUI no longer affects this job.
    stop_error = ignoring_comfyui_death(control.stop_error)
    encode_deadline = PhaseDeadline(stop_error, started_at, math.inf, "its images were not encoded")
    store_deadline = PhaseDeadline(
        stop_error, started_at, started_at + timeout_s, "the results were not all uploaded to the bucket"
    )

    def deliver(outputs: JobOutputs, other_fields: JsonObject) -> tuple[list[JsonObject], list[JsonObject]]:
        check = store_deadline.at_least(worker.min_store_s).check
        delivery = _result_packer(worker, request, bucket, str(job.get("id", "unknown")), check)
        return delivery.entries(outputs.images, outputs.files, other_fields)

    result = _result(worker, request, rendered, run, encode_deadline.check, deliver)
    ended_at = time.monotonic()
    result["timings"] = {
        **({"models_s": round(models_s, 4)} if placed.has_models else {}),
        "queue_s": round(run.queue_s, 4),
        "execute_s": round(run.execute_s, 4),
        "fetch_s": round(run.fetch_s, 4),
        "encode_s": round(ended_at - encode_begun_at, 4),
        "total_s": round(ended_at - begun_at, 4),
    }
    result["cost"] = job_cost(settings, result)
    return result


def job_cost(settings: Settings, result: JsonObject) -> float | None:
    """Return the cost of a result in US dollars. None if nothing is paid, or the price is unknown."""
    usd_per_s, seconds = settings.usd_per_s(result["gpu"]), busy_s(result["timings"])
    return None if usd_per_s is None or seconds is None else job_usd(seconds, usd_per_s)


def _permitted_bucket(worker: Worker, request: Request, job: Mapping[str, Any]) -> Bucket | None:
    """Return the job's bucket, if any. Raises JobError if the job requests what this worker does not allow."""
    faults = []
    if request.has_own_graph and not worker.settings.allow_graphs:
        known = ", ".join(sorted(worker.workflows))
        faults.append(Fault("workflow", f"is a custom graph, which this worker does not accept; use one of {known}"))
    bucket, found = job_bucket(job.get("s3Config"), worker.settings.bucket)
    faults += found
    if request.webhook is not None:
        faults += worker.settings.webhooks.faults(request.webhook)
    if request.delivery == "s3" and bucket is None and not found:
        faults.append(Fault("delivery", "is s3, but this worker has no bucket; send s3Config, or use auto"))
    if faults:
        raise invalid_input(faults)
    return bucket


def _result_packer(
    worker: Worker, request: Request, bucket: Bucket | None, job_id: str, check: Callable[[], None]
) -> ResultPacker:
    limit, fields = worker.settings.max_result_bytes, worker.settings.image_fields
    if bucket is None:
        return ResultPacker(request.delivery, limit, None, fields)
    store = ObjectStore(bucket)

    def put(output: JobOutput) -> str:
        return store.put(f"{job_id}/{output.filename}", output.data, output.mime_type, check)

    return ResultPacker(request.delivery, limit, put, fields)


def _result(
    worker: Worker,
    request: Request,
    rendered: Rendered,
    run: RunResult,
    check: Callable[[], None],
    deliver: PackResult,
) -> JsonObject:
    """Return the job's result. If it is too large, create it again without metadata in the image files."""
    try:
        return _packed_result(worker, rendered, run, job_outputs(request, rendered, run.prompts, check), deliver)
    except JobError as error:
        if error.code is not ErrorCode.OUTPUT_TOO_LARGE or not request.metadata:
            raise
        outputs = job_outputs(replace(request, metadata=False), rendered, run.prompts, check)
        warning = "metadata was removed from the files, because the result would have been too large with it"
        smaller = replace(outputs, warnings=(*outputs.warnings, warning))
        return _packed_result(worker, rendered, run, smaller, deliver)


def _packed_result(
    worker: Worker,
    rendered: Rendered,
    run: RunResult,
    outputs: JobOutputs,
    deliver: PackResult,
) -> JsonObject:
    system = worker.server.system()
    result: JsonObject = {
        "workflow": rendered.workflow,
        "inputs": rendered.inputs,
        "seed": rendered.seeds[0],
        "prompt_ids": [prompt.prompt_id for prompt in run.prompts],
        "warnings": [*rendered.warnings, *run.warnings, *outputs.warnings],
        "versions": {
            "worker": comfy_core.__version__,
            "comfyui": system.version,
            "workflow": rendered.version,
        },
        "gpu": system.gpu,
    }
    if texts := [text for prompt in run.prompts for text in prompt.texts]:
        result["texts"] = texts
    images, files = deliver(outputs, result)
    return {"images": images, **({"files": files} if files else {}), **result}
