"""Pictures, bytes to bytes: check what a caller sent, make it fit for a graph, encode what ComfyUI made. No I/O.

Decoding a stranger's file can take minutes, and nothing in this process can interrupt it. For such files, call the
functions of the same names in picture_process.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from comfy_core.contract import ErrorCode
from comfy_core.errors import JobError
from comfy_core.images.decoding import (
    BOMBS,
    BROKEN,
    FORMATS,
    MAX_PIXELS,
    TooLargeError,
    decoded,
    has_more_frames,
    leniently,
    require_few_frames,
)

MAX_BYTES = 25 * 1024 * 1024
INPUT_FORMATS = FORMATS
LONGEST_SIDE = {"webp": 16_383, "jpeg": 65_500}
"""Pixels of a side that can be encoded (the WebP specification; libjpeg, which stops short of JPEG's 65,535)."""

_UNENCODABLE: tuple[type[BaseException], ...] = (*BROKEN, *BOMBS, MemoryError)
_EXIF_USER_COMMENT = 0x9286
_EXIF_IFD = 0x8769
_MAX_COMMENT = 15_000
"""Characters of an EXIF comment, at most 4 bytes each: a JPEG holds 64 KB of EXIF, and is refused beyond."""
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})
_COMFYUI_TEXT = frozenset({"prompt", "workflow", "parameters"})
"""Keys of the text in which ComfyUI, and this package, write the graph into a PNG."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = len(_PNG_SIGNATURE) + 4 + 4 + 13 + 4
"""Bytes before the first chunk behind IHDR, which must stand first (PNG specification, 5.6)."""


@dataclass(frozen=True)
class Picture:
    """A picture file: its bytes, size in pixels, and MIME type by content.

    Attributes:
        is_animated: whether it has more than one frame.
        is_whole: whether nothing of the file is missing.
        warning: why it is not what was asked for, such as a PNG in place of a WebP.
    """

    data: bytes
    width: int
    height: int
    mime_type: str
    is_animated: bool = False
    is_whole: bool = True
    warning: str = ""


def check_picture(data: bytes, path: str, *, flatten: bool) -> Picture:
    """Return the picture in `data`, fit for a LoadImage node.

    With `flatten` it becomes one upright RGB frame (transparent parts over white), as image to image needs it; bytes
    that are so already stay as they are. Without, the bytes stay as they are and are only checked: a graph of the
    caller's own may want the alpha channel or the frames. AVIF becomes PNG, since not every ComfyUI reads it.

    Raises JobError (invalid_image) that names `path` if `data` is no image of INPUT_FORMATS by its content, is cut off
    by more than a twentieth, or has more than MAX_BYTES, MAX_PIXELS or the frames that a graph can load.
    """
    require_size(data, path)
    try:
        return _checked(data, flatten=flatten)
    except UnidentifiedImageError:
        raise invalid_image(path, f"is not an image of a known format ({', '.join(INPUT_FORMATS)})") from None
    except BOMBS:
        raise invalid_image(path, f"has far more than the {MAX_PIXELS:,} pixels that are taken") from None
    except TooLargeError as error:
        raise invalid_image(path, f"{error}. Send it smaller") from None
    except MemoryError:
        raise invalid_image(path, "needs too much memory to be decoded. Send it smaller") from None
    except BROKEN as error:
        raise invalid_image(path, f"cannot be decoded, it may be cut off ({str(error)[:200]})") from error


def require_size(data: bytes, path: str) -> None:
    """Raise JobError (invalid_image) if `data` has more than MAX_BYTES."""
    if len(data) > MAX_BYTES:
        problem = f"has {len(data):,} bytes; at most {MAX_BYTES:,} are taken. Send it smaller, or as JPEG"
        raise invalid_image(path, problem)


def _checked(data: bytes, *, flatten: bool) -> Picture:
    found = decoded(data)
    image = found.image
    mime_type = Image.MIME.get(image.format or "", "application/octet-stream")
    is_animated = has_more_frames(image, 1)
    if flatten:
        plain = image.mode == "RGB" and not (image.has_transparency_data or is_animated or found.is_turned)
        stays = plain and found.is_whole and image.format != "AVIF"
    else:
        require_few_frames(image)
        stays = is_animated or image.format != "AVIF"
    if stays:
        return Picture(data, image.width, image.height, mime_type, is_animated, found.is_whole)
    image = _flattened(image) if flatten else ImageOps.exif_transpose(image)
    encoded = io.BytesIO()
    image.save(encoded, "PNG", compress_level=1)
    return Picture(encoded.getvalue(), image.width, image.height, "image/png", is_whole=found.is_whole)


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


def invalid_image(path: str, problem: str) -> JobError:
    """Return the error of a picture at `path` in the request that is not accepted."""
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


def encode_picture(data: bytes, output_format: str, quality: int, text: Mapping[str, str]) -> Picture:
    """Return ComfyUI's picture as png, webp or jpeg, with `text` written into it.

    Only a PNG is encoded again; other formats were chosen by the graph. A PNG that stays PNG is not decoded: its text
    goes into chunks behind the header. webp and jpeg carry `parameters` of `text` alone, as EXIF user comment, at most
    _MAX_COMMENT characters of it. jpeg has no transparency, so the picture is put over white.

    A picture that cannot become what was asked for stays as it is, with a warning.
    """
    size = png_size(data)
    if size is None:
        return kept_as_it_is(data, text, "")
    if output_format == "png":
        return _png_with_text(data, text)
    longest = LONGEST_SIDE[output_format]
    if max(size) > longest:
        return kept_as_it_is(data, text, f"{output_format} holds at most {longest:,} pixels a side")
    try:
        return Picture(_encoded(data, output_format, quality, text), *size, f"image/{output_format}")
    except _UNENCODABLE as error:
        return kept_as_it_is(data, text, f"encoding it as {output_format} failed ({type(error).__name__})")


def png_size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height of a PNG by its header, or None if `data` is no PNG. Takes no time on any bytes."""
    if len(data) < _PNG_HEADER or not data.startswith(_PNG_SIGNATURE):
        return None
    width, height = struct.unpack_from(">II", data, len(_PNG_SIGNATURE) + 8)
    return width, height


