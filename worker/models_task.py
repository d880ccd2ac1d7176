"""Runs a job of the task `models`: lists, downloads or deletes model files, without ComfyUI's queue and without GPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from comfy_core.contract import Fault, JsonObject
from comfy_core.errors import RequestError, invalid_input
from comfy_core.models.actions import run_action
from comfy_core.models.address_cache import CACHE_FOLDER
from comfy_core.models.address_fetcher import JobHooks
from comfy_core.models.folders import search_paths
from comfy_core.models.listing import default_list, read_models
from comfy_core.models.store import ModelStore
from comfy_core.phase_deadline import PhaseDeadline, ignoring_comfyui_death
from comfy_core.request.models_task import DOWNLOAD, LIST, ModelsRequest, read_models_request
from worker.jobs import Control, Worker, job_cost
from worker.models.locations import cache_directory, model_roots
from worker.settings import Settings


def model_store(settings: Settings) -> ModelStore | None:
    """Return the worker's model files, or None if ComfyUI's folders are not known."""
    data, directory = settings.comfyui_data_directory, settings.comfyui_directory
    if data is None:
        return None
    links = data / "models"
    cache = cache_directory(links, settings.volume_directory)
    listed = read_models(default_list())
    if not settings.comfyui_is_ours or directory is None:  # which other folders this ComfyUI searches is not known
        return ModelStore(partial(search_paths, (links,)), links, cache / CACHE_FOLDER, listed)
    models, volume = settings.models_directory, settings.volume_directory
    roots = model_roots(comfyui=directory, data=data, models=models, volume=volume)
    return ModelStore(partial(search_paths, (*roots, cache)), cache, cache / CACHE_FOLDER, listed)


def run_models_task(worker: Worker, job: Mapping[str, Any], control: Control) -> JsonObject:
    """Run the job, given as RunPod's SDK passes it, and return its result (docs/api.md). Raises JobError."""
    begun_at = time.monotonic()
    request = read_models_request(job.get("input"))
    _require_permission(worker, request)
    if worker.store is None:
        raise invalid_input(
            [
                Fault(
                    "task",
                    "models needs ComfyUI's folders, and this worker has only the URL of a ComfyUI: set its "
                    "COMFYUI_DATA_DIR to that ComfyUI's base folder",
                )
            ]
        )
    if request.action == DOWNLOAD and worker.models is None:
        raise invalid_input([Fault("action", "is download, which this worker refuses: WORKER_MODEL_LIMIT_GB is 0")])
    limit_s = min(request.timeout_s or worker.settings.job_timeout_s, worker.settings.job_timeout_s)
    stop_error = ignoring_comfyui_death(control.stop_error)
    deadline = PhaseDeadline(stop_error, begun_at, begun_at + limit_s, request.unfinished)
    result = run_action(worker.store, worker.models, request, JobHooks(deadline.check, control.observe))
    if request.action == LIST:
        result["cache_limit_bytes"] = worker.settings.model_limit_bytes
    return _with_cost(worker, result, time.monotonic() - begun_at)


def _require_permission(worker: Worker, request: ModelsRequest) -> None:
    if request.action != LIST and not worker.settings.allow_model_changes:
        problem = f"is {request.action}, and this worker only lists its models (WORKER_ALLOW_MODEL_CHANGES is false)"
        raise invalid_input([Fault("action", problem)])
    if request.webhook is not None and (faults := worker.settings.webhooks.faults(request.webhook)):
        raise invalid_input(faults)


def _with_cost(worker: Worker, result: JsonObject, total_s: float) -> JsonObject:
    """Return the result with its time and cost. `queue_s` is 0: the job does not wait for ComfyUI."""
    try:
        gpu = worker.server.system().gpu
    except RequestError:  # ComfyUI is not needed otherwise
        gpu = None
    result |= {"gpu": gpu, "timings": {"queue_s": 0.0, "total_s": round(total_s, 4)}}
    return {**result, "cost": job_cost(worker.settings, result)}
