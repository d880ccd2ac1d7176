"""Frames of raw pixels: parsing, and what makes a prompt's images complete."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import pytest

from comfy_core.comfyui.events import Attribution, PixelImage, parse_frame
from comfy_core.comfyui.prompt_monitor import Prompt

HEADER = {"prompt_id": "a", "node": "9", "index": 1, "count": 2, "width": 3, "height": 2, "channels": 3}
PIXELS = bytes(range(18))


def frame(pixels: bytes = PIXELS, **changes: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """Return a frame with a changed header."""
    header = json.dumps({**HEADER, **changes}).encode()
    return b"PIXL" + struct.pack(">I", len(header)) + header + pixels


def test_a_frame_names_its_prompt_and_its_node() -> None:
    """The prompt and the node are those of the frame, even if earlier frames named others."""
    event = parse_frame(frame())

    assert isinstance(event, PixelImage)
    assert (event.index, event.count, bytes(event.pixels.data)) == (1, 2, PIXELS)
    assert (event.pixels.width, event.pixels.height, event.pixels.channels) == (3, 2, 3)
    attributed = Attribution().attribute(event)
    assert (attributed.prompt_id, attributed.node) == ("a", "9")


@pytest.mark.parametrize(
    "damaged",
    [
        frame(PIXELS[1:]),
        frame(channels=5),
        frame(index=2),
        frame(index=-1),
        frame(b"", width=0),
        frame(width="3"),
        frame()[:40],
        b"PIXL" + struct.pack(">I", 4) + b"{}}}" + PIXELS,
        b"PIXL\xff\xff\xff\xff" + PIXELS,
    ],
)
def test_a_damaged_frame_is_ignored(damaged: bytes) -> None:
    """Its image counts as missing."""
    assert parse_frame(damaged) is None


def test_a_prompt_is_complete_with_as_many_images_as_its_node_sends() -> None:
    """The number is in each frame."""
    graph = {"9": {"class_type": "SendPixelsWebsocket", "inputs": {"images": ["1", 0]}}}
    partial = Prompt(graph, "a", finished_at=1.0, images={"9": {1: b"second"}}, image_counts={"9": 2})
    complete = replace(partial, images={"9": {1: b"second", 0: b"first"}})

    assert [partial.is_complete, complete.is_complete] == [False, True]
    assert complete.images_of("9") == [b"first", b"second"]
