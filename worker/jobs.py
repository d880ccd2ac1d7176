"""The story of one job: read the request, fetch its pictures, render its graphs, run them, deliver what they made."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import comfy_client
from comfy_client.buckets import Bucket, store
from comfy_client.comfyui.follow import Limits, Observe
from comfy_client.comfyui.outputs import Output, encoded_images, other_files
from comfy_client.comfyui.run import Hooks, RunResult, run_graphs
from comfy_client.comfyui.server import ComfyServer
from comfy_client.contract import MAX_SEED, ErrorCode, Fault, JsonObject
from comfy_client.errors import JobError, invalid_input
from comfy_client.fetch import FetchRules, fetch_picture
from comfy_client.request import Rendered, Request, read_request
from comfy_client.workflows import Workflow
from worker.outputs import Delivery
from worker.storage import job_bucket

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worker:
    """What every job of this process shares."""

    server: ComfyServer
    workflows: Mapping[str, Workflow]
    job_timeout_s: float
    max_result_bytes: int
    allow_graphs: bool = True
    image_fields: tuple[str, ...] = ("data",)
    """The keys that hold an image's base64 or address."""
    bucket: Bucket | None = None
    fetch_rules: FetchRules = field(default_factory=FetchRules)
    store_s: float = 15.0
    """What a job has to store its results at least, however late it is: the GPU has done its part by then."""


@dataclass(frozen=True)
class Control:
    """One job's strings: what ends it early, who is told how far it is, and its turn to queue its prompts."""

    stop: Callable[[], JobError | None] = lambda: None
    observe: Observe = lambda _: None
    turn: AbstractContextManager[object] = field(default_factory=nullcontext)


def run_job(worker: Worker, job: Mapping[str, Any], control: Control) -> JsonObject:
    """Return the result (docs/api.md) of a job as RunPod's SDK hands it over. Raises JobError with its report."""
    begun_at = time.monotonic()
    job_id = str(job.get("id", "unknown"))
    request = read_request(job.get("input"), worker.workflows)
    bucket = _check_permitted(worker, request, job)
    request = request.with_fetched(lambda url, path: fetch_picture(url, path, worker.fetch_rules))
    rendered = request.render(lambda: secrets.randbelow(MAX_SEED + 1))
    log.info("%s, %d prompts, %d pictures in", rendered.workflow, len(rendered.graphs), len(rendered.uploads))
    timeout_s = min(request.timeout_s or worker.job_timeout_s, worker.job_timeout_s)
    limits = Limits(timeout_s=timeout_s, queue_timeout_s=worker.job_timeout_s)
    hooks = Hooks(control.observe, control.turn)
    run = run_graphs(worker.server, rendered.graphs, rendered.uploads, limits, control.stop, hooks)
    encode_from = time.monotonic()
    timed = _Timed(control.stop, encode_from - run.execute_s - run.fetch_s, timeout_s, encode_from + worker.store_s)
    result = _result(worker, request, rendered, run, _delivery(worker, request, bucket, job_id, timed.check))
    ended_at = time.monotonic()
    result["timings"] = {
        "queue_s": round(run.queue_s, 4),
        "execute_s": round(run.execute_s, 4),
        "fetch_s": round(run.fetch_s, 4),
        "encode_s": round(ended_at - encode_from, 4),
        "total_s": round(ended_at - begun_at, 4),
    }
    return result


@dataclass(frozen=True)
class _Timed:
    """The ends of a job whose prompts have run, while its results are stored."""

    stop: Callable[[], JobError | None]
    started_at: float
    timeout_s: float
    earliest_end_at: float

    def check(self) -> None:
        """Raise the JobError that ends it, if there is one."""
        error = self.stop()
        # A ComfyUI that dies now takes nothing of this job with it.
        if error is not None and error.code is not ErrorCode.COMFYUI_UNAVAILABLE:
            raise error
        now = time.monotonic()
        if now > max(self.started_at + self.timeout_s, self.earliest_end_at):
            after_s = now - self.started_at
            raise JobError.because(
                ErrorCode.DEADLINE_EXCEEDED,
                f"After {after_s:.1f} s the bucket had not taken all results. Allow more time, or ask for fewer or "
                "smaller pictures, or for delivery base64.",
                after_s=round(after_s, 1),
            )


def _check_permitted(worker: Worker, request: Request, job: Mapping[str, Any]) -> Bucket | None:
    """Return the bucket that the job may use. Raises JobError where it asks for what this worker does not do."""
    faults = []
    if request.template is None and not worker.allow_graphs:
        known = ", ".join(sorted(worker.workflows))
        faults.append(Fault("workflow", f"is a graph of your own, which this worker does not take; use one of {known}"))
    bucket, found = job_bucket(job.get("s3Config"), worker.bucket)
    faults += found
    if request.delivery == "s3" and bucket is None and not found:
        faults.append(Fault("delivery", "asks for s3, and this worker has no bucket; send s3Config, or use auto"))
    if faults:
        raise invalid_input(faults)
    return bucket


def _delivery(
    worker: Worker, request: Request, bucket: Bucket | None, job_id: str, check: Callable[[], None]
) -> Delivery:
    if bucket is None:
        return Delivery(request.delivery, worker.max_result_bytes, None, worker.image_fields)
    client = cache(bucket.client)  # made only where something is stored

    def put(output: Output) -> str:
        return store(client(), bucket, f"{job_id}/{output.filename}", output.data, output.mime_type, check)

    return Delivery(request.delivery, worker.max_result_bytes, put, worker.image_fields)


def _result(worker: Worker, request: Request, rendered: Rendered, run: RunResult, delivery: Delivery) -> JsonObject:
    made_images = encoded_images(request, rendered, run.prompts)
    result: JsonObject = {
        "workflow": rendered.workflow,
        "inputs": rendered.inputs,
        "seed": rendered.seeds[0],
        "prompt_ids": [prompt.prompt_id for prompt in run.prompts],
        "warnings": [*rendered.warnings, *run.warnings],
        "versions": {
            "worker": comfy_client.__version__,
            "comfyui": worker.server.version(),
            "workflow": rendered.version,
        },
    }
    if texts := [text for prompt in run.prompts for text in prompt.texts]:
        result["texts"] = texts
    images, files = delivery.entries(made_images, list(other_files(run.prompts)), result)
    return {"images": images, **({"files": files} if files else {}), **result}
