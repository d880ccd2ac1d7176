"""Decodes untrusted picture files with Pillow: which formats, how large, how many frames, and how much may be missing.

Pillow's decoders are named one by one, so that a file reaches no decoder that was not chosen here.
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
MAX_ALL_PIXELS = 4 * MAX_PIXELS
"""Pixels of all frames. ComfyUI's LoadImage holds them all in memory at 16 bytes each."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))

BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
BROKEN = (
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
"""What Pillow's decoders raise on damaged files (found by changing bytes at random)."""

_EXIF_ORIENTATION = 0x0112
_MAY_BE_MISSING = 1 / 20
"""The part of a picture that may be missing at its end."""
_END_OF_JPEG = b"\xff\xd9"
_ENTROPY = bytes(range(1, 251))
"""Bytes that continue a JPEG's last scan. Without 0xFF, which would begin a marker."""
_BAND = 256
"""Rows that are compared at a time."""
_lenient_lock = threading.Lock()


class TooLargeError(Exception):
    """The picture has more pixels or frames than are accepted. The message begins with `has`."""


def opened(data: bytes) -> ImageFile.ImageFile:
    """Return the picture in `data` by its header. Raises TooLargeError, and BROKEN and BOMBS as Pillow does."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise TooLargeError(f"has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are taken")
    return image


@contextlib.contextmanager
def leniently() -> Iterator[None]:
    """Have Pillow skip text that is too large, wrong checksums, and data that is missing at the end.

    The switch is Pillow's own and counts for the whole process, so it is on only while it is needed.
    """
    with _lenient_lock:
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False


@dataclass(frozen=True)
class Decoded:
    """The first frame of a picture, decoded.

    Attributes:
        image: the picture. `format` and `is_animated` are those of its file.
        is_turned: whether its EXIF data says that it is stored turned or mirrored.
        is_whole: whether nothing of the file is missing.
    """

    image: Image.Image
    is_turned: bool
    is_whole: bool = True


def decoded(data: bytes) -> Decoded:
    """Return the picture in `data`.

    A file is also decoded if a twentieth of its pixels or less is missing at the end, or if only text in it is damaged
    or too large: viewers and ComfyUI show such files. Raises TooLargeError, and BROKEN and BOMBS as Pillow does.
    """
    try:
        return _loaded(data)
    except UnidentifiedImageError:
        raise
    except BROKEN:
        mostly = _mostly_decoded(data)
        if mostly is None:
            raise
        return replace(mostly, is_whole=False)


def has_more_frames(image: Image.Image, limit: int) -> bool:
    """Return whether the open picture has more than `limit` frames, in a time that depends on `limit` alone.

    Pillow counts the pages of a TIFF in a time that grows with their square.
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
    """Raise TooLargeError if the picture has more frames than a graph can load."""
    limit = min(MAX_FRAMES, MAX_ALL_PIXELS // (image.width * image.height))
    if has_more_frames(image, limit):
        raise TooLargeError(f"has more than {limit:,} frames of {image.width} x {image.height} pixels")


def _loaded(data: bytes, fill: int | None = None) -> Decoded:
    """Return the decoded picture; with `fill`, pixels that the file does not have are of that value."""
    image = opened(data)
    if fill is not None:
        image.load_prepare()
        bands = len(image.getbands())
        image.im.paste(fill if bands == 1 else (fill,) * bands, (0, 0, *image.size))
    # In this order: a PNG is decoded by the first line, and a TIFF turned by the second.
    is_turned = image.getexif().get(_EXIF_ORIENTATION) in range(2, 9)
    image.load()
    return Decoded(image, is_turned)


def _mostly_decoded(data: bytes) -> Decoded | None:
    """Return the picture if all but a little at its end is in the file, else None.

    It is decoded twice, with different values for what is missing: where both agree, the file decides.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            scans = data.rstrip(b"\xff")
            more = _ENTROPY * (len(scans) // len(_ENTROPY) + 1)
            pair = _loaded(scans + _END_OF_JPEG), _loaded(scans + more + _END_OF_JPEG)
        else:
            with leniently():
                pair = _loaded(data, 0), _loaded(data, 255)
        first, second = (each.image for each in pair)
        is_last_scan = "progressive" not in first.info or _is_full_precision(data)
    except BROKEN:
        return None
    return pair[0] if is_last_scan and _difference(first, second) <= _MAY_BE_MISSING else None


def _is_full_precision(jpeg: bytes) -> bool:
    """Return whether the last scan of a progressive JPEG carries the lowest bits, as only the last scans do.

    Each scan covers the whole picture, so pixels alone do not tell how much is missing. (ITU T.81, B.2.3: a scan's
    header is its marker, two bytes of length, the number of components, two bytes for each, Ss, Se, and Ah with Al, the
    lowest bit.)
    """
    header = jpeg[jpeg.rfind(b"\xff\xda") :]
    lowest_bit = header[7 + 2 * header[4]] & 0x0F
    return lowest_bit == 0


def _difference(first: Image.Image, second: Image.Image) -> float:
    """Return which part of two pictures of one size and mode differs, by their bytes."""
    different = total = 0
    for top in range(0, first.height, _BAND):
        band = (0, top, first.width, min(top + _BAND, first.height))
        these, those = (image.crop(band).tobytes() for image in (first, second))
        mixed = int.from_bytes(these, "little") ^ int.from_bytes(those, "little")
        different += len(these) - mixed.to_bytes(len(these), "little").count(0)
        total += len(these)
    return different / total
