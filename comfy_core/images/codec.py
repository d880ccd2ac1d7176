"""Checks and converts input images, and encodes output images. Bytes to bytes, no I/O.

Decoding a hostile file can take minutes and cannot be interrupted. For untrusted files, call the functions of the same
names in `child_process`.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.images.ai_mark import is_marked, marked
from comfy_core.images.decoding import (
    BOMB_ERRORS,
    DECODE_ERRORS,
    FORMATS,
    MAX_PIXELS,
    TooLargeError,
    decode_image,
    has_more_frames,
    require_few_frames,
    truncation_allowed,
)
from comfy_core.images.forms import FORMS, ImageForm, UnusableMaskError, flattened

MAX_BYTES = 25 * 1024 * 1024
INPUT_FORMATS = FORMATS
MAX_SIDE_PX = {"webp": 16_383, "jpeg": 65_500}
"""Maximum side in pixels (WebP: its specification; JPEG: libjpeg's limit, which is below the format's 65,535)."""

_ENCODE_ERRORS: tuple[type[BaseException], ...] = (*DECODE_ERRORS, *BOMB_ERRORS, MemoryError)
_EXIF_USER_COMMENT = 0x9286
_EXIF_IFD = 0x8769
_MAX_COMMENT_LENGTH = 15_000
"""Maximum length of an EXIF comment in characters, of up to 4 bytes each. A JPEG can have at most 64 KB of EXIF."""
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})
"""Pillow's modes that can be saved as PNG."""
_COMFYUI_TEXT = frozenset({"prompt", "workflow", "parameters"})
"""Keys of the PNG text chunks in which ComfyUI and this package store the graph and the inputs."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_BYTES = len(_PNG_SIGNATURE) + 4 + 4 + 13 + 4
"""Number of bytes up to the end of IHDR, which must be the first chunk (PNG specification, 5.6)."""


@dataclass(frozen=True)
class EncodedImage:
    """An image file: its bytes, size in pixels, and MIME type (detected from its content).

    Attributes:
        is_animated: whether the image has more than one frame.
        is_complete: whether no data of the file is missing or damaged.
        warning: how the file differs from the request, such as a PNG instead of a WebP.
    """

    data: bytes
    width: int
    height: int
    mime_type: str
    is_animated: bool = False
    is_complete: bool = True
    warning: str = ""


def check_image(data: bytes, field_path: str, *, form: ImageForm) -> EncodedImage:
    """Return the image in `data` in a form that LoadImage accepts.

    A `flat` or `opaque` file that already has the form stays unchanged. An AVIF with one frame becomes a PNG in every
    form, because not every ComfyUI can read AVIF.

    Raises JobError (invalid_image) with `field_path` if `data` is not in one of INPUT_FORMATS, cannot be decoded, lacks
    more than a twentieth of its pixels, exceeds MAX_BYTES or MAX_PIXELS, has more frames than a graph can load (only
    `as_sent`), or is no usable mask.
    """
    require_size(data, field_path)
    try:
        return _checked(data, form)
    except UnidentifiedImageError:
        raise invalid_image(field_path, "is not an image of a known format") from None
    except BOMB_ERRORS:
        raise invalid_image(field_path, f"has far more than the {MAX_PIXELS:,} pixels that are allowed") from None
    except (TooLargeError, UnusableMaskError) as error:
        raise invalid_image(field_path, str(error)) from None
    except MemoryError:
        raise invalid_image(field_path, "needs too much memory to be decoded") from None
    except DECODE_ERRORS as error:
        raise invalid_image(field_path, f"cannot be decoded; it may be truncated ({str(error)[:200]})") from error


def require_size(data: bytes, field_path: str) -> None:
    """Raise JobError (invalid_image) if `data` has more than MAX_BYTES."""
    if len(data) > MAX_BYTES:
        raise invalid_image(field_path, f"has {len(data):,} bytes; at most {MAX_BYTES:,} are allowed")


def _checked(data: bytes, form: ImageForm) -> EncodedImage:
    found = decode_image(data)
    image = found.image
    mime_type = Image.MIME.get(image.format or "", "application/octet-stream")
    is_animated = has_more_frames(image, 1)
    if form == "as_sent":
        require_few_frames(image)
        stays_unchanged = is_animated or image.format != "AVIF"
    else:
        is_plain = image.mode == "RGB" and not (image.has_transparency_data or is_animated or found.is_reoriented)
        stays_unchanged = form in {"flat", "opaque"} and is_plain and found.is_complete and image.format != "AVIF"
    if stays_unchanged:
        return EncodedImage(data, image.width, image.height, mime_type, is_animated, found.is_complete)
    image = FORMS[form](image)
    encoded = io.BytesIO()
    image.save(encoded, "PNG", compress_level=1)
    return EncodedImage(encoded.getvalue(), image.width, image.height, "image/png", is_complete=found.is_complete)


def with_alpha_of(data: bytes, mask_start: int) -> EncodedImage:
    """Return the image `data[:mask_start]` as PNG with the alpha channel of the mask `data[mask_start:]`.

    The transparent areas keep their colours. A mask of another size is stretched. Raises JobError (invalid_image).
    """
    image_file, mask_file = data[:mask_start], data[mask_start:]
    for name, file in (("image", image_file), ("mask", mask_file)):
        check_image(file, name, form="as_sent")
    image, mask = FORMS["opaque"](decode_image(image_file).image), FORMS["as_sent"](decode_image(mask_file).image)
    alpha = mask.convert("RGBA").getchannel("A")
    if alpha.getextrema() == (255, 255):
        raise invalid_image("mask", "has no transparent areas: make the areas transparent that are to be generated")
    image.putalpha(alpha.resize(image.size, Image.Resampling.BILINEAR))
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    require_size(encoded.getvalue(), "image with its mask, as PNG,")
    return EncodedImage(encoded.getvalue(), *image.size, "image/png")


def invalid_image(field_path: str, problem: str) -> JobError:
    """Return the error for an image at `field_path` in the request that is not accepted."""
    return JobError.because(ErrorCode.INVALID_IMAGE, f"{field_path} {problem}", path=field_path)


def rounded_size(
    width: float,
    height: float,
    *,
    multiple: int = 16,
    max_pixels: int = 2 * 1024 * 1024,
    min_side: int = 64,
    max_side: int = 2048,
) -> tuple[int, int]:
    """Return the size closest to `width` x `height` whose sides are multiples of `multiple` within the limits.

    The size has at most `max_pixels`, unless the smallest sides exceed it, and keeps the aspect ratio as far as
    rounding allows.
    """
    scale = min(1.0, math.sqrt(max_pixels / (width * height)), max_side / max(width, height))
    wanted = width * scale, height * scale
    widths, heights = (
        [min(max_side, max(min_side, (int(side // multiple) + step) * multiple)) for step in (0, 1)] for side in wanted
    )
    sizes = [(wide, high) for wide in widths for high in heights]
    fitting = [(wide, high) for wide, high in sizes if wide * high <= max_pixels] or sizes[:1]
    return min(fitting, key=lambda size: math.dist(size, wanted))


def encode_image(data: bytes, output_format: str, quality: int, text_chunks: Mapping[str, str]) -> EncodedImage:
    """Return ComfyUI's image as png, webp or jpeg, with `text_chunks` embedded.

    Only PNGs are converted; any other format was chosen by the graph. A PNG that stays a PNG is not decoded: the chunks
    are added after the header. webp and jpeg only get `parameters` of `text_chunks`, as an EXIF user comment of at most
    _MAX_COMMENT_LENGTH characters. For jpeg, transparent areas become white.

    An image that cannot be converted is returned unchanged, with a warning.
    """
    size = png_size(data)
    if size is None:
        return unconverted(data, text_chunks, "")
    if output_format == "png":
        return _png_with_text(data, text_chunks)
    max_side = MAX_SIDE_PX[output_format]
    if max(size) > max_side:
        return unconverted(data, text_chunks, f"{output_format} holds at most {max_side:,} pixels a side")
    try:
        return EncodedImage(_encoded(data, output_format, quality, text_chunks), *size, f"image/{output_format}")
    except _ENCODE_ERRORS as error:
        return unconverted(data, text_chunks, f"encoding it as {output_format} failed ({type(error).__name__})")


def png_size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height in the header of a PNG, or None if `data` is not a PNG. Decodes no pixels."""
    if len(data) < _PNG_HEADER_BYTES or not data.startswith(_PNG_SIGNATURE):
        return None
    width, height = struct.unpack_from(">II", data, len(_PNG_SIGNATURE) + 8)
    return width, height


