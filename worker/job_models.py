"""Downloads the model files that one job names by address, and puts them where ComfyUI finds them.

ComfyUI searches the worker's data folder first, so a link there shows a file of the cache, and ComfyUI lists it at
once: it compares the modification times of its model folders with each validation (folder_paths.py).
"""

from __future__ import annotations

import contextlib
import copy
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from comfy_core.comfyui.file_inputs import declared_input
from comfy_core.comfyui.model_inputs import (
    FETCHED_FOLDER,
    ModelFolders,
    ModelUse,
    declared_choices,
    fetched_faults,
    has_addresses,
    model_uses,
)
from comfy_core.comfyui.prompt_monitor import unavailable
from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import Fault
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, RequestError, invalid_input
from comfy_core.graphs import Graph
from comfy_core.models.address_cache import CACHE_FOLDER, SUFFIX, AddressCache, Lease
from comfy_core.models.address_fetcher import TICK_S, AddressFetcher, JobHooks, leased_models
from comfy_core.models.address_source import ModelHosts
from comfy_core.models.files import NO_SPACE
from comfy_core.models.folders import FOLDERS
from comfy_core.request.model_address import ModelAddress
from comfy_core.request.rendering import Rendered
from comfy_core.validation import path_of
from worker.models.locations import cache_directory
from worker.settings import Settings

MAX_MODELS = 16
"""Maximum number of different addresses in one job."""
_LISTING_ATTEMPTS = 3


@dataclass(frozen=True)
class ModelFetcher(AddressFetcher):
    """What a worker needs to download models by address.

    Attributes:
        links: the models folder that ComfyUI searches first.
    """

    links: Path


def model_fetcher(settings: Settings) -> ModelFetcher | None:
    """Return what the worker needs to download models by address; None if it is off or ComfyUI's folder is unknown."""
    data = settings.comfyui_data_directory
    if not settings.model_limit_bytes or data is None:
        return None
    links = data / "models"
    hosts = ModelHosts(settings.model_hosts, settings.hub, settings.civitai_token)
    root = cache_directory(links, settings.volume_directory)
    return ModelFetcher(hosts, AddressCache(root / CACHE_FOLDER, settings.model_limit_bytes), links)


@dataclass(frozen=True)
class PlacedModels:
    """A rendered request whose models ComfyUI has.

    Attributes:
        graphs: the graphs for ComfyUI, with file names in place of addresses.
        rendered: the request for the result, with the hashes of the files in the addresses, and without URL queries.
        has_models: whether the request names a model by address.
    """

    graphs: tuple[Graph, ...]
    rendered: Rendered
    has_models: bool


@contextlib.contextmanager
def placed_models(
    fetcher: ModelFetcher | None, server: ComfyServer, rendered: Rendered, tokens: Mapping[str, str], hooks: JobHooks
) -> Iterator[PlacedModels]:
    """Yield the request with its models in place. They are not removed inside the block.

    Raises JobError: invalid_input, invalid_model, model_download_failed, model_missing, comfyui_unavailable, or the
    error of `hooks.check`.
    """
    with _comfyui_errors():
        uses = _checked_uses(fetcher, server, rendered)
    if not uses or fetcher is None:
        yield PlacedModels(rendered.graphs, rendered, has_models=False)
        return
    with leased_models(fetcher, list(dict.fromkeys(use.address for use in uses)), tokens, hooks) as leases:
        public_texts = {use.address.given: replace(use.address, sha256=leases[use.address].sha256).text for use in uses}
        public = replace(
            rendered,
            graphs=tuple(_replaced(graph, public_texts) for graph in rendered.graphs),
            inputs=_replaced(rendered.inputs, public_texts),
        )
        graphs = copy.deepcopy(public.graphs)
        for use in uses:
            use.target.set(graphs[use.graph], _place(fetcher.links / use.folder, leases[use.address], use.address))
        with _comfyui_errors():
            _await_listing(server, graphs, uses, fetcher.links)
        yield PlacedModels(graphs, public, has_models=True)


@contextlib.contextmanager
def _comfyui_errors() -> Iterator[None]:
    try:
        yield
    except RequestError as error:
        raise unavailable(str(error)) from error


