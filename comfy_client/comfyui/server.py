"""The connections to one ComfyUI: its HTTP API, and one kept websocket that a thread reads.

What the answers mean is for `answers` and `events`; what to do about them for `run`. Foreign exceptions end here: every
call raises RequestError, and a lost socket is an event.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
import uuid
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, urlsplit

import requests
import websocket

from comfy_client.comfyui.answers import OutputFile, read_written
from comfy_client.comfyui.events import Addressed, Attribution, parse_frame
from comfy_client.contract import JsonObject
from comfy_client.errors import ConfigError, RequestError
from comfy_client.http import HttpApi
from comfy_client.workflows import Graph

CALL_TIMEOUT_S = 30.0
"""For calls that do something: while ComfyUI loads a model it may not answer for seconds."""
CLEAN_TIMEOUT_S = 10.0
"""For calls that end or remove something."""
ASK_TIMEOUT_S = 2.0
"""For questions that are asked again anyway."""
_STOP_WAIT_S = 2.0
"""How long prompts that were interrupted may take to end. One that takes longer is removed after a later run."""
_STOP_POLL_S = 0.02
_EMPTY_ATTEMPTS = 3
_CONNECT_TIMEOUT_S = 5.0
_RECONNECT_DELAYS_S = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Waits between attempts to reconnect; the last one repeats for as long as anyone listens."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SocketLost:
    """The websocket was lost: frames may be missing."""


@dataclass(frozen=True)
class SocketBack:
    """The websocket is open again; what happened meanwhile is not told."""


Notice: TypeAlias = Addressed | SocketLost | SocketBack


class ComfyServer:
    """One ComfyUI. Safe to use from several threads; keeps its connections until `close`.

    Args:
        url: where it answers, `http://127.0.0.1:8188`. Raises ConfigError where it is no http or https address.
        directory: ComfyUI's base folder (with `input`, `output`, `temp`) where this process can reach it. Files of a
            run are deleted there; without it they can only be emptied, as ComfyUI has no call that deletes a file.
    """

    def __init__(self, url: str, *, directory: Path | None = None) -> None:
        if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
            raise ConfigError(f"{url!r} is no address of a ComfyUI; give one like http://127.0.0.1:8188")
        self.directory = directory
        self._http = HttpApi(url, name="ComfyUI", use_proxies=False)
        self._client_id = uuid.uuid4().hex
        base = self._http.base_url
        self._socket = _EventSocket(f"ws{base.removeprefix('http')}/ws?clientId={self._client_id}")
        self._node_types: dict[str, JsonObject] = {}
        self._version: str | None = None
        self._leftovers = threading.Lock()
        self._unended: frozenset[str] = frozenset()
        self._unforgotten: frozenset[str] = frozenset()
        self._unemptied: dict[OutputFile, int] = {}
        self.lingering: frozenset[str] = frozenset()
        """The prompts that were stopped and still ran when their run ended."""

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

    def ask_version(self) -> str:
        """Return ComfyUI's version. Raises RequestError while ComfyUI is not there yet."""
        match self._http.json("GET", "/system_stats", timeout_s=CALL_TIMEOUT_S):
            case {"system": {"comfyui_version": str(version)}}:
                return version
        return "unknown"

    def models(self, folder: str) -> list[str]:
        """Return the files of a model folder; none where ComfyUI knows no such folder."""
        try:
            names = self._http.json("GET", f"/models/{quote(folder, safe='')}", timeout_s=CALL_TIMEOUT_S)
        except RequestError as error:
            if error.status == requests.codes.not_found:
                return []
            raise
        return [str(name) for name in names] if isinstance(names, list) else []

    def node_type(self, class_type: str) -> JsonObject:
        """Return what /object_info says of a node type, `{}` for one that ComfyUI does not have."""
        answer = self._http.json("GET", f"/object_info/{quote(class_type, safe='')}", timeout_s=CALL_TIMEOUT_S)
        found = answer.get(class_type) if isinstance(answer, dict) else None
        return found if isinstance(found, dict) else {}

    def has_node_type(self, class_type: str) -> bool:
        """Return whether ComfyUI has that node type; asked once for each that it has."""
        if class_type not in self._node_types:
            found = self.node_type(class_type)
            if not found:
                return False
            self._node_types[class_type] = found
        return True

    def queue_prompt(self, graph: Graph, prompt_id: str) -> Any:  # noqa: ANN401 - `answers.read_refusal` reads it
        """Queue `graph` under `prompt_id` and return the answer's JSON. A RequestError of status 400 is a refusal."""
        body = {"prompt": graph, "prompt_id": prompt_id, "client_id": self._client_id}
        return self._http.json("POST", "/prompt", timeout_s=CALL_TIMEOUT_S, json=body)

    def history(self, prompt_id: str, *, timeout_s: float = CALL_TIMEOUT_S) -> object:
        """Return the answer of /history for that prompt; `answers.read_history` reads it."""
        return self._http.json("GET", f"/history/{prompt_id}", timeout_s=timeout_s)

    def queue_state(self, *, timeout_s: float = CALL_TIMEOUT_S) -> tuple[frozenset[str], frozenset[str]]:
        """Return the ids of the prompts that run, and of those that wait."""
        answer = self._http.json("GET", "/queue", timeout_s=timeout_s)
        match answer:
            case {"queue_running": list(running), "queue_pending": list(pending)}:
                return frozenset(str(item[1]) for item in running), frozenset(str(item[1]) for item in pending)
        raise RequestError("ComfyUI answered GET /queue with something else than its queue")

    def stop_prompts(self, prompt_ids: Collection[str]) -> frozenset[str]:
        """Take the prompts out of the queue, interrupt the one of them that runs, and return it if it still runs then.

        An older ComfyUI ignores which prompt an interrupt is for, and stops whatever runs (reference/comfyui.md 9).
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

    def remove_prompts(self, ended: Collection[str] = (), others: Collection[str] = ()) -> None:
        """Remove prompts, with their history and graphs: those that `ended`, and `others`, which are stopped first.

        What runs on although it was interrupted, and everything where a call fails (RequestError), is removed by a
        later call: none of these calls does harm when it is repeated.
        """
        with self._leftovers:
            self._unforgotten |= set(ended)
            self._unended |= set(others)
            unended = self._unended
        if unended:
            self._end(unended)
        with self._leftovers:
            forgotten = self._unforgotten
        if forgotten:
            self._http.call("POST", "/history", timeout_s=CLEAN_TIMEOUT_S, json={"delete": sorted(forgotten)})
            with self._leftovers:
                self._unforgotten -= forgotten

    def _end(self, prompt_ids: frozenset[str]) -> None:
        """Stop prompts of which nobody has read what they wrote, and empty that."""
        running = self.stop_prompts(prompt_ids)
        with self._leftovers:
            self.lingering = (self.lingering - prompt_ids) | running
        stopped = prompt_ids - running
        if self.directory is None:
            self.empty_files(
                [file for each in stopped for file in read_written(self.history(each, timeout_s=CLEAN_TIMEOUT_S), each)]
            )
        with self._leftovers:
            self._unended -= stopped
            self._unforgotten |= stopped

    def upload(self, data: bytes, *, folder: str, filename: str, mime_type: str) -> str:
        """Write a file into a folder of ComfyUI's inputs and return the name by which a node loads it."""
        file = OutputFile("", "", filename, folder, "input")
        response = self._write(file, data, mime_type, timeout_s=CALL_TIMEOUT_S)
        match self._http.parsed(response):
            case {"name": str(name), "subfolder": str(subfolder)}:
                return f"{subfolder}/{name}" if subfolder else name
        raise RequestError("ComfyUI answered an upload with something else than the file's name")

    def empty_files(self, files: Iterable[OutputFile] = ()) -> None:
        """Write nothing over files: all that can be done over HTTP to be rid of their content.

        Raises RequestError where that fails. It is tried again by later calls: for a file that ComfyUI refuses to
        write, a few times.
        """
        with self._leftovers:
            for file in files:
                self._unemptied.setdefault(file, _EMPTY_ATTEMPTS)
            unemptied = list(self._unemptied.items())
        refusal = None
        for file, attempts in unemptied:
            try:
                self._write(file, b"", "application/octet-stream", timeout_s=CLEAN_TIMEOUT_S)
            except RequestError as error:
                if error.status is None:
                    raise
                refusal, attempts = error, attempts - 1  # noqa: PLW2901 - one fewer
            else:
                attempts = 0  # noqa: PLW2901 - done
            with self._leftovers:
                self._unemptied.pop(file, None)
                if attempts:
                    self._unemptied[file] = attempts
        if refusal is not None:
            raise refusal

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
        params = {"filename": file.filename, "subfolder": file.subfolder, "type": file.type}
        return self._http.call("GET", "/view", timeout_s=CALL_TIMEOUT_S, params=params).content


