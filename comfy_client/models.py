"""Lists, downloads and deletes the model files of a provider: `client.models`.

with client_from_env() as client:
    client.models.download("hf:owner/repository/knight.safetensors@main", "loras")
    print(client.models.list("loras").models)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_client import coroutines
from comfy_client.job import Observer
from comfy_client.providers.interface import GenerationRequest, GenerationResult
from comfy_client.tasks import run_task
from comfy_core.contract import JsonObject
from comfy_core.request.models_task import DELETE, DOWNLOAD, LIST, MODELS_TASK

if TYPE_CHECKING:
    from comfy_client.client import Client


@dataclass(frozen=True)
class ModelEntry:
    """A model file.

    Attributes:
        folder: the folder below ComfyUI's `models`, or `by-address` for a file that jobs named by its address.
        name: the path in the folder.
        bytes: the size, or None if ComfyUI does not report it.
        sha256: the hash, or None if it is not known.
        source: the address from which it was downloaded, or None if it is not known.
        last_used: time of the last use in ISO 8601, or None if it is not known.
        in_use: whether a running job loads it, or None if that is not known.
    """

    folder: str
    name: str
    bytes: int | None = None
    sha256: str | None = None
    source: str | None = None
    last_used: str | None = None
    in_use: bool | None = None

    @property
    def path(self) -> str:
        """The file as `folder/name`."""
        return f"{self.folder}/{self.name}"


@dataclass(frozen=True)
class ModelList:
    """Model files.

    Attributes:
        models: the files.
        left_out: how many more files there are.
        free_bytes: free bytes of the disk to which models are downloaded, or None if it is not known.
        total_bytes: all bytes of that disk, or None.
        cache_limit_bytes: maximum size of the files that jobs named by address, or None.
    """

    models: tuple[ModelEntry, ...]
    left_out: int = 0
    free_bytes: int | None = None
    total_bytes: int | None = None
    cache_limit_bytes: int | None = None


def list_request(folder: str | None, *, with_hashes: bool = False) -> GenerationRequest:
    """Return the request for a list. See Models.list."""
    return _request(LIST, folder=folder, hash=with_hashes or None)


def download_request(
    address: str | Mapping[str, Any],
    folder: str,
    name: str | None,
    *,
    force: bool,
    tokens: Mapping[str, str] | None,
) -> GenerationRequest:
    """Return the request for a download. See Models.download."""
    given = {"url": address} if isinstance(address, str) else dict(address)
    keys = {"folder": folder, "name": name, "force": force or None}
    return _request(DOWNLOAD, **{**keys, **given}, model_tokens=dict(tokens) if tokens else None)


def delete_request(path: str, *, force: bool) -> GenerationRequest:
    """Return the request for a delete. See Models.delete."""
    folder, _, name = path.partition("/")
    return _request(DELETE, folder=folder, name=name, force=force or None)


def model_list(result: GenerationResult) -> ModelList:
    """Return the list in a job's result."""
    report = result.report
    disk = report.get("disk", {})
    return ModelList(
        tuple(map(_entry, report.get("models", []))),
        report.get("left_out", 0),
        disk.get("free_bytes"),
        disk.get("total_bytes"),
        report.get("cache_limit_bytes"),
    )


def model_entry(result: GenerationResult) -> ModelEntry:
    """Return the file in the result of a download or a delete."""
    return _entry(result.report.get("model", {}))


def wait_limit_s(client: Client, wait_timeout_s: float | None) -> float | None:
    """Return how long to wait for a job of this task; None stands for the client's default.

    A job on a ComfyUI that is called directly runs in this process, and would end with the wait. So by default the wait
    for it is not limited.
    """
    is_remote = client.provider.jobs_outlive_process
    return math.inf if wait_timeout_s is None and not is_remote else wait_timeout_s


def _request(action: str, **keys: object) -> GenerationRequest:
    given = {name: value for name, value in keys.items() if value is not None}
    return GenerationRequest({"task": MODELS_TASK, "action": action, **given})


