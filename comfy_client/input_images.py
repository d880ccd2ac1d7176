"""Converts a caller's images to the text that a request carries.

An image may be given as a path, bytes, a PIL image, a data URI, base64, an https URL or the id of a Scenario asset.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias, Union

from PIL import Image

from comfy_core.contract import JsonObject, is_asset_id
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.images.codec import MAX_BYTES, check_image, identify
from comfy_core.request.encoded import is_data_uri, is_url

ImageInput: TypeAlias = Union[str, bytes, "os.PathLike[str]", Image.Image]
"""The types in which a caller may give an image."""

_IMAGE_TYPES = (bytes, bytearray, memoryview, os.PathLike, Image.Image)
_MIN_BASE64 = 64
"""Minimum length of an image as base64, in characters. Shorter text is taken as a file name."""


def image_text(source: object, field: str) -> str:
    """Return the image as text for a request. A URL, a data URI, base64 and an asset id are returned unchanged.

    Anything else is read and returned as base64. `field` is the path of the input, for error messages. Raises JobError
    (invalid_image) if a file cannot be read or is not an image.
    """
    match source:
        case str() if is_data_uri(source) or is_url(source) or _is_base64(source):
            return source
        case str() if is_asset_id(source) and not _is_file(source):
            return source
        case str() | os.PathLike():
            return _encoded(_read(Path(source), field), field)
        case bytes() | bytearray() | memoryview():
            return _encoded(bytes(source), field)
        case Image.Image():
            return _encoded(_png(source), field)
    kinds = "a path, bytes, a PIL image, a data URI, an https URL or an asset id"
    raise JobError.because(ErrorCode.INVALID_IMAGE, f"{field} must be {kinds}, not {type(source).__name__}", path=field)


def _file_text(source: object, field: str) -> str:
    """Return a file for a graph as text. A file that is not an image is accepted too: some nodes load other types."""
    match source:
        case bytes() | bytearray() | memoryview() if len(source) <= MAX_BYTES and identify(bytes(source)) is None:
            return base64.b64encode(source).decode("ascii")
        case (str() | os.PathLike()) as name if not isinstance(name, str) or _is_file(name):
            return _file_text(_read(Path(name), field), field)
    return image_text(source, field)


def _is_base64(text: str) -> bool:
    return len(text) >= _MIN_BASE64 and re.fullmatch(r"[A-Za-z0-9+/=\s]+", text) is not None and not _is_file(text)


def with_texts(inputs: Mapping[str, Any], image_inputs: Collection[str] = ("image",)) -> JsonObject:
    """Return a request's input with its images as text, and without inputs that are None.

    Images are the inputs `image_inputs`, the items of `images` (a mapping or a list), and each input that is a path
    object, bytes or a PIL image.
    """
    texts = {
        name: image_text(value, name)
        if isinstance(value, _IMAGE_TYPES) or (name in image_inputs and value is not None)
        else value
        for name, value in inputs.items()
    }
    match texts.get("images"):
        case Mapping() as named:
            texts["images"] = [
                {"name": name, "image": _file_text(each, f"images.{name}")} for name, each in named.items()
            ]
        case list() as entries:
            texts["images"] = [_entry(entry, number) for number, entry in enumerate(entries)]
    return {name: value for name, value in texts.items() if value is not None}


def _entry(entry: Any, number: int) -> object:  # noqa: ANN401 - any value from the caller
    match entry:
        case {"name": str(), "image": source, **rest} if source is not None:
            return {**rest, "name": entry["name"], "image": _file_text(source, f"images[{number}].image")}
    return entry


def _read(file: Path, field: str) -> bytes:
    try:
        if file.stat().st_size > MAX_BYTES:
            problem = f"{field}: {file} is larger than {MAX_BYTES:,} bytes"
            raise JobError.because(ErrorCode.INVALID_IMAGE, problem, path=field)
        return file.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a valid file name"
        name = str(file) if len(str(file)) <= 200 else f"{str(file)[:200]}..."  # noqa: PLR2004 - fits an error's sentence
        raise JobError.because(
            ErrorCode.INVALID_IMAGE, f"{field}: {name} cannot be read ({reason}).", path=field
        ) from error


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def _png(image: Image.Image) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()


def _encoded(data: bytes, field: str) -> str:
    return base64.b64encode(check_image(data, field, form="as_sent").data).decode("ascii")
