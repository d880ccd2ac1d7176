"""Parses ComfyUI's websocket frames into events. No I/O.

Facts of the protocol (ComfyUI's execution.py and server.py; tests/recordings):

- A text frame is `{"type", "data"}`. Frames of a prompt are only sent to the client_id of its POST /prompt.
- Order of a prompt's frames: `execution_start`; `execution_cached` (nodes served from the cache); for each node
  `executing`, `progress` while sampling, and `executed` if it has UI output; `execution_success`; last, `executing`
  with node null.
- `executing` with node null means that the prompt has ended, successfully or not. It also follows `execution_error` and
  `execution_interrupted`, so an error frame is not the last frame. /history has no result before this last frame.
- After a reconnect with the same clientId, ComfyUI sends `executing` with a node and without prompt_id if a prompt of
  this client is running. It sends nothing for a prompt that ended in the meantime.
- A binary frame is a big-endian event number (4 bytes) and its payload. Event 1 is an image: its format (4 bytes: 1
  JPEG, 2 PNG) and its file. SaveImageWebsocket sends its images this way, as PNG; previews while sampling are JPEG.
  An image frame names no node. It comes from the node that the last `executing` or `progress` frame names.
- Event PIXEL_EVENT is an image as raw pixels, from the node of worker/nodes/send_pixels.py, which documents its format.
  Such a frame names its prompt and node, and the number of images that the node sends.
- Frame types vary between versions. Unknown types are ignored.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TypeAlias

from comfy_core.images.pixels import Pixels

PIXEL_EVENT = int.from_bytes(b"PIXL", "big")
_HEADER = struct.Struct(">II")


@dataclass(frozen=True)
class Started:
    """Execution of the prompt started."""

    prompt_id: str


@dataclass(frozen=True)
class Cached:
    """These nodes are served from ComfyUI's cache and are not executed."""

    prompt_id: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Executing:
    """Execution of a node started. `prompt_id` is None in the frame that follows a reconnect."""

    prompt_id: str | None
    node: str


@dataclass(frozen=True)
class StepProgress:
    """A node is at step `value` of `maximum`."""

    prompt_id: str
    node: str
    value: int
    maximum: int


@dataclass(frozen=True)
class Finished:
    """The prompt ended, successfully or not. /history has the result now or soon."""

    prompt_id: str


@dataclass(frozen=True)
class Image:
    """An image from the running node: a preview (JPEG), or an output of SaveImageWebsocket (PNG)."""

    data: bytes
    is_png: bool


@dataclass(frozen=True)
class PixelImage:
    """An output of SendPixelsWebsocket: image `index`, from 0, of the `count` images that the node sends."""

    prompt_id: str
    node: str
    index: int
    count: int
    pixels: Pixels


Event: TypeAlias = Started | Cached | Executing | StepProgress | Finished | Image | PixelImage


def parse_frame(frame: str | bytes) -> Event | None:
    """Return the event in a frame, or None for a frame that is unknown or does not concern a prompt."""
    return _parse_binary(frame) if isinstance(frame, bytes) else _parse_text(frame)


def _parse_binary(frame: bytes) -> Image | PixelImage | None:
    if len(frame) <= _HEADER.size:
        return None
    match _HEADER.unpack_from(frame):
        case 1, 1 | 2 as image_format:
            return Image(frame[_HEADER.size :], is_png=image_format == 2)  # noqa: PLR2004 - see the module's docstring
        case event, length if event == PIXEL_EVENT:
            return _parse_pixels(
                frame[_HEADER.size : _HEADER.size + length], memoryview(frame)[_HEADER.size + length :]
            )
    return None


def _parse_pixels(header: bytes, data: memoryview) -> PixelImage | None:
    try:
        match json.loads(header):
            case {
                "prompt_id": str(prompt_id),
                "node": str(node),
                "index": int(index),
                "count": int(count),
                "width": int(width),
                "height": int(height),
                "channels": 1 | 2 | 3 | 4 as channels,
            } if 0 <= index < count and min(width, height) > 0 and len(data) == width * height * channels:
                return PixelImage(prompt_id, node, index, count, Pixels(data, width, height, channels))
    except ValueError:
        pass
    return None


def _parse_text(frame: str) -> Event | None:  # noqa: PLR0911 - one return for each event
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
            return StepProgress(prompt_id, node, int(value), int(maximum))
    return None


@dataclass(frozen=True)
class AttributedEvent:
    """An event with its prompt and its node. `prompt_id` or `node` is None if it is not known."""

    prompt_id: str | None
    node: str | None
    event: Event


class Attribution:
    """Assigns events to their prompt and node, based on earlier frames. Create one for each connection."""

    def __init__(self) -> None:
        self._prompt_id: str | None = None
        self._node: str | None = None

    def attribute(self, event: Event) -> AttributedEvent:
        """Return `event` with its prompt and node. Later events get the same ones until other frames name others."""
        match event:
            case Started(prompt_id) | Cached(prompt_id):
                self._prompt_id, self._node = prompt_id, None
            case Executing(prompt_id, node) | StepProgress(prompt_id, node):
                self._prompt_id, self._node = prompt_id, node
            case Finished(prompt_id):
                self._prompt_id, self._node = None, None
                return AttributedEvent(prompt_id, None, event)
            case PixelImage(prompt_id, node):
                return AttributedEvent(prompt_id, node, event)
        return AttributedEvent(self._prompt_id, self._node, event)