def _entry(given: JsonObject) -> ModelEntry:
    known = {name: given.get(name) for name in ("bytes", "sha256", "source", "last_used", "in_use")}
    return ModelEntry(str(given.get("folder", "")), str(given.get("name", "")), **known)


class Models:
    """The model files of a client's provider: `Client.models`.

    With this project's worker on RunPod each call is a job. With a ComfyUI that is called directly, `download` and
    `delete` need its folder: `Client(comfyui_url=…, comfyui_dir=…)`, or COMFYUI_DIR. The other providers refuse every
    call with `invalid_input`. All calls raise the errors of `Client.run`.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(
        self, folder: str | None = None, *, with_hashes: bool = False, wait_timeout_s: float | None = None
    ) -> ModelList:
        """Return all model files, or those of one folder.

        With `with_hashes`, files whose hash is not known are read, which takes about a second for each GB.
        """
        return model_list(self._run(list_request(folder, with_hashes=with_hashes), wait_timeout_s))

    def download(
        self,
        address: str | Mapping[str, Any],
        folder: str,
        *,
        name: str | None = None,
        force: bool = False,
        tokens: Mapping[str, str] | None = None,
        wait_timeout_s: float | None = None,
        observer: Observer | None = None,
    ) -> ModelEntry:
        """Download a file to a model folder, and return it. It does nothing if the file is there already.

        Args:
            address: such as `hf:owner/repository/file.safetensors@revision`, `civitai:123` or a URL, optionally with
                `#sha256=…`, or an object such as `{"hf": …, "sha256": …}`.
            folder: the folder below ComfyUI's `models`, such as `loras`.
            name: the file's name there. Default: the name in the address.
            force: replace another file of this name.
            tokens: the token for each host, such as `{"huggingface.co": "hf_…"}`. RunPod keeps it with the job.
            wait_timeout_s: see `Client.run`. Default: see `wait_limit_s`.
            observer: see `Client.run`. A Downloading event has the bytes.
        """
        request = download_request(address, folder, name, force=force, tokens=tokens)
        return model_entry(self._run(request, wait_timeout_s, observer))

    def delete(self, path: str, *, force: bool = False, wait_timeout_s: float | None = None) -> ModelEntry:
        """Delete a file, given as `folder/name`, and return it. `force` also deletes a file of models.txt."""
        return model_entry(self._run(delete_request(path, force=force), wait_timeout_s))

    def _run(
        self, request: GenerationRequest, wait_timeout_s: float | None, observer: Observer | None = None
    ) -> GenerationResult:
        limit_s = wait_limit_s(self._client, wait_timeout_s)
        return coroutines.run(run_task(self._client, request, limit_s, observer))


class AsyncModels:
    """See Models."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def list(
        self, folder: str | None = None, *, with_hashes: bool = False, wait_timeout_s: float | None = None
    ) -> ModelList:
        """See Models.list."""
        return model_list(await self._run(list_request(folder, with_hashes=with_hashes), wait_timeout_s))

    async def download(
        self,
        address: str | Mapping[str, Any],
        folder: str,
        *,
        name: str | None = None,
        force: bool = False,
        tokens: Mapping[str, str] | None = None,
        wait_timeout_s: float | None = None,
        observer: Observer | None = None,
    ) -> ModelEntry:
        """See Models.download."""
        request = download_request(address, folder, name, force=force, tokens=tokens)
        return model_entry(await self._run(request, wait_timeout_s, observer))

    async def delete(self, path: str, *, force: bool = False, wait_timeout_s: float | None = None) -> ModelEntry:
        """See Models.delete."""
        return model_entry(await self._run(delete_request(path, force=force), wait_timeout_s))

    async def _run(
        self, request: GenerationRequest, wait_timeout_s: float | None, observer: Observer | None = None
    ) -> GenerationResult:
        limit_s = wait_limit_s(self._client, wait_timeout_s)
        return await coroutines.arun(run_task(self._client, request, limit_s, observer, may_hold=False))
