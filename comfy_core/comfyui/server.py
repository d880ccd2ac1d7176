"""The calls to one ComfyUI, over HTTP, and its kept websocket.

What the answers mean is for `answers`; what to do about them for `run`. Every call raises RequestError, and no foreign
exception.
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

from comfy_core.comfyui.cleanup import Leftovers
from comfy_core.comfyui.responses import OutputFile, read_written
from comfy_core.comfyui.websocket_listener import EventSocket, Notice
from comfy_core.contract import JsonObject
from comfy_core.errors import ConfigError, RequestError
from comfy_core.http import HttpApi, is_base_url, quoted_url
from comfy_core.workflows import Graph

CALL_TIMEOUT_S = 30.0
"""For calls that do something: while ComfyUI loads a model it may not answer for seconds."""
CLEAN_TIMEOUT_S = 10.0
"""For calls that end or remove something."""
ASK_TIMEOUT_S = 2.0
"""For questions that are asked again anyway."""
_STOP_WAIT_S = 2.0
"""How long prompts that were interrupted may take to end. One that takes longer is removed after a later run."""
_STOP_POLL_S = 0.02
_MANY_NODE_TYPES = 32
"""How many node types are asked for one by one; the description of all has megabytes."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def _logged_os_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.warning("deleting a file failed: %s", error)


