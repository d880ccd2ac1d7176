"""Simulates Hugging Face: a server of model files on a real socket, with faults to inject.

It listens on 127.0.0.1 by default. The URL with `localhost` reaches the same server, and is another host for code that
compares host names. It supports range requests, as Hugging Face does.
"""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from simulators.http_server import HttpHandler, HttpServer


@dataclass(frozen=True)
class ModelRequest:
    """A received request."""

    path: str
    host: str
    offset: int
    """The start of the requested range, or 0."""
    token: str
    """The bearer token, or an empty string."""
    headers: Mapping[str, str] = field(repr=False)
    query: str = ""


@dataclass(frozen=True)
class ModelResponse:
    """A response instead of the file. The whole body is sent, even for a range request.

    `has_length` is whether the response has a Content-Length.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    has_length: bool = True


class HeldResponse:
    """Pauses the responses of a path after some bytes, until `release`."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.reached = threading.Event()
        """Set when `after` bytes were sent."""
        self._released = threading.Event()

    def release(self) -> None:
        """Send the rest of the responses."""
        self._released.set()

    def wait(self) -> None:
        """Set `reached`, and wait for `release`, but not longer than 120 s. The server's thread calls it."""
        self.reached.set()
        self._released.wait(120)


class ModelServer(HttpServer):
    """Serves files inside its `with` block. `cut` and `hold` only affect content that `put` got as bytes."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__(_ModelHandler, host)
        self._host = host
        self.received: list[ModelRequest] = []
        """All requests, in order."""
        self.files: dict[str, bytes | Path] = {}
        self.responses: dict[str, list[ModelResponse]] = {}
        self.cuts: dict[str, list[int]] = {}
        self.holds: dict[str, HeldResponse] = {}
        self.paths_without_ranges: set[str] = set()
        self.lock = threading.Lock()

    def __exit__(self, *_: object) -> None:
        for hold in self.holds.values():
            hold.release()
        super().__exit__()

    @property
    def url(self) -> str:
        """The URL to use instead of https://huggingface.co."""
        return f"http://{self._host}:{self.server_port}"

    @property
    def other_url(self) -> str:
        """The URL of the same server with another host name."""
        return f"http://localhost:{self.server_port}"

    def put(self, path: str, content: bytes | Path) -> None:
        """Serve `content` at `path`, which begins with a slash. A file is read for each response."""
        self.files[path] = content

    def cut(self, path: str, *after: int) -> None:
        """Close the connections of the next responses, each after that many bytes of the body."""
        self.cuts.setdefault(path, []).extend(after)

    def respond(self, path: str, *responses: ModelResponse) -> None:
        """Send these responses to the next requests for `path`."""
        self.responses.setdefault(path, []).extend(responses)

    def ignore_ranges(self, path: str) -> None:
        """Send the whole file, even for a range request."""
        self.paths_without_ranges.add(path)

    def hold(self, path: str, after: int) -> HeldResponse:
        """Pause every response for `path` after `after` bytes of the body. The returned object releases them."""
        hold = self.holds[path] = HeldResponse(after)
        return hold

    def requests(self, path: str) -> list[ModelRequest]:
        """Return the received requests for `path`, in order."""
        return [request for request in self.received if request.path == path]

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing: tests kill clients during a response."""


class _ModelHandler(HttpHandler):
    protocol_version = "HTTP/1.1"
    server: ModelServer

    def do_GET(self) -> None:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        path = self.path.partition("?")[0]
        request = ModelRequest(
            path,
            self.headers.get("Host", "").partition(":")[0],
            int(found[1]) if found else 0,
            self.headers.get("Authorization", "").removeprefix("Bearer "),
            dict(self.headers),
            self.path.partition("?")[2],
        )
        self.close_connection = True
        content = self.server.files.get(path)
        with self.server.lock:
            self.server.received.append(request)
            responses = self.server.responses.get(path)
            response = responses.pop(0) if responses else None
        if response:
            self._respond(response)
        elif content is None:
            self._respond(ModelResponse(404, {"X-Error-Code": "EntryNotFound"}, b"Entry not found"))
        else:
            self._send_file(path, content, 0 if path in self.server.paths_without_ranges else request.offset)

    def _respond(self, response: ModelResponse) -> None:
        length = {"Content-Length": str(len(response.body))} if response.has_length else {}
        self._send_head(response.status, {**length, **response.headers})
        self.wfile.write(response.body)

    def _send_file(self, path: str, content: bytes | Path, offset: int) -> None:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if offset >= size:
            self._respond(ModelResponse(416, {"Content-Range": f"bytes */{size}"}))
            return
        headers = {"Content-Length": str(size - offset), "ETag": f'"{hashlib.sha256(path.encode()).hexdigest()}"'}
        if offset:
            headers["Content-Range"] = f"bytes {offset}-{size - 1}/{size}"
        with self.server.lock:  # before the head, after which the client may close and send its next request
            cuts = self.server.cuts.get(path) if isinstance(content, bytes) else None
            cut = cuts.pop(0) if cuts else None
        self._send_head(HTTPStatus.PARTIAL_CONTENT if offset else HTTPStatus.OK, headers)
        if isinstance(content, Path):
            with content.open("rb") as file:
                self.connection.sendfile(file, offset)
            return
        body = memoryview(content)[offset:]
        if hold := self.server.holds.get(path):
            self.wfile.write(body[: hold.after])
            hold.wait()
            body = body[hold.after :]
        self.wfile.write(body[:cut])
        if cut is not None:
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send_head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
