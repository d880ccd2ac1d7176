"""Hostile images: files that take Pillow seconds to minutes."""

from __future__ import annotations

import io
import struct

from PIL import Image


def tiff_chain(pages: int) -> bytes:
    """Return a TIFF of `pages` pages of one pixel, 114 bytes each. Counting the pages takes Pillow quadratic time."""
    tags = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    size, start = 2 + len(entries) + 4, 16
    offsets = [start + size * number for number in range(1, pages)] + [0]
    header = b"II*\0" + struct.pack("<I", start) + bytes(8)
    return header + b"".join(struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_) for next_ in offsets)


def gif(frames: int, side: int = 1) -> bytes:
    """Return a square GIF of `frames` frames of 15 bytes; each paints one pixel."""
    frame = b"," + bytes(4) + b"\1\0\1\0" + b"\0\x02\x02\x44\x01\0"
    return b"GIF89a" + struct.pack("<HH", side, side) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + frame * frames + b";"


def slow_jpeg() -> bytes:
    """Return a JPEG of 64 x 64 pixels and 5 million empty segments: seconds of work before the first pixel."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "JPEG")
    data = file.getvalue()
    return data[:2] + b"\xff\xe5\0\2" * 5_000_000 + data[2:]
