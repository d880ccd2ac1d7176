"""Pictures, bytes to bytes: check what a caller sent, make it fit for a graph, encode what ComfyUI made. No I/O.

Pillow decodes. Its decoders are named one by one, so that a file reaches none that we did not choose.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from comfy_client.contract import ErrorCode
from comfy_client.errors import JobError

MAX_BYTES = 25 * 1024 * 1024
MAX_PIXELS = 64 * 1024 * 1024
INPUT_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

_BROKEN = (
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

_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_EXIF_ORIENTATION = 0x0112
_EXIF_USER_COMMENT = 0x9286
_EXIF_IFD = 0x8769
_MAX_COMMENT = 15_000
"""Characters of an EXIF comment, at most 4 bytes each: a JPEG holds 64 KB of EXIF, and is refused beyond."""
_PNG_HEADER = len(b"\x89PNG\r\n\x1a\n") + 4 + 4 + 13 + 4
"""Bytes before the first chunk behind IHDR, which must stand first (PNG specification, 5.6)."""


@dataclass(frozen=True)
class Picture:
    """A checked picture: its bytes, size in pixels, and MIME type by content."""

    data: bytes
    width: int
    height: int
    mime_type: str


def check_picture(data: bytes, path: str, *, flatten: bool) -> Picture:
    """Return the picture in `data`, fit for a LoadImage node.

    With `flatten` it becomes one upright RGB frame (transparent parts over white), as image to image needs it; bytes
    that are so already stay as they are. Without, the bytes stay as they are and are only checked: a graph of the
    caller's own may want the alpha channel or the frames.

    Raises JobError (invalid_image) that names `path`, for what is no image of INPUT_FORMATS by its content, is cut off,
    or has more than MAX_BYTES or MAX_PIXELS.
    """
    if len(data) > MAX_BYTES:
        raise _invalid(path, f"has {len(data):,} bytes; at most {MAX_BYTES:,} are taken. Send it smaller, or as JPEG")
    try:
        return _checked(data, path, flatten=flatten)
    except UnidentifiedImageError:
        raise _invalid(path, f"is not an image of a known format ({', '.join(INPUT_FORMATS)})") from None
    except _BOMBS:
        raise _invalid(path, f"has far more than the {MAX_PIXELS:,} pixels that are taken") from None
    except _BROKEN as error:
        raise _invalid(path, f"cannot be decoded, it may be cut off ({error})") from error


def _checked(data: bytes, path: str, *, flatten: bool) -> Picture:
    with Image.open(io.BytesIO(data), formats=INPUT_FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise _invalid(path, f"has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are taken")
        mime_type = Image.MIME.get(image.format or "", "application/octet-stream")
        frames = getattr(image, "n_frames", 1)
        turned = image.getexif().get(_EXIF_ORIENTATION) in range(2, 9)
        image.load()
        opaque = image.mode == "RGB" and not image.has_transparency_data
        if not flatten or (opaque and frames == 1 and not turned):
            return Picture(data, image.width, image.height, mime_type)
        flat = _flattened(image)
    encoded = io.BytesIO()
    flat.save(encoded, "PNG", compress_level=1)
    return Picture(encoded.getvalue(), flat.width, flat.height, "image/png")


def _flattened(image: Image.Image) -> Image.Image:
    upright = _eight_bit(ImageOps.exif_transpose(image))
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    with_alpha = upright.convert("RGBA")
    white = Image.new("RGBA", with_alpha.size, "white")
    return Image.alpha_composite(white, with_alpha).convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return `image` with 16-bit greys scaled down; Pillow's own conversion would clip them to white.

    A grey that such a file calls transparent is taken as it is: many of them share a grey of 8 bits.
    """
    if not image.mode.startswith("I"):
        return image
    grey = image.convert("I").point(lambda grey: grey / 257).convert("L")
    grey.info.pop("transparency", None)
    return grey


def _invalid(path: str, problem: str) -> JobError:
    return JobError.because(ErrorCode.INVALID_IMAGE, f"{path} {problem}.", path=path)


def rounded_size(width: int, height: int, *, multiple: int = 16, max_pixels: int = 2 * 1024 * 1024) -> tuple[int, int]:
    """Return the size nearest to a picture's own whose sides are multiples of `multiple`, from 64 to 2048 each.

    It has at most `max_pixels` and keeps the picture's proportions as well as the rounding allows.
    """
    scale = min(1.0, math.sqrt(max_pixels / (width * height)), 2048 / max(width, height))
    wanted = width * scale, height * scale
    widths, heights = (
        [min(2048, max(64, (int(side // multiple) + step) * multiple)) for step in (0, 1)] for side in wanted
    )
    fitting = [(wide, high) for wide in widths for high in heights if wide * high <= max_pixels]
    return min(fitting, key=lambda size: math.dist(size, wanted))


def encode_picture(png: bytes, output_format: str, quality: int, text: Mapping[str, str]) -> bytes:
    """Return the picture of ComfyUI's `png` as png, webp or jpeg, with `text` written into it.

    A PNG is not compressed anew: its text goes into iTXt chunks behind the header. webp and jpeg carry `parameters` of
    `text` alone, as EXIF user comment, at most _MAX_COMMENT characters of it.
    """
    if output_format == "png":
        chunks = _text_chunks(text)
        return png[:_PNG_HEADER] + chunks + png[_PNG_HEADER:]
    encoded = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        exif = image.getexif()
        if "parameters" in text:
            comment = text["parameters"][:_MAX_COMMENT].encode("utf-16-be")
            exif.get_ifd(_EXIF_IFD)[_EXIF_USER_COMMENT] = b"UNICODE\0" + comment
        keeps_alpha = output_format == "webp"
        image.convert("RGBA" if keeps_alpha and image.has_transparency_data else "RGB").save(
            encoded, output_format, quality=quality, exif=exif
        )
    return encoded.getvalue()


def _text_chunks(text: Mapping[str, str]) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value)
    chunks = io.BytesIO()
    for kind, content, *_ in info.chunks:
        PngImagePlugin.putchunk(chunks, kind, content)
    return chunks.getvalue()


def identify(data: bytes) -> Picture | None:
    """Return the still picture that `data` begins, by its header alone, or None where it is none."""
    try:
        with Image.open(io.BytesIO(data), formats=INPUT_FORMATS) as image:
            if getattr(image, "n_frames", 1) > 1:
                return None
            return Picture(data, image.width, image.height, Image.MIME.get(image.format or "", ""))
    except (*_BROKEN, *_BOMBS):
        return None


def small_preview(jpeg: bytes, side: int = 256) -> bytes | None:
    """Return a preview of at most `side` pixels as a JPEG of a few kilobytes, or None where `jpeg` is none."""
    encoded = io.BytesIO()
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            image.thumbnail((side, side))
            image.save(encoded, "JPEG", quality=60)
    except (*_BROKEN, *_BOMBS):
        return None
    return encoded.getvalue()


def converted(data: bytes, output_format: str, width: int = 0, quality: int = 90) -> bytes:
    """Return a picture of INPUT_FORMATS as png, webp or jpeg, no wider than `width` pixels where that is above 0.

    Its first frame, and over white where it is transparent and becomes JPEG. Raises JobError (invalid_image).
    """
    check_picture(data, "image", flatten=False)
    with Image.open(io.BytesIO(data), formats=INPUT_FORMATS) as image:
        if 0 < width < image.width:
            image.thumbnail((width, image.height))
        encoded = io.BytesIO()
        (_flattened(image) if output_format == "jpeg" else image).save(encoded, output_format, quality=quality)
    return encoded.getvalue()