def _checked_uses(fetcher: ModelFetcher | None, server: ComfyServer, rendered: Rendered) -> list[ModelUse]:
    """Return the inputs that name models by address. Raises JobError (invalid_input) if one is not accepted."""
    faults = fetched_faults(rendered.graphs)
    uses: list[ModelUse] = []
    if has_addresses(rendered.graphs):
        classes = {node["class_type"] for graph in rendered.graphs for node in graph.values()}
        files = cache(lambda: {folder: server.models(folder) for folder in FOLDERS})
        uses, found = model_uses(rendered.graphs, ModelFolders(server.node_types(classes), files))
        faults += found
    for use in uses:
        if problem := _problem(fetcher, use):
            faults.append(Fault(_path(use, rendered), problem))
    if len({use.address for use in uses}) > MAX_MODELS:
        faults.append(Fault("workflow", f"names more than {MAX_MODELS} models by address"))
    if faults:
        raise invalid_input(list(dict.fromkeys(faults)))
    return uses


def _problem(fetcher: ModelFetcher | None, use: ModelUse) -> str:
    if fetcher is None:
        return (
            "is an address, and this worker downloads no models (WORKER_MODEL_LIMIT_GB is 0, or it cannot reach "
            "ComfyUI's folders); use the name of a file on the worker"
        )
    if not use.folder:
        return (
            "is an address, and the folder of models that this node reads is not known; use the name of a file on the "
            "worker"
        )
    return fetcher.hosts.problem(use.address)


def _path(use: ModelUse, rendered: Rendered) -> str:
    """Return the path of an address in the request: that of a template's input, else that of the node's input."""
    for name, value in rendered.inputs.items():
        for number, item in enumerate(value if isinstance(value, list) else []):
            if isinstance(item, dict) and item.get("name") == use.address.given:
                return path_of([name, number])
    return path_of(["workflow", use.target.node_id, "inputs", use.target.input])


def _place(folder: Path, lease: Lease, address: ModelAddress) -> str:
    """Link a file of the cache into a model folder of ComfyUI, and return its name there. Raises `link_error`.

    Links whose file was removed from the cache are deleted.
    """
    links = folder / FETCHED_FOLDER
    link = links / f"{lease.sha256}{SUFFIX}"
    try:
        links.mkdir(parents=True, exist_ok=True)
        for each in links.iterdir():
            if each.is_symlink() and not each.exists():
                each.unlink(missing_ok=True)
        if not (link.is_symlink() and link.readlink() == lease.path):
            temporary = links / f".{uuid.uuid4().hex}"
            temporary.symlink_to(lease.path)
            temporary.replace(link)
    except OSError as error:
        raise link_error(links, address, error) from error
    return f"{FETCHED_FOLDER}/{link.name}"


def link_error(links: Path, address: ModelAddress, error: OSError) -> JobError:
    """Return the error for a model that cannot be linked into `links`: disk_full, or model_download_failed."""
    problem = f"cannot be linked into {links} ({error.strerror})"
    if error.errno in NO_SPACE:
        return JobError.because(ErrorCode.DISK_FULL, f"{address.source} {problem}")
    models = [{"address": address.source, "problem": problem}]
    return JobError.because(ErrorCode.MODEL_DOWNLOAD_FAILED, f"{address.source} {problem}", models=models)


def _await_listing(server: ComfyServer, graphs: Sequence[Graph], uses: Sequence[ModelUse], links: Path) -> None:
    """Return when ComfyUI lists all placed files. Raises JobError (model_missing) if it does not."""
    placed: dict[tuple[str, str], dict[str, ModelUse]] = {}
    for use in uses:
        class_type = graphs[use.graph][use.target.node_id]["class_type"]
        placed.setdefault((class_type, use.target.input), {})[use.target.get(graphs[use.graph])] = use
    for (class_type, name), named in placed.items():
        for _ in range(_LISTING_ATTEMPTS):
            choices = declared_choices(declared_input(server.node_type(class_type), name)) or ()
            if not (missing := named.keys() - set(choices)):
                break
            # Two changes within one tick of the file system's clock have the same time.
            time.sleep(TICK_S)
            for each in missing:
                os.utime(links / named[each].folder / FETCHED_FOLDER)
        else:
            use = named[min(missing)]
            raise JobError.because(
                ErrorCode.MODEL_MISSING,
                f"{use.address.source} was downloaded, but ComfyUI does not list it for {class_type}.{name}: its "
                f"folders for {use.folder} do not include {links / use.folder}",
            )


def _replaced(value: Any, texts: Mapping[str, str]) -> Any:  # noqa: ANN401 - any JSON value
    """Return a copy of a JSON value in which each of `texts` is replaced."""
    match value:
        case str():
            return texts.get(value, value)
        case dict():
            return {key: _replaced(each, texts) for key, each in value.items()}
        case list():
            return [_replaced(each, texts) for each in value]
    return value
