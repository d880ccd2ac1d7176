"""Decodes untrusted images with Pillow, with limits on formats, size, frames and missing data.

Only the decoders of FORMATS are enabled, so that a file cannot be passed to any other decoder of Pillow.
"""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image, ImageFile, UnidentifiedImageError, features

MAX_PIXELS = 64 * 1024 * 1024
MAX_FRAMES = 1000
MAX_TOTAL_PIXELS = 4 * MAX_PIXELS
"""Maximum number of pixels in all frames together. ComfyUI's LoadImage keeps all frames in memory, 16 bytes a pixel."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))

BOMB_ERRORS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""Exceptions that Pillow's decoders raise for damaged files (found by fuzzing)."""

_EXIF_ORIENTATION = 0x0112
_MAX_MISSING_FRACTION = 1 / 20
"""Maximum fraction of an image that may be missing at its end."""
_END_OF_JPEG = b"\xff\xd9"
_JPEG_FILLER = bytes(range(1, 251))
"""Bytes that extend a JPEG's last scan. They exclude 0xFF, which would start a marker."""
_BAND_ROWS = 256
"""Number of rows that are compared at a time."""
_truncation_lock = threading.Lock()


class TooLargeError(Exception):
    """The image has too many pixels or frames. The message is a predicate, such as `has 9 x 9 pixels; at most …`."""


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Open the image in `data`, reading only its header.

    Raises TooLargeError, and Pillow's DECODE_ERRORS and BOMB_ERRORS.
    """
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise TooLargeError(f"has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are allowed")
    return image


@contextlib.contextmanager
def truncation_allowed() -> Iterator[None]:
    """Make Pillow ignore oversized text chunks, wrong checksums, and data that is missing at the end.

    Pillow's setting applies to the whole process, so it is only changed inside the `with` block, by one thread at a
    time.
    """
    with _truncation_lock:
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False


@dataclass(frozen=True)
class Decoded:
    """The decoded first frame of an image file.

    Attributes:
        image: the image. Its `format` and `is_animated` are those of the file.
        is_reoriented: whether EXIF declares a rotation or reflection.
        is_complete: whether no data of the file is missing or damaged.
    """

    image: Image.Image
    is_reoriented: bool
    is_complete: bool = True


def decode_image(data: bytes) -> Decoded:
    """Return the decoded image in `data`.

    A file is also accepted if at most a twentieth of its pixels is missing at the end, or if only its text chunks are
    damaged or too large, because ComfyUI and image viewers also open such files. Raises TooLargeError, and Pillow's
    DECODE_ERRORS and BOMB_ERRORS.
    """
    try:
        return _loaded(data)
    except UnidentifiedImageError:
        raise
    except DECODE_ERRORS:
        partial = _decode_incomplete(data)
        if partial is None:
            raise
        return replace(partial, is_complete=False)


def has_more_frames(image: Image.Image, limit: int) -> bool:
    """Return whether an open image has more than `limit` frames, in a time that depends only on `limit`.

    Pillow's own page count of a TIFF takes quadratic time.
    """
    if limit == 1 or not getattr(image, "is_animated", False):
        return bool(getattr(image, "is_animated", False))
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1)) > limit
    try:
        image.seek(limit)
    except EOFError:
        return False
    return True


def require_few_frames(image: Image.Image) -> None:
    """Raise TooLargeError if the image has more than MAX_FRAMES frames, or too many pixels in all frames together."""
    limit = min(MAX_FRAMES, MAX_TOTAL_PIXELS // (image.width * image.height))
    if has_more_frames(image, limit):
        raise TooLargeError(f"has more than {limit:,} frames of {image.width} x {image.height} pixels")


def _loaded(data: bytes, fill: int | None = None) -> Decoded:
    """Return the decoded image. With `fill`, pixels that are missing in the file have that value."""
    image = open_image(data)
    if fill is not None:
        image.load_prepare()
        bands = len(image.getbands())
        image.im.paste(fill if bands == 1 else (fill,) * bands, (0, 0, *image.size))
    # The order matters: getexif decodes a PNG, and load rotates a TIFF.
    is_reoriented = image.getexif().get(_EXIF_ORIENTATION) in range(2, 9)
    image.load()
    return Decoded(image, is_reoriented)


def _decode_incomplete(data: bytes) -> Decoded | None:
    """Return the image if only a small part is missing at the end of `data`, else None.

    The image is decoded twice, with different values for missing pixels. Pixels that are equal in both results come
    from the file.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            scans = data.rstrip(b"\xff")
            filler = _JPEG_FILLER * (len(scans) // len(_JPEG_FILLER) + 1)
            pair = _loaded(scans + _END_OF_JPEG), _loaded(scans + filler + _END_OF_JPEG)
        else:
            with truncation_allowed():
                pair = _loaded(data, 0), _loaded(data, 255)
        first, second = (each.image for each in pair)
        is_last_scan = "progressive" not in first.info or _is_full_precision(data)
    except DECODE_ERRORS:
        return None
    return pair[0] if is_last_scan and _difference(first, second) <= _MAX_MISSING_FRACTION else None


def _is_full_precision(jpeg: bytes) -> bool:
    """Return whether the last scan of a progressive JPEG is a final scan: only final scans contain the lowest bits.

    Each scan covers the whole image, so the pixels do not show how much is missing. (ITU T.81, B.2.3: a scan header
    consists of the marker, two bytes of length, the number of components, two bytes for each, Ss, Se, and Ah with Al,
    the lowest bit.)
    """
    header = jpeg[jpeg.rfind(b"\xff\xda") :]
    lowest_bit = header[7 + 2 * header[4]] & 0x0F
    return lowest_bit == 0


def _difference(first: Image.Image, second: Image.Image) -> float:
    """Return the fraction of bytes that differ between two images of the same size and mode."""
    different = total = 0
    for top in range(0, first.height, _BAND_ROWS):
        band = (0, top, first.width, min(top + _BAND_ROWS, first.height))
        first_bytes, second_bytes = (image.crop(band).tobytes() for image in (first, second))
        xor = int.from_bytes(first_bytes, "little") ^ int.from_bytes(second_bytes, "little")
        different += len(first_bytes) - xor.to_bytes(len(first_bytes), "little").count(0)
        total += len(first_bytes)
    return different / total