def unconverted(data: bytes, text_chunks: Mapping[str, str], why: str) -> EncodedImage:
    """Return ComfyUI's image in its own format. For a PNG, the warning contains `why`, the reason."""
    if png_size(data) is not None:
        return replace(_png_with_text(data, text_chunks), warning=f"is a PNG: {why}")
    found = identify(data)
    return found or EncodedImage(data, 0, 0, "application/octet-stream", warning="cannot be read as an image")


def _encoded(png: bytes, output_format: str, quality: int, text_chunks: Mapping[str, str]) -> bytes:
    encoded = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        exif = image.getexif()
        if "parameters" in text_chunks:
            comment = text_chunks["parameters"][:_MAX_COMMENT_LENGTH].encode("utf-16-be")
            exif.get_ifd(_EXIF_IFD)[_EXIF_USER_COMMENT] = b"UNICODE\0" + comment
        if output_format == "webp" and image.has_transparency_data:
            encodable = image.convert("RGBA")
        else:
            encodable = flattened(image)
        encodable.save(encoded, output_format, quality=quality, exif=exif)
    return encoded.getvalue()


def _png_with_text(png: bytes, text_chunks: Mapping[str, str]) -> EncodedImage:
    """Return `png` with text chunks: tEXt for Latin-1 text, because all readers support it, else iTXt."""
    info = PngImagePlugin.PngInfo()
    for key, value in text_chunks.items():
        info.add_text(key, value)
    chunks = io.BytesIO()
    for kind, content, *_ in info.chunks:
        PngImagePlugin.putchunk(chunks, kind, content)
    width, height = png_size(png) or (0, 0)
    view = memoryview(png)  # so that the file is copied once
    rest = _without_text(view[_PNG_HEADER_BYTES:], text_chunks.keys() or _COMFYUI_TEXT)
    data = b"".join([view[:_PNG_HEADER_BYTES], chunks.getvalue(), *rest])
    return EncodedImage(data, width, height, "image/png")