class _EventSocket:
    """The kept websocket: opened when someone listens, reopened when it is lost, read by a thread of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._listeners: dict[queue.SimpleQueue[Notice], frozenset[str]] = {}
        self._users = 0
        self._failures = 0
        self._connection: websocket.WebSocket | None = None
        self._opened = threading.Event()
        self._wanted = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, notices: queue.SimpleQueue[Notice], prompt_ids: frozenset[str]) -> None:
        with self._lock:
            self._users += 1
            self._wanted.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._read_always, name="comfyui-events", daemon=True)
                self._thread.start()
        self._opened.wait(_CONNECT_TIMEOUT_S)
        with self._lock:
            self._listeners[notices] = prompt_ids
            if not self._opened.is_set():
                notices.put(SocketLost())

    def remove(self, notices: queue.SimpleQueue[Notice]) -> None:
        with self._lock:
            del self._listeners[notices]
            self._users -= 1
            if not self._users:
                self._wanted.clear()

    def drop(self) -> None:
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closed = True
        self._wanted.set()
        self.drop()
        if self._thread is not None:
            self._thread.join(_CONNECT_TIMEOUT_S)

    def _read_always(self) -> None:
        """Keep a connection while anyone listens. An idle one is kept too, but not reopened before it is wanted."""
        while self._wanted.wait() and not self._closed:
            time.sleep(_RECONNECT_DELAYS_S[min(self._failures, len(_RECONNECT_DELAYS_S) - 1)])
            try:
                self._read_one_connection()
            except (OSError, websocket.WebSocketException) as error:
                self._failures += 1
                if not self._closed:
                    log.warning("the websocket to ComfyUI was lost or not opened: %s", type(error).__name__)

    def _read_one_connection(self) -> None:
        """Read one connection to its end, which is an exception of `recv`.

        It counts as open with its first frame (`status`): only then has ComfyUI registered it for our prompts.
        """
        connection = websocket.create_connection(
            self._url, timeout=_CONNECT_TIMEOUT_S, skip_utf8_validation=True, enable_multithread=False
        )
        self._connection = connection
        attribution = Attribution()
        try:
            self._dispatch(connection.recv(), attribution)
            connection.settimeout(None)
            self._failures = 0
            self._opened.set()
            self._tell_all(SocketBack())
            while not self._closed:
                self._dispatch(connection.recv(), attribution)
        finally:
            self._opened.clear()
            self._connection = None
            connection.shutdown()  # type: ignore[no-untyped-call] # websocket-client types most of itself
            self._tell_all(SocketLost())

    def _dispatch(self, frame: str | bytes, attribution: Attribution) -> None:
        event = parse_frame(frame)
        if event is None:
            return
        addressed = attribution.address(event)
        with self._lock:
            for notices, prompt_ids in self._listeners.items():
                if addressed.prompt_id in prompt_ids:
                    notices.put(addressed)

    def _tell_all(self, notice: SocketLost | SocketBack) -> None:
        with self._lock:
            for notices in self._listeners:
                notices.put(notice)
