"""ComfyUI's websocket frames as values. No socket here: bytes and text in, values out.

Facts of the protocol (ComfyUI 0.3.64, execution.py and server.py; seen in tests/recordings):

- A text frame is `{"type", "data"}`. Frames of a prompt go only to the client_id of its POST /prompt.
- A run: `execution_start`, `execution_cached` (nodes that are not run again), per node `executing`, `progress` while it
  samples, `executed` where it has UI output; then `execution_success`, and last `executing` with node null.
- `executing` with node null means finished, not succeeded, and only then can /history be read. It also follows
  `execution_error` and `execution_interrupted`; an error frame alone is no end.
- After a reconnect with the same clientId, `executing` comes with a node and without prompt_id while a prompt of this
  client runs. Of a prompt that ended meanwhile comes nothing.
- A binary frame is a big-endian event number (4 bytes) and its payload. Event 1 is an image: its format (4 bytes: 1
  JPEG, 2 PNG) and its file. SaveImageWebsocket sends its pictures so, as PNG; previews while sampling are JPEG. No
  frame says which node it is of: the last `executing` or `progress` does.
- Types come and go with versions; what is unknown here is no event.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Started:
    """The executor took the prompt up."""

    prompt_id: str


@dataclass(frozen=True)
class Cached:
    """These nodes are not run again."""

    prompt_id: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Executing:
    """A node began. `prompt_id` is None in the frame that follows a reconnect."""

    prompt_id: str | None
    node: str


@dataclass(frozen=True)
class NodeProgress:
    """A node is at step `value` of `maximum`."""

    prompt_id: str
    node: str
    value: int
    maximum: int


@dataclass(frozen=True)
class Finished:
    """The prompt ended, well or not: /history now says how."""

    prompt_id: str


@dataclass(frozen=True)
class Image:
    """An image of the node that runs: a preview (JPEG), or what SaveImageWebsocket saves (PNG)."""

    data: bytes
    is_png: bool


Event: TypeAlias = Started | Cached | Executing | NodeProgress | Finished | Image


def parse_frame(frame: str | bytes) -> Event | None:
    """Return the event that a frame carries, or None for one that says nothing of a run."""
    return _parse_binary(frame) if isinstance(frame, bytes) else _parse_text(frame)


def _parse_binary(frame: bytes) -> Image | None:
    header = struct.Struct(">II")
    if len(frame) <= header.size:
        return None
    event, image_format = header.unpack_from(frame)
    match event, image_format:
        case 1, 1 | 2:
            return Image(frame[header.size :], is_png=image_format == 2)  # noqa: PLR2004 - the docstring above
    return None


def _parse_text(frame: str) -> Event | None:  # noqa: PLR0911 - one return an event
    try:
        message = json.loads(frame)
    except ValueError:
        return None
    match message:
        case {"type": "execution_start", "data": {"prompt_id": str(prompt_id)}}:
            return Started(prompt_id)
        case {"type": "execution_cached", "data": {"prompt_id": str(prompt_id), "nodes": list(nodes)}}:
            return Cached(prompt_id, tuple(map(str, nodes)))
        case {"type": "executing", "data": {"prompt_id": str(prompt_id), "node": None}}:
            return Finished(prompt_id)
        case {"type": "executing", "data": {"prompt_id": str(prompt_id), "node": str(node)}}:
            return Executing(prompt_id, node)
        case {"type": "executing", "data": {"node": str(node)}}:
            return Executing(None, node)
        case {
            "type": "progress",
            "data": {
                "prompt_id": str(prompt_id),
                "node": str(node),
                "value": int() | float() as value,
                "max": int() | float() as maximum,
            },
        }:
            return NodeProgress(prompt_id, node, int(value), int(maximum))
    return None


@dataclass(frozen=True)
class Addressed:
    """An event, and the prompt and node that it is of (None where no frame has said)."""

    prompt_id: str | None
    node: str | None
    event: Event


class Attribution:
    """Tells of each event which prompt and node it belongs to. One for each connection: a new one knows nothing yet."""

    def __init__(self) -> None:
        self._prompt_id: str | None = None
        self._node: str | None = None

    def address(self, event: Event) -> Addressed:
        """Return `event` with its prompt and node, and remember what it says of those that follow."""
        match event:
            case Started(prompt_id) | Cached(prompt_id):
                self._prompt_id, self._node = prompt_id, None
            case Executing(prompt_id, node) | NodeProgress(prompt_id, node):
                self._prompt_id, self._node = prompt_id, node
            case Finished(prompt_id):
                self._prompt_id, self._node = None, None
                return Addressed(prompt_id, None, event)
        return Addressed(self._prompt_id, self._node, event)
