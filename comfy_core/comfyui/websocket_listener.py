"""Persistent websocket connection to one ComfyUI. A thread reads it and dispatches events by prompt id.

Frames are parsed by `events`. A lost connection is reported to the subscribers as a notice, not as an exception. The
listener reconnects while it has subscribers.
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

from comfy_core.comfyui.events import AttributedEvent, Attribution, parse_frame

CONNECT_TIMEOUT_S = 5.0
_RECONNECT_DELAYS_S = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Delays between reconnect attempts. The last one repeats while there are subscribers."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SocketLost:
    """The connection was lost or could not be opened, so frames may be missing."""


@dataclass(frozen=True)
class SocketReopened:
    """The connection is open again. Frames sent in the meantime are not repeated."""


Notice: TypeAlias = AttributedEvent | SocketLost | SocketReopened


class WebsocketListener:
    """Websocket connection that is opened for the first subscriber, reopened when lost, and read by its own thread."""

    def __init__(self, url: str, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self._url = url
        self._connect_timeout_s = connect_timeout_s
        self._lock = threading.Lock()
        self._subscriptions: dict[queue.SimpleQueue[Notice], frozenset[str]] = {}
        self._subscriber_count = 0
        self._failure_count = 0
        self._connection: websocket.WebSocket | None = None
        self._opened = threading.Event()
        self._is_wanted = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, notices: queue.SimpleQueue[Notice], prompt_ids: frozenset[str]) -> None:
        """Subscribe `notices` to the events of these prompts, and to SocketLost and SocketReopened."""
        with self._lock:
            self._subscriber_count += 1
            self._is_wanted.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._read_loop, name="comfyui-events", daemon=True)
                self._thread.start()
        self._opened.wait(self._connect_timeout_s)
        with self._lock:
            self._subscriptions[notices] = prompt_ids
            if not self._opened.is_set():
                notices.put(SocketLost())

    def remove(self, notices: queue.SimpleQueue[Notice]) -> None:
        """Unsubscribe `notices`."""
        with self._lock:
            del self._subscriptions[notices]
            self._subscriber_count -= 1
            if not self._subscriber_count:
                self._is_wanted.clear()

    def drop(self) -> None:
        """Close the connection. It is reopened if there are subscribers."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection and stop the thread."""
        self._closed = True
        self._is_wanted.set()
        self.drop()
        if self._thread is not None:
            self._thread.join(self._connect_timeout_s)

    def _read_loop(self) -> None:
        """Keep a connection open while there are subscribers. Afterwards it stays open, but is not reopened."""
        while self._is_wanted.wait() and not self._closed:
            time.sleep(_RECONNECT_DELAYS_S[min(self._failure_count, len(_RECONNECT_DELAYS_S) - 1)])
            try:
                self._read_one_connection()
            except (OSError, websocket.WebSocketException) as error:
                self._failure_count += 1
                if not self._closed:
                    log.warning("websocket to ComfyUI lost or not opened: %s", type(error).__name__)

    def _read_one_connection(self) -> None:
        """Open a connection and read it until `recv` raises.

        The connection counts as open after its first frame (`status`): only then has ComfyUI registered the client id.
        """
        connection = websocket.create_connection(
            self._url, timeout=self._connect_timeout_s, skip_utf8_validation=True, enable_multithread=False
        )
        self._connection = connection
        attribution = Attribution()
        try:
            self._dispatch(connection.recv(), attribution)
            connection.settimeout(None)
            self._failure_count = 0
            self._opened.set()
            self._notify_all(SocketReopened())
            while not self._closed:
                self._dispatch(connection.recv(), attribution)
        finally:
            self._opened.clear()
            self._connection = None
            connection.shutdown()  # type: ignore[no-untyped-call] # websocket-client is only partly typed
            self._notify_all(SocketLost())

    def _dispatch(self, frame: str | bytes, attribution: Attribution) -> None:
        event = parse_frame(frame)
        if event is None:
            return
        attributed = attribution.attribute(event)
        with self._lock:
            for notices, prompt_ids in self._subscriptions.items():
                if attributed.prompt_id in prompt_ids:
                    notices.put(attributed)

    def _notify_all(self, notice: SocketLost | SocketReopened) -> None:
        with self._lock:
            for notices in self._subscriptions:
                notices.put(notice)