def kept_as_it_is(data: bytes, text: Mapping[str, str], why: str) -> Picture:
    """Return a picture of ComfyUI's in its own format; `why` it did not become another one, if it was to."""
    if png_size(data) is not None:
        return replace(_png_with_text(data, text), warning=f"is a PNG: {why}")
    found = identify(data)
    return found or Picture(data, 0, 0, "application/octet-stream", warning="cannot be read as a picture")


def _encoded(png: bytes, output_format: str, quality: int, text: Mapping[str, str]) -> bytes:
    encoded = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        exif = image.getexif()
        if "parameters" in text:
            comment = text["parameters"][:_MAX_COMMENT].encode("utf-16-be")
            exif.get_ifd(_EXIF_IFD)[_EXIF_USER_COMMENT] = b"UNICODE\0" + comment
        if output_format == "webp" and image.has_transparency_data:
            picture = image.convert("RGBA")
        else:
            picture = _flattened(image)
        picture.save(encoded, output_format, quality=quality, exif=exif)
    return encoded.getvalue()


def _png_with_text(png: bytes, text: Mapping[str, str]) -> Picture:
    """Return `png` with text chunks: tEXt where it is Latin-1, which all readers know, else iTXt."""
    info = PngImagePlugin.PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    chunks = io.BytesIO()
    for kind, content, *_ in info.chunks:
        PngImagePlugin.putchunk(chunks, kind, content)
    width, height = png_size(png) or (0, 0)
    rest = _without_text(png[_PNG_HEADER:], text.keys() or _COMFYUI_TEXT)
    return Picture(png[:_PNG_HEADER] + chunks.getvalue() + rest, width, height, "image/png")


def _without_text(chunks: bytes, keys: Collection[str]) -> bytes:
    """Return the chunks of a PNG without the text of `keys`, which ComfyUI writes unless it is told not to."""
    kept, start = [], 0
    while start + 12 <= len(chunks):
        end = start + 12 + int.from_bytes(chunks[start : start + 4], "big")
        is_text = chunks[start + 4 : start + 8] in {b"tEXt", b"zTXt", b"iTXt"}
        if not is_text or chunks[start + 8 : start + 88].partition(b"\0")[0].decode("latin-1") not in keys:
            kept.append(chunks[start:end])
        start = end
    return b"".join([*kept, chunks[start:]])


def identify(data: bytes) -> Picture | None:
    """Return the picture that `data` begins, by its header alone, or None if it is none of INPUT_FORMATS."""
    try:
        return _identified(data)
    except (UnidentifiedImageError, *BOMBS):
        return None
    except BROKEN:
        pass
    try:
        with leniently():
            return _identified(data)
    except (*BROKEN, *BOMBS):
        return None


def _identified(data: bytes) -> Picture:
    image = Image.open(io.BytesIO(data), formats=INPUT_FORMATS)
    mime_type = Image.MIME.get(image.format or "", "")
    return Picture(data, image.width, image.height, mime_type, has_more_frames(image, 1))


def small_preview(jpeg: bytes, side: int = 256) -> bytes | None:
    """Return a preview of at most `side` pixels as a JPEG of a few kilobytes, or None if `jpeg` is none."""
    encoded = io.BytesIO()
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            image.thumbnail((side, side))
            image.save(encoded, "JPEG", quality=60)
    except (*BROKEN, *BOMBS):
        return None
    return encoded.getvalue()


def converted(data: bytes, output_format: str, width: int = 0, quality: int = 90) -> Picture:
    """Return a picture of INPUT_FORMATS as png, webp or jpeg, no wider than `width` pixels if that is above 0.

    Its first frame, and over white if it is transparent and becomes jpeg. Raises JobError (invalid_image).
    """
    check_picture(data, "image", flatten=False)
    image = decoded(data).image
    if 0 < width < image.width:
        image.thumbnail((width, image.height))
    encoded = io.BytesIO()
    try:
        picture = image if output_format != "jpeg" and image.mode in _PNG_MODES else _flattened(image)
        picture.save(encoded, output_format, quality=quality)
    except _UNENCODABLE as error:
        raise invalid_image("image", f"cannot be encoded as {output_format} ({type(error).__name__})") from error
    return Picture(encoded.getvalue(), image.width, image.height, f"image/{output_format}")
