"""Runs a job of the task `models`: lists, downloads or deletes model files, without ComfyUI's queue and without GPU."""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

from comfy_core.comfyui.model_inputs import FETCHED_FOLDER
from comfy_core.contract import Fault, JsonObject
from comfy_core.errors import RequestError, invalid_input
from comfy_core.models.address_cache import CACHE_FOLDER, remove_unless_used
from comfy_core.models.listing import default_list, read_models
from comfy_core.models.store import ModelStore, StoredModel
from comfy_core.request.models_task import DELETE, LIST, MODELS_TASK, ModelsRequest, read_models_request
from comfy_core.validation import nearest
from worker.job_models import JobHooks, ModelFetcher, leased_models
from worker.jobs import Control, Worker, job_cost
from worker.models.locations import cache_directory, model_roots
from worker.phase_deadline import PhaseDeadline, ignoring_comfyui_death
from worker.settings import Settings

MAX_LISTED = 5_000
"""Maximum number of files in a list, which then has about 1.5 MB."""

log = logging.getLogger(__name__)


def model_store(settings: Settings) -> ModelStore | None:
    """Return the worker's model files, or None if ComfyUI's folders are not known."""
    data, directory = settings.comfyui_data_directory, settings.comfyui_directory
    if data is None:
        return None
    links = data / "models"
    cache = cache_directory(links, settings.volume_directory)
    listed = read_models(default_list())
    if not settings.comfyui_is_ours or directory is None:  # which other folders this ComfyUI searches is not known
        return ModelStore((links,), links, cache / CACHE_FOLDER, listed)
    models, volume = settings.models_directory, settings.volume_directory
    roots = model_roots(comfyui=directory, data=data, models=models, volume=volume)
    return ModelStore(roots, cache, cache / CACHE_FOLDER, listed)


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
    if request.action == LIST:
        result = _list(worker, worker.store, request)
    elif request.action == DELETE:
        deleted = worker.store.delete(request.folder, request.name, force=request.force)
        log.info("deleted %s, %s bytes", request.path, f"{deleted.size:,}")
        result = {"model": {**deleted.entry(), "in_use": False}}
    else:
        result = _download(worker, worker.store, request, control, begun_at)
    result = {"task": MODELS_TASK, "action": request.action, **result, "disk": worker.store.disk()}
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


def _list(worker: Worker, store: ModelStore, request: ModelsRequest) -> JsonObject:
    folder = request.folder
    if folder and folder not in (known := store.folders()):
        problem = f"is not a folder of models{nearest(folder, known)} Folders: {', '.join(known)}"
        raise invalid_input([Fault("folder", problem)])
    found = store.models(folder)
    entries = [model.entry() for model in islice(found, MAX_LISTED)]
    limit = worker.settings.model_limit_bytes
    return {"models": entries, "left_out": sum(1 for _ in found), "cache_limit_bytes": limit}


def _download(
    worker: Worker, store: ModelStore, request: ModelsRequest, control: Control, begun_at: float
) -> JsonObject:
    fetcher, address = worker.models, request.address
    if fetcher is None or address is None:
        raise invalid_input([Fault("action", "is download, which this worker refuses: WORKER_MODEL_LIMIT_GB is 0")])
    if problem := fetcher.hosts.problem(address):
        raise invalid_input([Fault(request.address_key, problem)])
    if (present := store.present(request.folder, request.name)) and not request.force:
        _require_same(present, request)
        return {"model": present.entry(), "downloaded": False}
    limit_s = min(request.timeout_s or worker.settings.job_timeout_s, worker.settings.job_timeout_s)
    stop_error = ignoring_comfyui_death(control.stop_error)
    deadline = PhaseDeadline(stop_error, begun_at, begun_at + limit_s, "the model was not downloaded")
    hooks = JobHooks(deadline.check, control.observe, nullcontext)
    cached = {each.path for each in store.models(FETCHED_FOLDER)}
    with leased_models(_without_limit(fetcher), [address], request.tokens, hooks) as leases:
        lease = leases[address]
        model = store.add(request.folder, request.name, lease, address.source)
    if lease.path not in cached:
        remove_unless_used(lease.path)
    log.info("downloaded %s, %s bytes", request.path, f"{model.size:,}")
    return {"model": model.entry(), "downloaded": True}


def _require_same(present: StoredModel, request: ModelsRequest) -> None:
    """Raise JobError (invalid_input) if a file is not the one that the request wants to download."""
    assert request.address is not None  # noqa: S101 - a download has an address
    wanted = request.address.sha256
    if present.sha256 == wanted if wanted else present.source == request.address.source:
        return
    problem = f"exists already, as another file: {request.path} has {present.size:,} bytes. Set `force` to replace it"
    raise invalid_input([Fault("name", problem)])


def _without_limit(fetcher: ModelFetcher) -> ModelFetcher:
    """Return the fetcher with a cache that only the disk limits: the file does not stay in the cache."""
    cache = copy.copy(fetcher.cache)
    cache.limit_bytes = sys.maxsize
    return replace(fetcher, cache=cache)
