"""HTTP and websocket client for one ComfyUI server.

Responses are interpreted by `responses` and `refusals`. Every method raises RequestError if its request fails, and no
exceptions of other libraries.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import shutil
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from comfy_core.comfyui.cleanup import Cleanup
from comfy_core.comfyui.responses import OutputFile, SystemStats, read_system_stats, read_written
from comfy_core.comfyui.websocket_listener import CONNECT_TIMEOUT_S, Notice, WebsocketListener
from comfy_core.contract import JsonObject
from comfy_core.errors import ConfigError, RequestError
from comfy_core.graphs import Graph
from comfy_core.http import HttpApi
from comfy_core.urls import is_base_url, url_for_message

CALL_TIMEOUT_S = 30.0
"""Timeout of normal requests. ComfyUI may not respond for several seconds while it loads a model."""
CLEAN_TIMEOUT_S = 10.0
"""Timeout of requests that stop or remove something."""
POLL_TIMEOUT_S = 2.0
"""Timeout of polling requests, which are repeated anyway."""
_STOP_WAIT_S = 2.0
"""How long to wait for interrupted prompts to end. Prompts that take longer are removed after a later run."""
_STOP_POLL_S = 0.02
_MAX_SEPARATE_NODE_TYPES = 32
"""Up to this number, node types are requested one by one. The response for all types has several megabytes."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def _logged_os_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.warning("deleting a file failed: %s", error)


