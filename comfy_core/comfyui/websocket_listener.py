"""The kept websocket to one ComfyUI: a thread reads it, and hands the events out by prompt.

What a frame says is for `events`. A lost socket is an event, and no exception; while anyone listens it is opened anew.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from dataclasses import dataclass
from typing import TypeAlias

import websocket

from comfy_core.comfyui.events import Addressed, Attribution, parse_frame

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


class EventSocket:
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
        """Put the events of these prompts, and each loss and return of the socket, into `notices`."""
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
        """Put nothing into `notices` any more."""
        with self._lock:
            del self._listeners[notices]
            self._users -= 1
            if not self._users:
                self._wanted.clear()

    def drop(self) -> None:
        """Close the connection, so that it is opened anew."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection for good."""
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
