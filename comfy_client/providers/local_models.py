"""The model files of a ComfyUI on this machine: lists, downloads and deletes them in its folders.

ComfyUI has no requests that download or delete a model, so both are done in its models folder, with the same modules as
in the worker. Two checks make sure that it is the folder of this ComfyUI: before a change, ComfyUI must list the files
of the folder, and after a download the new file. Needs file locks, which Windows does not have.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from comfy_core.comfyui.model_listing import listed_models
from comfy_core.comfyui.prompt_monitor import Observe
from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import JsonObject
from comfy_core.errors import ConfigError
from comfy_core.models.actions import list_entries, run_action
from comfy_core.models.address_cache import CACHE_FOLDER, AddressCache
from comfy_core.models.address_fetcher import AddressFetcher, JobHooks
from comfy_core.models.address_source import ModelHosts
from comfy_core.models.folders import FOLDERS, search_paths
from comfy_core.models.listing import default_list, read_models
from comfy_core.models.store import ModelStore
from comfy_core.request.models_task import DOWNLOAD, LIST, MODELS_TASK, SAFETENSORS, ModelsRequest

_NOT_LISTED = frozenset({"classifiers", "configs", "datasets", "diffusers"})
"""Folders whose safetensors files ComfyUI does not list (folder_paths.py)."""
_ATTEMPTS = 3
_PAUSE_S = 0.1
_UNKNOWN: JsonObject = {"bytes": None, "sha256": None, "source": None, "last_used": None, "in_use": None}
"""The facts of a file that only ComfyUI can access."""

Listed = Mapping[tuple[str, str], JsonObject]
"""The files that ComfyUI lists, by folder and name."""


@dataclass(frozen=True)
class LocalModels:
    """The model files of one ComfyUI, and its own list of them. Use `open_models`."""

    server: ComfyServer
    store: ModelStore
    listed: Listed

    def run(self, request: ModelsRequest, hosts: ModelHosts, check: Callable[[], None], observe: Observe) -> JsonObject:
        """Carry out the request and return the result (docs/api.md).

        Args:
            request: the request.
            hosts: the hosts from which a model may be downloaded.
            check: raises the error with which the job must end.
            observe: called with the progress.

        Raises JobError, ConfigError or RequestError.
        """
        if request.action == LIST:
            return self._list(request, JobHooks(check, observe))
        fetcher = AddressFetcher(hosts, AddressCache(self.store.target / CACHE_FOLDER, sys.maxsize))
        result = run_action(self.store, fetcher, request, JobHooks(check, observe))
        if request.action == DOWNLOAD:
            self._require_listed(request)
        return result

    def _list(self, request: ModelsRequest, hooks: JobHooks) -> JsonObject:
        entries = list_entries(self.store, list(self.store.models(request.folder)), request, hooks)
        local = {(each["folder"], each["name"]): each for each in entries}
        remote = {key: {**_UNKNOWN, **each} for key, each in self.listed.items()}
        models = list({**remote, **local}.values())
        return {"task": MODELS_TASK, "action": LIST, "models": models, "left_out": 0, "disk": self.store.disk()}

    def _require_listed(self, request: ModelsRequest) -> None:
        """Delete a downloaded file and raise ConfigError if ComfyUI does not list it."""
        added = self.store.present(request.folder, request.name)
        for _ in range(_ATTEMPTS):
            if added is None or request.name in self.server.models(request.folder):
                return
            # ComfyUI lists a folder again if its time has changed. Two changes within one tick of the file system's
            # clock have the same time.
            time.sleep(_PAUSE_S)
            os.utime(added.path.parent)
        self.store.delete(request.folder, request.name, force=True)
        raise ConfigError(
            f"{request.path} was downloaded to {self.store.target}, but ComfyUI at {self.server.url} does not list it, "
            "so it was deleted again. Set COMFYUI_DIR (--comfyui-dir) to the folder of that ComfyUI"
        )


def open_models(server: ComfyServer, directory: Path, folder: str) -> LocalModels:
    """Return the model files of the ComfyUI whose base folder, or models folder, is `directory`.

    Args:
        server: the ComfyUI.
        directory: its folder.
        folder: the model folder to check, or an empty string for all.

    Raises ConfigError if `directory` is another ComfyUI's, JobError (invalid_input) for an unknown `folder`, and
    RequestError.
    """
    reported = server.model_paths()
    target = _models_folder(directory, reported)
    if target is not None:
        paths = reported
    elif here := next((path for path in chain.from_iterable(reported.values()) if path.is_dir()), None):
        raise _directory_error(directory, f"ComfyUI at {server.url} reads its models elsewhere, such as from {here}")
    elif (target := directory / "models").is_dir():  # ComfyUI is in a container, or reports no paths
        found = search_paths([target])
        paths = {kind: found.get(kind, (target / kind,)) for kind in server.model_folders()}
    else:
        raise _directory_error(directory, "it has no folder `models`")
    store = ModelStore(
        lambda: paths, target, target / CACHE_FOLDER, read_models(default_list()), queued=server.queued_graphs
    )
    return LocalModels(server, store, _checked_list(server, store, directory, folder))


def _models_folder(directory: Path, reported: Mapping[str, tuple[Path, ...]]) -> Path | None:
    """Return the models folder of `directory` as ComfyUI names it; None if ComfyUI reads no folder there."""
    own_names = (path for kind, paths in reported.items() for path in paths if path.name in FOLDERS.get(kind, ()))
    found = list(dict.fromkeys(path.parent for path in own_names if path.parent.is_dir()))
    wanted = [each for each in (directory / "models", directory) if each.is_dir()]
    return next((each for candidate in wanted for each in found if each.samefile(candidate)), None)


def _checked_list(server: ComfyServer, store: ModelStore, directory: Path, folder: str) -> Listed:
    """Return ComfyUI's list, which has all files of the store. Raises ConfigError if it does not."""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S)  # a file was added or deleted in the meantime
        files = list(_files(store, folder))
        listed = {(each["folder"], each["name"]): each for each in listed_models(server, folder)}
        unlisted = [file for file in files if file not in listed]
        if not unlisted:
            return listed
    raise _directory_error(
        directory, f"it has {'/'.join(unlisted[0])}, which ComfyUI at {server.url} does not list, so it is another's"
    )


def _files(store: ModelStore, folder: str) -> Iterator[tuple[str, str]]:
    """Yield folder and name of the store's files that ComfyUI must list."""
    for model in store.models(folder):
        if store.is_own(model) and model.path.suffix == SAFETENSORS and model.folder not in _NOT_LISTED:
            yield model.folder, model.name


def _directory_error(directory: Path, problem: str) -> ConfigError:
    return ConfigError(
        f"COMFYUI_DIR (--comfyui-dir) {directory}: {problem}. Set it to the base folder of the ComfyUI at "
        "COMFYUI_ENDPOINT, the one with its `models`, or for this command to its models folder"
    )