class ComfyServer:
    """Client for one ComfyUI server. Thread-safe. Its connections stay open until `close`.

    Args:
        url: base URL, such as `http://127.0.0.1:8188`. Any text that is not a base URL raises ConfigError.
        directory: ComfyUI's base folder (with `input`, `output`, `temp`), if this process can access it. A run's files
            are deleted there. Without `directory`, files are only emptied: ComfyUI has no request to delete a file.
        connect_timeout_s: how long a run waits until the websocket is open. It then starts without the websocket.
    """

    def __init__(
        self, url: str, *, directory: Path | None = None, connect_timeout_s: float = CONNECT_TIMEOUT_S
    ) -> None:
        if not is_base_url(url):
            raise ConfigError(
                f"{url_for_message(url)} is not a valid ComfyUI URL; use one like http://127.0.0.1:8188, without user "
                "name, password or query"
            )
        self.directory = directory
        self._http = HttpApi(url, name="ComfyUI", use_proxies=False)
        self._client_id = uuid.uuid4().hex
        base = self._http.base_url
        socket_url = f"ws{base.removeprefix('http')}/ws?clientId={self._client_id}"
        self._socket = WebsocketListener(socket_url, connect_timeout_s)
        self._node_types: dict[str, JsonObject] = {}
        self._offered: dict[str, bool] = {}
        self._system: SystemStats | None = None
        self._has_cancel = True  # until ComfyUI responds that it does not have the request
        self.cleanup = Cleanup(self)

    @property
    def url(self) -> str:
        """The base URL."""
        return self._http.base_url

    def close(self) -> None:
        """Close the connections. A run in progress loses its websocket, and its requests fail."""
        self._socket.close()
        self._http.close()

    @contextlib.contextmanager
    def listen(self, prompt_ids: Collection[str]) -> Iterator[queue.SimpleQueue[Notice]]:
        """Yield a queue that receives the events of these prompts, and SocketLost and SocketReopened notices.

        The websocket is open when the queue is yielded. If it is not open in time, the first notice is SocketLost, and
        the listener keeps trying to connect.
        """
        notices: queue.SimpleQueue[Notice] = queue.SimpleQueue()
        self._socket.add(notices, frozenset(prompt_ids))
        try:
            yield notices
        finally:
            self._socket.remove(notices)

    def reopen_socket(self) -> None:
        """Make the listener reopen the websocket. Use this if the websocket is open but receives nothing."""
        self._socket.drop()

    def system(self) -> SystemStats:
        """Return ComfyUI's version and GPU. They are requested once and cached."""
        if self._system is None:
            self._system = self.fetch_system()
        return self._system

    def fetch_system(self, *, timeout_s: float = CALL_TIMEOUT_S) -> SystemStats:
        """Return ComfyUI's version and GPU. Raises RequestError while ComfyUI is not ready."""
        return read_system_stats(self._http.json("GET", "/system_stats", timeout_s=timeout_s))

    def models(self, folder: str, *, timeout_s: float = CALL_TIMEOUT_S) -> list[str]:
        """Return the files in a model folder; empty if ComfyUI does not have the folder."""
        try:
            names = self._http.json("GET", f"/models/{quote(folder, safe='')}", timeout_s=timeout_s)
        except RequestError as error:
            if error.status == requests.codes.not_found:
                return []
            raise
        return [str(name) for name in names] if isinstance(names, list) else []

    def model_folders(self) -> list[str]:
        """Return the names of the model folders."""
        names = self._http.json("GET", "/models", timeout_s=CALL_TIMEOUT_S)
        return [str(name) for name in names] if isinstance(names, list) else []

    def model_files(self, folder: str) -> list[Any]:
        """Return the files of a model folder, each as an object with `name` and `size`, or as a name.

        ComfyUI has sizes only at /experiment/models, which older and later versions may not have.
        """
        try:
            files = self._http.json("GET", f"/experiment/models/{quote(folder, safe='')}", timeout_s=CALL_TIMEOUT_S)
        except RequestError as error:
            if error.status is None:
                raise
            return self.models(folder)
        return files if isinstance(files, list) else []

    def model_paths(self) -> dict[str, tuple[Path, ...]]:
        """Return the folders that ComfyUI searches for each model folder, in search order, as paths on its machine.

        They are at /experiment/models only; empty if ComfyUI does not have it.
        """
        try:
            folders = self._http.json("GET", "/experiment/models", timeout_s=CALL_TIMEOUT_S)
        except RequestError as error:
            if error.status is None or error.status >= requests.codes.server_error:
                raise
            return {}
        found: dict[str, tuple[Path, ...]] = {}
        for folder in folders if isinstance(folders, list) else []:
            match folder:
                case {"name": str(name), "folders": list(paths)}:
                    found[name] = tuple(Path(str(path)) for path in paths)
        return found

    def node_type(self, class_type: str) -> JsonObject:
        """Return the /object_info entry of a node type, or `{}` if ComfyUI does not have it."""
        try:
            body = self._http.json("GET", f"/object_info/{quote(class_type, safe='')}", timeout_s=CALL_TIMEOUT_S)
        except RequestError as error:
            if error.status is None or error.status >= requests.codes.server_error:
                raise
            return {}  # a name that is not valid in a path is not a node type
        found = body.get(class_type) if isinstance(body, dict) else None
        return found if isinstance(found, dict) else {}

    def node_types(self, class_types: Collection[str]) -> dict[str, JsonObject]:
        """Return the /object_info entries of the given node types; types that ComfyUI does not have are omitted.

        Entries are cached. Their lists of files may therefore be outdated; their inputs and outputs do not change.
        """
        unknown = set(class_types) - self._node_types.keys()
        if len(unknown) > _MAX_SEPARATE_NODE_TYPES:
            found = self._http.json("GET", "/object_info", timeout_s=CALL_TIMEOUT_S)
            self._node_types |= found if isinstance(found, dict) else {}
        else:
            self._node_types |= {name: found for name in sorted(unknown) if (found := self.node_type(name))}
        return {name: self._node_types[name] for name in class_types if name in self._node_types}

    def offers(self, class_type: str) -> bool:
        """Return whether ComfyUI has a node type. It is requested once and cached, also if the type does not exist."""
        if class_type not in self._offered:
            self._offered[class_type] = bool(self.node_types({class_type}))
        return self._offered[class_type]

    def queue_prompt(self, graph: Graph, prompt_id: str, extra_data: JsonObject | None = None) -> Any:  # noqa: ANN401 - parsed by `refusals.read_refusal`
        """Queue `graph` as `prompt_id` and return the response's JSON.

        A RequestError with status 400 means that ComfyUI rejected the graph. `extra_pnginfo` is always sent, because
        some nodes fail without it.
        """
        body = {
            "prompt": graph,
            "prompt_id": prompt_id,
            "client_id": self._client_id,
            "extra_data": {"extra_pnginfo": {}, **(extra_data or {})},
        }
        return self._http.json("POST", "/prompt", timeout_s=CALL_TIMEOUT_S, json=body)

    def history(self, prompt_id: str, *, timeout_s: float = CALL_TIMEOUT_S) -> object:
        """Return the /history response for a prompt, to be parsed by `responses.read_history`."""
        return self._http.json("GET", f"/history/{prompt_id}", timeout_s=timeout_s)

    def written_files(self, prompt_id: str) -> tuple[OutputFile, ...]:
        """Return the files that a prompt wrote, from its history."""
        return read_written(self.history(prompt_id, timeout_s=CLEAN_TIMEOUT_S), prompt_id)

    def queue_state(self, *, timeout_s: float = CALL_TIMEOUT_S) -> tuple[frozenset[str], frozenset[str]]:
        """Return the ids of the running prompts, and of the pending prompts."""
        running, pending = self.queued_prompts(timeout_s=timeout_s)
        return frozenset(running), frozenset(pending)

    def queued_graphs(self) -> list[Graph]:
        """Return the graphs of the running and the pending prompts, also those of other clients."""
        running, pending = self.queued_prompts()
        return [item[2] for item in (*running.values(), *pending.values())]

    def queued_prompts(self, *, timeout_s: float = CALL_TIMEOUT_S) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the running and the pending prompts by id: `[number, prompt id, graph, extra data, …]`."""
        body = self._http.json("GET", "/queue", timeout_s=timeout_s)
        match body:
            case {"queue_running": list(running), "queue_pending": list(pending)}:
                return {str(item[1]): item for item in running}, {str(item[1]): item for item in pending}
        raise RequestError("ComfyUI sent an unexpected response to GET /queue")

    def stop_prompts(self, prompt_ids: Collection[str]) -> frozenset[str]:
        """Remove the prompts from the queue, interrupt the running one, and return those that are still running."""
        ids = frozenset(prompt_ids)
        if not ids:
            return ids
        self._http.call("POST", "/queue", timeout_s=CLEAN_TIMEOUT_S, json={"delete": sorted(ids)})
        for prompt_id in ids & self.queue_state()[0]:
            self._interrupt(prompt_id)
        deadline = time.monotonic() + _STOP_WAIT_S
        while (running := ids & self.queue_state()[0]) and time.monotonic() < deadline:
            time.sleep(_STOP_POLL_S)
        return running

    def _interrupt(self, prompt_id: str) -> None:
        """Interrupt a prompt, unless it has ended.

        The request `cancel` of ComfyUI 0.26 and later cannot interrupt the prompt after it. If ComfyUI refuses the
        request with a 4xx, `/interrupt` is used from then on (docs/reference/comfyui.md#queue-and-history).
        """
        if self._has_cancel:
            try:
                self._http.call("POST", f"/api/jobs/{prompt_id}/cancel", timeout_s=CLEAN_TIMEOUT_S)
            except RequestError as error:
                if error.status is None or error.status >= requests.codes.server_error:
                    raise
                self._has_cancel = False
            else:
                return
        self._http.call("POST", "/interrupt", timeout_s=CLEAN_TIMEOUT_S, json={"prompt_id": prompt_id})

    def free_memory(self) -> None:
        """Make ComfyUI unload its models and clear its cache before the next prompt."""
        freed = {"unload_models": True, "free_memory": True}
        self._http.call("POST", "/free", timeout_s=CALL_TIMEOUT_S, json=freed)

    def delete_history(self, prompt_ids: Collection[str]) -> None:
        """Remove ended prompts from ComfyUI's history."""
        self._http.call("POST", "/history", timeout_s=CLEAN_TIMEOUT_S, json={"delete": sorted(prompt_ids)})

    def upload(self, data: bytes, *, folder: str, filename: str, mime_type: str) -> str:
        """Upload a file into a subfolder of ComfyUI's input folder and return the name for a loader node."""
        file = OutputFile("", "", filename, folder, "input")
        response = self._write(file, data, mime_type, timeout_s=CALL_TIMEOUT_S)
        match self._http.parsed(response):
            case {"name": str(name), "subfolder": str(subfolder)}:
                return f"{subfolder}/{name}" if subfolder else name
        raise RequestError("ComfyUI sent an unexpected response to an upload")

    def remove_file(self, file: OutputFile) -> None:
        """Delete a file. Without `directory`, empty it: ComfyUI has no HTTP request to delete a file.

        A failed deletion in `directory` is logged and not raised.
        """
        if self.directory is None:
            self._write(file, b"", "application/octet-stream", timeout_s=CLEAN_TIMEOUT_S)
            return
        folder = self.directory.resolve() / file.type
        path = (folder / file.subfolder / file.filename).resolve()
        if path.is_relative_to(folder):
            with _logged_os_error():
                path.unlink(missing_ok=True)

    def remove_folder(self, name: str) -> None:
        """Delete a run's folders, and the files whose names begin with the run's name. Needs `directory`."""
        if self.directory is None:
            return
        for kind in ("input", "output", "temp", "datasets"):
            shutil.rmtree(self.directory / kind / name, ignore_errors=True)
            for path in (self.directory / kind).glob(f"{name}*"):
                with _logged_os_error():
                    path.unlink()

    def _write(self, file: OutputFile, data: bytes, mime_type: str, *, timeout_s: float) -> requests.Response:
        return self._http.call(
            "POST",
            "/upload/image",
            timeout_s=timeout_s,
            files={"image": (file.filename, data, mime_type)},
            data={"subfolder": file.subfolder, "type": file.type, "overwrite": "true"},
        )

    def view(self, file: OutputFile) -> bytes:
        """Return the content of a file that a node wrote. Retries once after no response or a 5xx."""
        try:
            return self._view(file)
        except RequestError as error:
            if error.status is not None and error.status < requests.codes.server_error:
                raise
            # Reading is safe to repeat, and the job's GPU time is already spent.
            log.warning("%s; retrying once", error)
            return self._view(file)

    def _view(self, file: OutputFile) -> bytes:
        params = {"filename": file.filename, "subfolder": file.subfolder, "type": file.type}
        return self._http.call("GET", "/view", timeout_s=CALL_TIMEOUT_S, params=params).content
