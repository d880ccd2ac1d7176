"""A client of a ComfyUI server for tests. It uses none of our client code, and returns messages as it received them."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
import websocket
from PIL import Image

from simulators.comfyui import Simulator
from tools.recorded_graphs import Graph

TIMEOUT_S = 60.0
POLL_S = 0.002

FIRST, SECOND, THIRD, FOURTH = (str(uuid.UUID(int=number)) for number in range(4))
"""Prompt ids. ComfyUI accepts only UUIDs."""

Frame = dict[str, Any]


def wait_until(condition: Callable[[], object]) -> None:
    """Return when `condition` returns a true value; fail if that does not happen in time."""
    deadline = time.monotonic() + TIMEOUT_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        pause.wait(POLL_S)


def png(image: Image.Image, **options: Any) -> bytes:  # noqa: ANN401  those of Image.save
    """Return an image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def parsed(message: str | bytes) -> Frame:
    """Return a frame in the format of the recordings. A binary frame also has its content, under `file`."""
    if isinstance(message, str):
        return {"ws": json.loads(message)}
    event, kind = struct.unpack(">II", message[:8])
    return {"ws_binary": {"head_hex": message[:16].hex(), "event": event, "fmt": kind}, "file": message[8:]}


class Listener:
    """One websocket connection."""

    def __init__(self, url: str, client_id: str) -> None:
        address = f"{url.replace('http', 'ws', 1)}/ws?clientId={client_id}"
        self._socket = websocket.create_connection(address, timeout=TIMEOUT_S)

    def frame(self) -> Frame:
        """Return the next frame."""
        opcode, data = self._socket.recv_data()
        return parsed(data.decode() if opcode == websocket.ABNF.OPCODE_TEXT else data)

    def frames(self, count: int) -> list[Frame]:
        """Return the next `count` frames."""
        return [self.frame() for _ in range(count)]

    def frames_until(self, kind: str, **data: object) -> list[Frame]:
        """Return the frames up to the first one with this type and data."""
        frames: list[Frame] = []
        while not frames or not _fits(frames[-1], kind, data):
            frames.append(self.frame())
        return frames

    def frames_until_closed(self) -> list[Frame]:
        """Return the frames up to the server's close frame."""
        frames: list[Frame] = []
        with contextlib.suppress(websocket.WebSocketConnectionClosedException):
            while event := self.raw_event():
                opcode, data = event
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    break
                frames.append(parsed(data.decode() if opcode == websocket.ABNF.OPCODE_TEXT else data))
        return frames

    def raw_event(self) -> tuple[int, bytes]:
        """Return opcode and data of the next message, which may be a control frame."""
        opcode, data = self._socket.recv_data(control_frame=True)
        return opcode, data

    def is_silent(self) -> bool:
        """Send a ping; return whether the reply to it is the next message."""
        self._socket.ping()
        return self.raw_event()[0] == int(websocket.ABNF.OPCODE_PONG)

    def send(self, message: object) -> None:
        """Send JSON, or a text unchanged."""
        self._socket.send(message if isinstance(message, str) else json.dumps(message))

    def close(self) -> None:
        """Close the connection in order, or abandon a broken one."""
        self._socket.close()
        self._socket.shutdown()  # type: ignore[no-untyped-call]  # the package is typed but for this


def _fits(frame: Frame, kind: str, data: dict[str, object]) -> bool:
    match frame:
        case {"ws": {"type": type_, "data": found}} if type_ == kind:
            return all(found.get(name) == value for name, value in data.items())
    return False


class Driver:
    """A client that sends HTTP requests and opens websockets under one clientId."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client_id = str(uuid.uuid4())
        self.session = requests.Session()

    @contextmanager
    def listening(self, client_id: str | None = None) -> Iterator[Listener]:
        """Open a websocket under our clientId, or another one, for the `with` block."""
        listener = Listener(self.url, client_id or self.client_id)
        try:
            yield listener
        finally:
            listener.close()

    def get(self, path: str, **params: str) -> requests.Response:
        """Send a GET; return the response."""
        return self.session.get(self.url + path, params=params, timeout=TIMEOUT_S)

    def post(self, path: str, body: object = None) -> requests.Response:
        """Send a POST of JSON; return the response."""
        return self.session.post(self.url + path, json=body, timeout=TIMEOUT_S)

    def queue(self, graph: Graph, **more: object) -> requests.Response:
        """Queue a graph under our clientId; return the response."""
        return self.post("/prompt", {"prompt": graph, "client_id": self.client_id, **more})

    def upload(self, name: str, content: bytes, **form: str) -> requests.Response:
        """Upload an image; return the response."""
        files = {"image": (name, content)}
        return self.session.post(f"{self.url}/upload/image", files=files, data=form, timeout=TIMEOUT_S)

    def history(self, prompt_id: str) -> dict[str, Any]:
        """Wait until a prompt has a history entry; return the entry."""
        responses: list[dict[str, Any]] = []

        def has_entry() -> bool:
            responses.append(self.get(f"/history/{prompt_id}").json())
            return bool(responses[-1])

        wait_until(has_entry)
        entry: dict[str, Any] = responses[-1][prompt_id]
        return entry

    def run(self, graph: Graph, **more: object) -> dict[str, Any]:
        """Run a graph until its end; return its history entry."""
        response = self.queue(graph, **more)
        assert response.status_code == 200, response.text
        return self.history(response.json()["prompt_id"])

    def saved_files(self, graph: Graph, node_id: str = "out") -> list[bytes]:
        """Run a graph; return the files that one of its nodes saved."""
        saved = self.run(graph)["outputs"][node_id]["images"]
        return [self.get("/view", **image).content for image in saved]


@contextmanager
def simulated(**settings: Any) -> Iterator[tuple[Simulator, Driver]]:  # noqa: ANN401  those of Simulator
    """Yield a simulator with these options, and a client of it."""
    with Simulator(**settings) as sim:
        driver = Driver(sim.url)
        with driver.session:
            yield sim, driver
