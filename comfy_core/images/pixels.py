"""Raw pixels of an image, as the node SendPixelsWebsocket sends them, and the type of functions that encode them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Pixels:
    """An image as raw pixels: rows from top to bottom, without padding, 8 bits for each channel.

    Attributes:
        data: the pixels; height x width x channels bytes.
        width: the width in pixels, at least 1.
        height: the height in pixels, at least 1.
        channels: 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGBA).
    """

    data: memoryview
    width: int
    height: int
    channels: int


EncodePixels: TypeAlias = Callable[[Pixels], Future[bytes]]
"""Starts to encode the pixels as a PNG file in another thread."""
