"""A TCP port that refuses connections until it is opened, and then forwards them to another port."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from typing import Self
from urllib.parse import urlsplit

from simulators.http_server import InThread


class ClosedPort(InThread, socketserver.ThreadingTCPServer):
    """A port that refuses connections until `open` is called, and then forwards them to the server at `url`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Forwarder, bind_and_activate=False)
        self.server_bind()  # reserves the port
        parts = urlsplit(url)
        self.target = (parts.hostname or "", parts.port or 80)
        self._path = parts.path
        self._is_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_open:
            super().__exit__()
        self.server_close()

    @property
    def url(self) -> str:
        """The URL of this port."""
        return f"http://127.0.0.1:{self.server_address[1]}{self._path}"

    def open(self) -> None:
        """Accept and forward connections from now on."""
        self.server_activate()
        super().__enter__()
        self._is_open = True


class _Forwarder(socketserver.BaseRequestHandler):
    server: ClosedPort

    def handle(self) -> None:
        with contextlib.suppress(OSError), socket.create_connection(self.server.target) as far:
            back = threading.Thread(target=_pipe, args=(far, self.request), daemon=True)
            back.start()
            _pipe(self.request, far)
            back.join()


def _pipe(source: socket.socket, sink: socket.socket) -> None:
    """Forward bytes until `source` or `sink` ends."""
    with contextlib.suppress(OSError):
        while piece := source.recv(65_536):
            sink.sendall(piece)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