class ComfyServer:
    """One ComfyUI. Safe to use from several threads; keeps its connections until `close`.

    Args:
        url: where it answers, `http://127.0.0.1:8188`. Raises ConfigError where it is no http or https address.
        directory: ComfyUI's base folder (with `input`, `output`, `temp`) where this process can reach it. Files of a
            run are deleted there; without it they can only be emptied, as ComfyUI has no call that deletes a file.
    """

    def __init__(self, url: str, *, directory: Path | None = None) -> None:
        if not is_base_url(url):
            raise ConfigError(
                f"{quoted_url(url)} is no address of a ComfyUI; give one like http://127.0.0.1:8188, without user "
                "name, password or query"
            )
        self.directory = directory
        self._http = HttpApi(url, name="ComfyUI", use_proxies=False)
        self._client_id = uuid.uuid4().hex
        base = self._http.base_url
        self._socket = EventSocket(f"ws{base.removeprefix('http')}/ws?clientId={self._client_id}")
        self._node_types: dict[str, JsonObject] = {}
        self._version: str | None = None
        self.leftovers = Leftovers(self)

    @property
    def url(self) -> str:
        """The base URL."""
        return self._http.base_url

    @property
    def stuck_prompts(self) -> frozenset[str]:
        """The prompts that were to be stopped and still ran, or may have run, when their run ended."""
        return self.leftovers.stuck_prompts

    def close(self) -> None:
        """Close the connections. A run that still goes on loses its socket and its calls fail."""
        self._socket.close()
        self._http.close()

    @contextlib.contextmanager
    def listen(self, prompt_ids: Collection[str]) -> Iterator[queue.SimpleQueue[Notice]]:
        """Yield the queue in which the events of these prompts arrive, with each loss and return of the socket.

        The socket is open when this begins; where it cannot be opened, SocketLost is the first notice and it is tried
        again for as long as this lasts.
        """
        notices: queue.SimpleQueue[Notice] = queue.SimpleQueue()
        self._socket.add(notices, frozenset(prompt_ids))
        try:
            yield notices
        finally:
            self._socket.remove(notices)

    def reopen_socket(self) -> None:
        """Close the websocket, so that it is opened anew: for one that is open and says nothing."""
        self._socket.drop()

    def version(self) -> str:
        """Return ComfyUI's version; asked once."""
        if self._version is None:
            self._version = self.ask_version()
        return self._version

    def ask_version(self, *, timeout_s: float = CALL_TIMEOUT_S) -> str:
        """Return ComfyUI's version. Raises RequestError while ComfyUI is not there yet."""
        match self._http.json("GET", "/system_stats", timeout_s=timeout_s):
            case {"system": {"comfyui_version": str(version)}}:
                return version
        return "unknown"

    def models(self, folder: str, *, timeout_s: float = CALL_TIMEOUT_S) -> list[str]:
        """Return the files of a model folder; none where ComfyUI knows no such folder."""
        try:
            names = self._http.json("GET", f"/models/{quote(folder, safe='')}", timeout_s=timeout_s)
        except RequestError as error:
            if error.status == requests.codes.not_found:
                return []
            raise
        return [str(name) for name in names] if isinstance(names, list) else []

    def node_type(self, class_type: str) -> JsonObject:
        """Return what /object_info says of a node type, `{}` for one that ComfyUI does not have."""
        try:
            answer = self._http.json("GET", f"/object_info/{quote(class_type, safe='')}", timeout_s=CALL_TIMEOUT_S)
        except RequestError as error:
            if error.status is None or error.status >= requests.codes.server_error:
                raise
            return {}  # no type has a name that cannot stand in a path
        found = answer.get(class_type) if isinstance(answer, dict) else None
        return found if isinstance(found, dict) else {}

    def node_types(self, class_types: Collection[str]) -> dict[str, JsonObject]:
        """Return what /object_info says of those of the node types that ComfyUI has.

        It is asked once for each: the lists of files in it may be out of date, its inputs and outputs are not.
        """
        unknown = set(class_types) - self._node_types.keys()
        if len(unknown) > _MANY_NODE_TYPES:
            found = self._http.json("GET", "/object_info", timeout_s=CALL_TIMEOUT_S)
            self._node_types |= found if isinstance(found, dict) else {}
        else:
            self._node_types |= {name: found for name in sorted(unknown) if (found := self.node_type(name))}
        return {name: self._node_types[name] for name in class_types if name in self._node_types}

    def queue_prompt(self, graph: Graph, prompt_id: str, extra_data: JsonObject | None = None) -> Any:  # noqa: ANN401 - `answers.read_refusal` reads it
        """Queue `graph` under `prompt_id` and return the response's JSON. A RequestError of status 400 is a refusal.

        `extra_pnginfo` is always sent: some nodes fail without it.
        """
        body = {
            "prompt": graph,
            "prompt_id": prompt_id,
            "client_id": self._client_id,
            "extra_data": {"extra_pnginfo": {}, **(extra_data or {})},
        }
        return self._http.json("POST", "/prompt", timeout_s=CALL_TIMEOUT_S, json=body)

    def history(self, prompt_id: str, *, timeout_s: float = CALL_TIMEOUT_S) -> object:
        """Return the answer of /history for that prompt; `answers.read_history` reads it."""
        return self._http.json("GET", f"/history/{prompt_id}", timeout_s=timeout_s)

    def written_files(self, prompt_id: str) -> tuple[OutputFile, ...]:
        """Return the files that a prompt of which nobody has read the history wrote."""
        return read_written(self.history(prompt_id, timeout_s=CLEAN_TIMEOUT_S), prompt_id)

    def queue_state(self, *, timeout_s: float = CALL_TIMEOUT_S) -> tuple[frozenset[str], frozenset[str]]:
        """Return the ids of the prompts that run, and of those that wait."""
        answer = self._http.json("GET", "/queue", timeout_s=timeout_s)
        match answer:
            case {"queue_running": list(running), "queue_pending": list(pending)}:
                return frozenset(str(item[1]) for item in running), frozenset(str(item[1]) for item in pending)
        raise RequestError("ComfyUI answered GET /queue with something else than its queue")

    def stop_prompts(self, prompt_ids: Collection[str]) -> frozenset[str]:
        """Take the prompts out of the queue, interrupt the one of them that runs, and return it if it still runs then.

        An older ComfyUI ignores which prompt an interrupt is for, and stops whatever runs
        (docs/reference/comfyui.md#queue-and-history).
        """
        ids = frozenset(prompt_ids)
        if not ids:
            return ids
        self._http.call("POST", "/queue", timeout_s=CLEAN_TIMEOUT_S, json={"delete": sorted(ids)})
        for prompt_id in ids & self.queue_state()[0]:
            self._http.call("POST", "/interrupt", timeout_s=CLEAN_TIMEOUT_S, json={"prompt_id": prompt_id})
        deadline = time.monotonic() + _STOP_WAIT_S
        while (running := ids & self.queue_state()[0]) and time.monotonic() < deadline:
            time.sleep(_STOP_POLL_S)
        return running

    def free_memory(self) -> None:
        """Have ComfyUI unload its models and let go of its cache before the next prompt."""
        freed = {"unload_models": True, "free_memory": True}
        self._http.call("POST", "/free", timeout_s=CALL_TIMEOUT_S, json=freed)

    def forget_prompts(self, prompt_ids: Collection[str]) -> None:
        """Remove the history and the graphs of prompts that have ended."""
        self._http.call("POST", "/history", timeout_s=CLEAN_TIMEOUT_S, json={"delete": sorted(prompt_ids)})

    def upload(self, data: bytes, *, folder: str, filename: str, mime_type: str) -> str:
        """Write a file into a folder of ComfyUI's inputs and return the name by which a node loads it."""
        file = OutputFile("", "", filename, folder, "input")
        response = self._write(file, data, mime_type, timeout_s=CALL_TIMEOUT_S)
        match self._http.parsed(response):
            case {"name": str(name), "subfolder": str(subfolder)}:
                return f"{subfolder}/{name}" if subfolder else name
        raise RequestError("ComfyUI answered an upload with something else than the file's name")

    def remove_file(self, file: OutputFile) -> None:
        """Delete a file; without ComfyUI's folder, write nothing over it: HTTP offers no more."""
        if self.directory is None:
            self._write(file, b"", "application/octet-stream", timeout_s=CLEAN_TIMEOUT_S)
            return
        folder = self.directory.resolve() / file.type
        path = (folder / file.subfolder / file.filename).resolve()
        if path.is_relative_to(folder):
            with _logged_os_error():
                path.unlink(missing_ok=True)

    def remove_folder(self, name: str) -> None:
        """Delete the folders of a run, and the files whose names begin with it."""
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
            form={"subfolder": file.subfolder, "type": file.type, "overwrite": "true"},
        )

    def view(self, file: OutputFile) -> bytes:
        """Return the content of a file that a node wrote."""
        try:
            return self._view(file)
        except RequestError as error:
            if error.status is not None and error.status < requests.codes.server_error:
                raise
            # Once more, where no answer came or a 5xx: reading changes nothing, and the job's GPU time is spent.
            log.warning("%s; asking for the file once more", error)
            return self._view(file)

    def _view(self, file: OutputFile) -> bytes:
        params = {"filename": file.filename, "subfolder": file.subfolder, "type": file.type}
        return self._http.call("GET", "/view", timeout_s=CALL_TIMEOUT_S, params=params).content
