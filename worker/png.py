"""Encodes raw pixels as PNG, faster than Pillow and into smaller files.

docs/performance.md#png-encoding-and-the-result compares it with other encoders. Every row has the Paeth filter: it is
the best or nearly the best one for images of a model. libdeflate's level 1 compresses. numpy and libdeflate release the
interpreter lock, so that threads encode several images in parallel.
"""

from __future__ import annotations

import functools
import io
import os
import struct
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from PIL import Image

from comfy_core.images.pixels import Pixels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SMALL_BYTES = 256 * 1024
"""Up to this size, Pillow encodes the pixels: it takes 8 ms, and its choice of filters makes smaller files."""
_BLOCK_BYTES = 96 * 1024
"""Size of the pixels that are filtered at once. The arrays of a block fit into the processor's level 2 cache."""
_MAX_THREADS = 4
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of channels."""
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's colour type for each number of channels."""
_PAETH = 4
"""PNG's number of the Paeth filter."""


def start_encoding(pixels: Pixels) -> Future[bytes]:
    """Start to encode `pixels` as PNG in another thread."""
    return _threads().submit(encode_png, pixels)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="png")


def encode_png(pixels: Pixels) -> bytes:
    """Return `pixels` as a PNG file without metadata."""
    import deflate  # noqa: PLC0415 - with numpy it takes 0.1 s, so not at import but while ComfyUI boots

    if len(pixels.data) <= _SMALL_BYTES:
        return _encoded_by_pillow(pixels)
    header = struct.pack(">IIBBBBB", pixels.width, pixels.height, 8, _COLOUR_TYPES[pixels.channels], 0, 0, 0)
    parts: list[bytes | bytearray] = [_SIGNATURE]
    for kind, content in (
        (b"IHDR", header),
        (b"IDAT", deflate.zlib_compress(_paeth_filtered(pixels), 1)),
        (b"IEND", b""),
    ):
        checksum = deflate.crc32(content, deflate.crc32(kind))
        parts += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)]
    return b"".join(parts)


def _encoded_by_pillow(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    size = (pixels.width, pixels.height)
    Image.frombytes(_MODES[pixels.channels], size, bytes(pixels.data)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _paeth_filtered(pixels: Pixels) -> NDArray[np.uint8]:
    """Return the rows with the Paeth filter, each after the number of its filter.

    The filter subtracts from each byte the one of its neighbours left (a), above (b) and above left (c) that is
    nearest to a + b - c; the first of those if several are equally near (PNG specification, 9.4).
    """
    import numpy as np  # noqa: PLC0415 - as above

    row_bytes, channels = pixels.width * pixels.channels, pixels.channels
    rows = np.frombuffer(pixels.data, np.uint8).reshape(pixels.height, row_bytes)
    filtered = np.empty((pixels.height, row_bytes + 1), np.uint8)
    filtered[:, 0] = _PAETH
    block_height = max(1, _BLOCK_BYTES // row_bytes)
    # The block and the row above it, after a column for the missing neighbours of the first pixel.
    padded = np.zeros((block_height + 1, row_bytes + channels), np.int16)
    buffers = [np.empty((block_height, row_bytes), np.int16) for _ in range(4)]
    for top in range(0, pixels.height, block_height):
        height = min(block_height, pixels.height - top)
        if top:
            padded[0, channels:] = rows[top - 1]
        padded[1 : height + 1, channels:] = rows[top : top + height]
        a, b, c = padded[1 : height + 1, :-channels], padded[:height, channels:], padded[:height, :-channels]
        to_a, to_b, to_c, mask = (buffer[:height] for buffer in buffers)
        np.subtract(b, c, out=to_a)
        np.subtract(a, c, out=to_b)
        np.add(to_a, to_b, out=to_c)
        for distance in (to_a, to_b, to_c):
            np.abs(distance, out=distance)
        # Masks of sign bits select between two neighbours: comparisons and np.where take several times as long.
        np.right_shift(np.subtract(to_c, to_b, out=mask), 15, out=mask)  # all bits are set if c is nearer than b
        np.minimum(to_b, to_c, out=to_b)
        nearest = _select(b, c, mask, out=to_c)
        np.right_shift(np.subtract(to_b, to_a, out=mask), 15, out=mask)  # all bits are set if b or c is nearer than a
        nearest = _select(a, nearest, mask, out=to_c)
        np.subtract(padded[1 : height + 1, channels:], nearest, out=mask)
        filtered[top : top + height, 1:] = mask
    return filtered


def _select(
    otherwise: NDArray[np.int16], value: NDArray[np.int16], mask: NDArray[np.int16], *, out: NDArray[np.int16]
) -> NDArray[np.int16]:
    """Write `value` to `out` if all bits of the mask are set, and `otherwise` if no bit is set; return `out`."""
    out[:] = value
    out ^= otherwise
    out &= mask
    out ^= otherwise
    return out
