"""HTTP and websockets of one ComfyUI. Requests, responses and frames become entries of a recording."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import requests
import websocket

RESPONSE_TIMEOUT_S = 120.0
MESSAGE_TIMEOUT_S = 300.0
"""Seconds until the awaited message of a websocket must have arrived."""
IDLE_TIMEOUT_S = 60.0
"""Seconds until ComfyUI must have stopped an interrupted prompt."""
POLL_S = 0.05
BINARY = "binary"
"""The kind of a binary frame."""
UNRECORDED_KEYS = {
    "category", "description", "display_name", "essentials_category", "help", "input_order", "python_module",
    "search_aliases", "tooltip",
}  # fmt: skip
"""Keys of /object_info and of error responses that contain texts for people. They are not recorded."""
HOST_PATH = re.compile(r"'/[^']*/input/")

Entry = dict[str, Any]
"""One element of a recording: a frame, a request with its response, or a note."""


class RecordingError(Exception):
    """A recording that could not be made; the text names the message that did not arrive."""


class Message:
    """A kind of frame to wait for: a message of type `kind`, or BINARY, whose data contains `data`."""

    def __init__(self, kind: str, **data: object) -> None:
        self._kind = kind
        self._data = data

    def __str__(self) -> str:
        return f"`{self._kind}`{f' with {self._data}' if self._data else ''}"

    def matches(self, frame: Entry) -> bool:
        """Return whether a frame is such a message."""
        if kind_of(frame) != self._kind:
            return False
        return all(frame["ws"]["data"].get(name, "") == value for name, value in self._data.items())


FAILURES = (Message("execution_error"), Message("execution_interrupted"))
END = (*FAILURES, Message("executing", node=None))
"""The frames that end a run."""
IDLE = Message("status", status={"exec_info": {"queue_remaining": 0}})


def kind_of(frame: Entry) -> str:
    """Return the type of a frame's message, or BINARY."""
    return BINARY if "ws_binary" in frame else str(frame["ws"]["type"])


class ComfyUI:
    """HTTP and websockets of one ComfyUI."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._session = requests.Session()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def send(self, method: str, path: str, **options: Any) -> requests.Response:  # noqa: ANN401 - the options of requests
        """Send a request and return the response."""
        return self._session.request(method, self.url + path, timeout=RESPONSE_TIMEOUT_S, **options)

    def exchange(self, method: str, path: str, **options: Any) -> Entry:  # noqa: ANN401 - the options of requests
        """Send a request; return the request and its response as an entry."""
        response = self.send(method, path, **options)
        content_type = response.headers.get("Content-Type")
        body = response.json() if "json" in (content_type or "") else f"<{len(response.content)} bytes>"
        request = {"method": method, "path": path, **options}
        return {"request": request, "status": response.status_code, "content_type": content_type, "body": body}

    def upload(self, name: str, content: bytes, **form: str) -> requests.Response:
        """Upload a file and return the response."""
        return self.send("POST", "/upload/image", files={"image": (name, content)}, data=form)

    def history(self, prompt_id: str) -> Entry:
        """Wait until /history has the prompt; return that request and its response as an entry."""
        deadline = time.monotonic() + MESSAGE_TIMEOUT_S
        while not (entry := self.exchange("GET", f"/history/{prompt_id}"))["body"]:
            if time.monotonic() > deadline:
                raise RecordingError(f"/history has no entry for {prompt_id} after {MESSAGE_TIMEOUT_S:g} s")
            time.sleep(POLL_S)
        return entry

    def stop_prompts(self) -> bool:
        """Remove all waiting prompts and interrupt the running one; return whether ComfyUI is idle after that."""
        deadline = time.monotonic() + IDLE_TIMEOUT_S
        try:
            self.send("POST", "/queue", json={"clear": True})
            self.send("POST", "/interrupt")
            while self.has_prompts() and time.monotonic() < deadline:
                time.sleep(POLL_S)
            return not self.has_prompts()
        except requests.RequestException:
            return False

    def has_prompts(self) -> bool:
        """Return whether prompts wait or run."""
        return bool(self.send("GET", "/prompt").json()["exec_info"]["queue_remaining"])

    @contextmanager
    def websocket(self, client_id: str) -> Iterator[websocket.WebSocket]:
        """Yield an open websocket, and close it afterwards."""
        address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={client_id}"
        connection = websocket.create_connection(address, timeout=RESPONSE_TIMEOUT_S)
        try:
            yield connection
        finally:
            connection.close()
            # After a close frame of ComfyUI, `close` does nothing.
            connection.shutdown()  # type: ignore[no-untyped-call] # websocket-client is only partly typed


def read_frame(connection: websocket.WebSocket) -> Entry:
    """Return the next frame of a websocket as an entry."""
    opcode, data = connection.recv_data()
    if opcode == websocket.ABNF.OPCODE_TEXT:
        return {"ws": without_texts_for_people(json.loads(data))}
    if opcode == websocket.ABNF.OPCODE_CLOSE:
        raise websocket.WebSocketConnectionClosedException("ComfyUI closed the websocket")
    head = data[:16].hex()
    return {"ws_binary": {"len": len(data), "head_hex": head, "event": int(head[:8], 16), "fmt": int(head[8:16], 16)}}


def read_until(connection: websocket.WebSocket, *awaited: Message, posted_at: float) -> Iterator[Entry]:
    """Yield frames with their seconds since `posted_at`, up to and including the first one that is in `awaited`.

    Raises RecordingError if none of `awaited` arrives in MESSAGE_TIMEOUT_S, or the websocket is closed.
    """
    deadline = time.monotonic() + MESSAGE_TIMEOUT_S
    last = "no message arrived"
    try:
        while (remaining_s := deadline - time.monotonic()) > 0:
            connection.settimeout(remaining_s)
            frame = read_frame(connection)
            yield {"t": round(time.monotonic() - posted_at, 4), **frame}
            if any(message.matches(frame) for message in awaited):
                return
            last = f"the last message was `{kind_of(frame)}`"
        reason = f"{MESSAGE_TIMEOUT_S:g} s are over"
    except websocket.WebSocketException as error:
        reason = str(error)
    raise RecordingError(f"no {' or '.join(map(str, awaited))} arrived ({reason}); {last}")


def without_texts_for_people(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Return JSON without UNRECORDED_KEYS, tracebacks and the host's paths of input files."""
    match value:
        case dict():
            kept = {key: inner for key, inner in value.items() if key not in UNRECORDED_KEYS}
            return {key: [] if key == "traceback" else without_texts_for_people(inner) for key, inner in kept.items()}
        case list():
            return [without_texts_for_people(inner) for inner in value]
        case str():
            return HOST_PATH.sub("'/comfyui/input/", value)
    return value
