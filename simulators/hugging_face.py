"""A server of models on a real socket, as hostile as it is told to be.

It answers on 127.0.0.1 where no other host is named, and then as `localhost` too, another host to whoever compares
names. It takes ranges, as Hugging Face.
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
from typing import Self

from simulators.http_server import HttpHandler, HttpServer


@dataclass(frozen=True)
class ModelRequest:
    """One request as it came."""

    path: str
    host: str
    offset: int
    """Where its Range begins; 0 without one."""
    token: str
    """Of its Authorization; empty without one."""
    headers: Mapping[str, str] = field(repr=False)
    query: str = ""


@dataclass(frozen=True)
class ModelResponse:
    """What to answer instead of the file.

    Attributes:
        status: of the answer.
        headers: put on it.
        body: sent whole; a range asked for does not count.
        tells_length: whether it has a Content-Length.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    tells_length: bool = True


class HeldResponse:
    """Keeps an answer open after some of its bytes, until it is let go."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.reached = threading.Event()
        """Those bytes are on their way."""
        self._let_go = threading.Event()

    def release(self) -> None:
        """Send the rest."""
        self._let_go.set()

    def wait(self) -> None:
        """Wait, on the server's side."""
        self.reached.set()
        self._let_go.wait(60)


class ModelServer:
    """Serves what was put there, for as long as the context lasts."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self.asked: list[ModelRequest] = []
        """Every request, in order."""
        self._files: dict[str, bytes | Path] = {}
        self._answers: dict[str, list[ModelResponse]] = {}
        self._cuts: dict[str, list[int]] = {}
        self._holds: dict[str, HeldResponse] = {}
        self._rangeless: set[str] = set()
        self._lock = threading.Lock()
        self._server = _Server(self, host)

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for hold in self._holds.values():
            hold.release()
        self._server.__exit__()

    @property
    def url(self) -> str:
        """Its address, to stand for https://huggingface.co."""
        return f"http://{self._host}:{self._server.server_port}"

    @property
    def other_url(self) -> str:
        """The same server under the name of another host."""
        return f"http://localhost:{self._server.server_port}"

    # What is there.

    def put(self, path: str, content: bytes | Path) -> None:
        """Serve `content` at `path`, which begins with a slash. A file is read only when it is sent."""
        self._files[path] = content

    # Verbs of hostility.

    def cut(self, path: str, *after: int) -> None:
        """Close the connection of the next answers, each after so many bytes of its body."""
        self._cuts.setdefault(path, []).extend(after)

    def answer(self, path: str, *answers: ModelResponse) -> None:
        """Give these answers to the next requests."""
        self._answers.setdefault(path, []).extend(answers)

    def ignore_ranges(self, path: str) -> None:
        """Send the file from its start, whatever range is asked for."""
        self._rangeless.add(path)

    def hold(self, path: str, after: int) -> HeldResponse:
        """Keep every answer open after so many bytes of its body; the hold lets them go."""
        hold = self._holds[path] = HeldResponse(after)
        return hold

    # What was asked.

    def requests(self, path: str) -> list[ModelRequest]:
        """Return the requests for `path`, in order."""
        return [asked for asked in self.asked if asked.path == path]

    # Of the handler alone.

    def next_answer(self, asked: ModelRequest) -> ModelResponse | None:
        """Note a request; return what to answer instead of the file."""
        with self._lock:
            self.asked.append(asked)
            answers = self._answers.get(asked.path)
            return answers.pop(0) if answers else None

    def next_cut(self, path: str) -> int | None:
        """Return after how many bytes the answer is to be cut."""
        with self._lock:
            cuts = self._cuts.get(path)
            return cuts.pop(0) if cuts else None

    def content(self, path: str) -> bytes | Path | None:
        """Return what is served there."""
        return self._files.get(path)

    def hold_of(self, path: str) -> HeldResponse | None:
        """Return what keeps answers open there."""
        return self._holds.get(path)

    def takes_ranges(self, path: str) -> bool:
        """Return whether a range counts there."""
        return path not in self._rangeless


class _Server(HttpServer):
    def __init__(self, models: ModelServer, host: str) -> None:
        super().__init__(_ModelHandler, host)
        self.models = models

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients here are killed and go away."""


class _ModelHandler(HttpHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        path = self.path.partition("?")[0]
        asked = ModelRequest(
            path,
            self.headers.get("Host", "").partition(":")[0],
            int(found[1]) if found else 0,
            self.headers.get("Authorization", "").removeprefix("Bearer "),
            dict(self.headers),
            self.path.partition("?")[2],
        )
        self.close_connection = True
        content = self.server.models.content(path)
        if answer := self.server.models.next_answer(asked):
            self._say(answer)
        elif content is None:
            self._say(ModelResponse(404, {"X-Error-Code": "EntryNotFound"}, b"Entry not found"))
        else:
            self._send_file(path, content, asked.offset if self.server.models.takes_ranges(path) else 0)

    def _say(self, answer: ModelResponse) -> None:
        length = {"Content-Length": str(len(answer.body))} if answer.tells_length else {}
        self._head(answer.status, {**length, **answer.headers})
        self.wfile.write(answer.body)

    def _send_file(self, path: str, content: bytes | Path, offset: int) -> None:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if offset >= size:
            self._say(ModelResponse(416, {"Content-Range": f"bytes */{size}"}))
            return
        headers = {"Content-Length": str(size - offset), "ETag": f'"{hashlib.sha256(path.encode()).hexdigest()}"'}
        if offset:
            headers["Content-Range"] = f"bytes {offset}-{size - 1}/{size}"
        self._head(HTTPStatus.PARTIAL_CONTENT if offset else HTTPStatus.OK, headers)
        if isinstance(content, Path):
            with content.open("rb") as file:
                self.connection.sendfile(file, offset)
            return
        body = memoryview(content)[offset:]
        cut = self.server.models.next_cut(path)
        if hold := self.server.models.hold_of(path):
            self.wfile.write(body[: hold.after])
            hold.wait()
            body = body[hold.after :]
        self.wfile.write(body[:cut])
        if cut is not None:
            self.connection.shutdown(socket.SHUT_RDWR)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
