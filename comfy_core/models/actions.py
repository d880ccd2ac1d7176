"""Carries out a request of the task `models` (request/models_task.py): lists, downloads or deletes model files."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from comfy_core.comfyui.model_inputs import FETCHED_FOLDER
from comfy_core.contract import Fault, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, invalid_input
from comfy_core.models.address_cache import remove_unless_used
from comfy_core.models.address_fetcher import AddressFetcher, JobHooks, leased_models
from comfy_core.models.address_source import AddressedFile
from comfy_core.models.file_locks import exclusive_lock
from comfy_core.models.files import hash_and_mark
from comfy_core.models.listing import WantedFile
from comfy_core.models.store import ModelStore, StoredModel
from comfy_core.progress import Progress
from comfy_core.request.models_task import DELETE, LIST, MODELS_TASK, ModelsRequest, require_folder

MAX_LISTED = 5_000
"""Maximum number of files in a list, which then has about 1.5 MB."""

log = logging.getLogger(__name__)


def run_action(
    store: ModelStore, fetcher: AddressFetcher | None, request: ModelsRequest, hooks: JobHooks
) -> JsonObject:
    """Carry out the request and return the result (docs/api.md). `fetcher` is for a download. Raises JobError."""
    if request.action == LIST:
        result = _list(store, request, hooks)
    elif request.action == DELETE:
        deleted = store.delete(request.folder, request.name, force=request.force)
        log.info("deleted %s, %s bytes", request.path, f"{deleted.size:,}")
        [entry] = store.entries([deleted])
        result = {"model": {**entry, "in_use": False}}
    else:
        assert fetcher is not None  # noqa: S101 - see the docstring
        result = _download(store, fetcher, request, hooks)
    return {"task": MODELS_TASK, "action": request.action, **result, "disk": store.disk()}


def _list(store: ModelStore, request: ModelsRequest, hooks: JobHooks) -> JsonObject:
    folder = request.folder
    if folder:
        require_folder(folder, store.folders())
    found = store.models(folder)
    listed = list(islice(found, MAX_LISTED))
    return {"models": list_entries(store, listed, request, hooks), "left_out": sum(1 for _ in found)}


def list_entries(
    store: ModelStore, models: Sequence[StoredModel], request: ModelsRequest, hooks: JobHooks
) -> list[JsonObject]:
    """Return the models for the result of a list. With `request.hash`, unknown hashes of files in the target are found.

    The hashes are kept in markers, so a list that ends early continues with the next one.
    """
    unknown = [model for model in models if request.hash and not model.sha256 and store.is_own(model)]
    total = sum(model.size for model in unknown)
    hashes: dict[Path, str] = {}
    done = 0
    for model in unknown:

        def progress(_: WantedFile, size: int, before: int = done) -> None:
            hooks.check()
            hooks.observe(Progress.of_models(before + size, total))

        file = AddressedFile(f"{model.folder}/{model.name}", model.size, "", "")
        with contextlib.suppress(OSError):  # deleted in the meantime, or not readable
            hashes[model.path] = hash_and_mark(file, model.path, threading.Event(), progress)
        done += model.size
    return store.entries(replace(model, sha256=hashes.get(model.path, model.sha256)) for model in models)


def _download(store: ModelStore, fetcher: AddressFetcher, request: ModelsRequest, hooks: JobHooks) -> JsonObject:
    address = request.address
    assert address is not None  # noqa: S101 - a download has an address
    if problem := fetcher.hosts.problem(address):
        raise invalid_input([Fault(request.address_key, problem)])
    store.present(request.folder, request.name)  # before the lock, because it checks the folder
    with _name_lock(fetcher.cache.folder, request, hooks):
        if (present := store.present(request.folder, request.name)) and not request.force:
            _require_same(present, request)
            return {"model": store.entries([present])[0], "downloaded": False}
        cached = {each.path for each in store.models(FETCHED_FOLDER)}
        with leased_models(_without_limit(fetcher), [address], request.tokens, hooks) as leases:
            lease = leases[address]
            model = store.add(request.folder, request.name, lease, address.source)
        if lease.path not in cached:
            remove_unless_used(lease.path)
    log.info("downloaded %s, %s bytes", request.path, f"{model.size:,}")
    return {"model": store.entries([model])[0], "downloaded": True}


@contextlib.contextmanager
def _name_lock(folder: Path, request: ModelsRequest, hooks: JobHooks) -> Iterator[None]:
    """Hold a lock on the name of a download: of two downloads of one file, the second waits and finds the file.

    Raises JobError (model_download_failed) if `folder` cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            name = hashlib.sha256(request.path.encode()).hexdigest()
            stack.enter_context(exclusive_lock(folder / f"{name}.lock", hooks.check))
        except OSError as error:
            problem = f"the folder {folder} cannot be written, or its disk has no file locks ({error.strerror})"
            raise JobError.because(ErrorCode.MODEL_DOWNLOAD_FAILED, f"{request.path}: {problem}") from error
        yield


def _require_same(present: StoredModel, request: ModelsRequest) -> None:
    """Raise JobError (invalid_input) if a file is not the one that the request wants to download."""
    assert request.address is not None  # noqa: S101 - a download has an address
    wanted = request.address.sha256
    if present.sha256 == wanted if wanted else present.source == request.address.source:
        return
    problem = f"exists already, as another file: {request.path} has {present.size:,} bytes. Set `force` to replace it"
    raise invalid_input([Fault("name", problem)])


def _without_limit(fetcher: AddressFetcher) -> AddressFetcher:
    """Return the fetcher with a cache that only the disk limits: the file does not stay in the cache."""
    cache = copy.copy(fetcher.cache)
    cache.limit_bytes = sys.maxsize
    return replace(fetcher, cache=cache)
