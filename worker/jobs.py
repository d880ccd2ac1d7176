"""The story of one job: read the request, render its graphs, run them, make the result."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import comfy_client
from comfy_client.comfyui.follow import Limits
from comfy_client.comfyui.run import run_graphs
from comfy_client.comfyui.server import ComfyServer
from comfy_client.contract import MAX_SEED, JsonObject
from comfy_client.errors import JobError
from comfy_client.request import read_request
from comfy_client.workflows import Workflow
from worker.outputs import file_entries, image_entries

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worker:
    """What every job of this process shares."""

    server: ComfyServer
    workflows: Mapping[str, Workflow]
    job_timeout_s: float


def run_job(worker: Worker, job_id: str, job_input: object, stop: Callable[[], JobError | None]) -> JsonObject:
    """Return the result of a job (docs/api.md). Raises JobError with the report for the caller.

    `stop` is asked ten times a second; the error that it returns ends the job, and its prompts with it.
    """
    begun_at = time.monotonic()
    request = read_request(job_input, worker.workflows)
    rendered = request.render(lambda: secrets.randbelow(MAX_SEED + 1))
    log.info("job %s: %s, %d prompts", job_id, rendered.workflow, len(rendered.graphs))
    timeout_s = min(request.timeout_s or worker.job_timeout_s, worker.job_timeout_s)
    limits = Limits(timeout_s=timeout_s, queue_timeout_s=worker.job_timeout_s)
    run = run_graphs(worker.server, rendered.graphs, rendered.uploads, limits, stop)
    encode_from = time.monotonic()
    result: JsonObject = {
        "images": image_entries(request, rendered, run.prompts),
        "workflow": rendered.workflow,
        "inputs": rendered.inputs,
        "seed": rendered.seeds[0],
        "prompt_ids": [prompt.prompt_id for prompt in run.prompts],
        "warnings": list(rendered.warnings),
        "versions": {
            "worker": comfy_client.__version__,
            "comfyui": worker.server.version(),
            "workflow": rendered.version,
        },
    }
    if files := list(file_entries(run.prompts)):
        result["files"] = files
    if texts := [text for prompt in run.prompts for text in prompt.texts]:
        result["texts"] = texts
    ended_at = time.monotonic()
    result["timings"] = {
        "queue_s": round(run.queue_s, 4),
        "execute_s": round(run.execute_s, 4),
        "fetch_s": round(run.fetch_s, 4),
        "encode_s": round(ended_at - encode_from, 4),
        "total_s": round(ended_at - begun_at, 4),
    }
    log.info("job %s: done in %.2f s", job_id, ended_at - begun_at)
    return result
