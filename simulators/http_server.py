"""HTTP servers in a thread of this process, and free ports."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

NO_HEADERS: Mapping[str, str] = {}


def free_port() -> int:
    """Return a TCP port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class InThread(socketserver.BaseServer):
    """A mixin for servers: a context manager that serves in a thread inside its `with` block."""

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class HttpServer(InThread, ThreadingHTTPServer):
    """An HTTP server on `port` of `host`, by default on a free one."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler], host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((host, port), handler)

    @property
    def url(self) -> str:
        """The server's URL."""
        return f"http://127.0.0.1:{self.server_port}"


class HttpHandler(BaseHTTPRequestHandler):
    """A request handler that logs nothing."""

    disable_nagle_algorithm = True
    """Send a body at once. On a kept connection it would wait 40 ms for the client's acknowledgement of the headers."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def body(self) -> bytes:
        """Return the request's body."""
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def respond(self, status: int, body: bytes = b"", headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Send the status, the headers and the body of a response."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