def _without_text(chunks: memoryview, keys: Collection[str]) -> list[memoryview]:
    """Return the parts of a PNG's chunks that remain without the text chunks whose keyword is one of `keys`."""
    kept, start = [], 0
    while start + 12 <= len(chunks):
        end = start + 12 + int.from_bytes(chunks[start : start + 4], "big")
        is_text = chunks[start + 4 : start + 8] in {b"tEXt", b"zTXt", b"iTXt"}
        if not is_text or bytes(chunks[start + 8 : start + 88]).partition(b"\0")[0].decode("latin-1") not in keys:
            kept.append(chunks[start:end])
        start = end
    return [*kept, chunks[start:]]


def identify(data: bytes) -> EncodedImage | None:
    """Return the image in `data`, reading only the header, or None if `data` is not in one of INPUT_FORMATS."""
    try:
        return _identified(data)
    except (UnidentifiedImageError, *BOMB_ERRORS):
        return None
    except DECODE_ERRORS:
        pass
    try:
        with truncation_allowed():
            return _identified(data)
    except (*DECODE_ERRORS, *BOMB_ERRORS):
        return None


def _identified(data: bytes) -> EncodedImage:
    image = Image.open(io.BytesIO(data), formats=INPUT_FORMATS)
    mime_type = Image.MIME.get(image.format or "", "")
    return EncodedImage(data, image.width, image.height, mime_type, has_more_frames(image, 1))


def small_preview(jpeg: bytes, side: int = 256) -> bytes | None:
    """Return a JPEG preview of at most `side` pixels (a few kilobytes), or None if `jpeg` is not a JPEG."""
    encoded = io.BytesIO()
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            image.thumbnail((side, side))
            image.save(encoded, "JPEG", quality=60)
    except (*DECODE_ERRORS, *BOMB_ERRORS):
        return None
    return encoded.getvalue()


def converted(data: bytes, output_format: str, width: int = 0, quality: int = 90) -> EncodedImage:
    """Return an image as png, webp or jpeg, scaled down to `width` pixels if it is wider and `width` is above 0.

    Only the first frame is used. For jpeg, transparent areas become white. Of the metadata, only the AI mark is kept.
    Raises JobError (invalid_image).
    """
    check_image(data, "image", form="as_sent")
    image = decode_image(data).image
    if 0 < width < image.width:
        image.thumbnail((width, image.height))
    encoded = io.BytesIO()
    try:
        encodable = image if output_format != "jpeg" and image.mode in _PNG_MODES else flattened(image)
        encodable.save(encoded, output_format, quality=quality)
    except _ENCODE_ERRORS as error:
        raise invalid_image("image", f"cannot be encoded as {output_format} ({type(error).__name__})") from error
    result = marked(encoded.getvalue()) if is_marked(data) else encoded.getvalue()
    return EncodedImage(result, image.width, image.height, f"image/{output_format}")
