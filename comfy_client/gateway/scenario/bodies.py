"""Parses JSON request bodies within limits on bytes and values. Long base64 strings are cut out first. Pure.

An image can be 33 MB of base64 in one JSON string. Parsing, searching or decoding such a string in one C call holds
the GIL, and blocks the event loop, for 100 to 300 ms. So `read_json` removes long strings from a body before it parses
the rest, and `decode_base64_in_pieces` works in pieces of 1 MB.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

from comfy_client.gateway.scenario.errors import TOO_LARGE, ShimError, bad_request
from comfy_core.contract import Fault
from comfy_core.error_codes import ErrorCode
from comfy_core.request.encoded import decode_base64

MAX_JSON_BYTES = 131_072
"""Maximum size of a body without its images."""
MAX_VALUES = 2_000
"""Maximum number of JSON values in a body, including object keys. A request with 200 asset ids has about 200."""
MAX_QUOTES = 4 * MAX_VALUES + 8_192
"""A body with more quotes in its first megabyte is rejected: it has too many values or too many escaped quotes."""
LONG_TEXT_BYTES = 50_000
"""Strings above this size are cut out. The longest prompt has 4,096 characters: 49,152 bytes if all are escaped."""
_CHUNK_BYTES = 1 << 20
_DATA_URL_HEAD = 256
_ALPHABET = bytes.maketrans(b"-_", b"+/")


class Attached(str):
    """Placeholder for a long string in a parsed body: `attached:` and its SHA-256. `data` is the original string."""

    __slots__ = ("data",)
    data: bytes

    @classmethod
    def of(cls, data: bytes) -> Attached:
        """Return the placeholder for `data`."""
        attached = cls(f"attached:{hashlib.sha256(data).hexdigest()}")
        attached.data = data
        return attached


def read_json(data: bytes) -> object:
    """Return the JSON value of a body, or None if the body is empty.

    In a body of more than MAX_JSON_BYTES, long strings become `Attached`.

    Raises ShimError: 413 if the body without its images is too large; 400 if it is not JSON, has too many values, or
    has a long string in a field that is not an image.
    """
    if not data.strip():
        return None
    small, texts = _without_long_texts(data) if len(data) > MAX_JSON_BYTES else (data, {})
    try:
        value = json.loads(small)
    except (ValueError, RecursionError):
        raise bad_request([Fault("", "must be JSON, sent with Content-Type: application/json")]) from None
    return _with_attached(value, texts)


def _without_long_texts(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Return the body with a marker in place of each long string, and the strings by marker. Raises ShimError (413)."""
    if data.count(b'"', 0, _CHUNK_BYTES) > MAX_QUOTES:
        raise _too_large()
    kept, texts = bytearray(), dict[str, bytes]()
    position = 0
    while position < len(data):
        begin = data.find(b'"', position) + 1
        end = _end_of_text(data, begin) if begin else -1
        is_long = begin > 0 and end - begin > LONG_TEXT_BYTES
        upto = len(data) if end < 0 else begin if is_long else end + 1
        if len(kept) + upto - position > MAX_JSON_BYTES:
            raise _too_large()
        kept += data[position:upto]
        position = upto
        if is_long:
            mark = secrets.token_hex(16)
            kept += mark.encode()
            kept += b'"'
            texts[mark] = data[begin:end]
            position = end + 1
    return bytes(kept), texts


def _end_of_text(data: bytes, begin: int) -> int:
    """Return the index of the quote that ends the string at `begin`, or -1 if there is none.

    Raises ShimError (413) if the string has an escaped quote after LONG_TEXT_BYTES.
    """
    end = data.find(b'"', begin)
    while end > 0 and _is_escaped(data, begin, end):
        if end - begin > LONG_TEXT_BYTES:
            raise _too_large()
        end = data.find(b'"', end + 1)
    return end


def _is_escaped(data: bytes, begin: int, end: int) -> bool:
    before = data[max(begin, end - LONG_TEXT_BYTES) : end]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 1


def _too_large() -> ShimError:
    return ShimError(
        TOO_LARGE,
        f"The JSON body has more than {MAX_JSON_BYTES:,} bytes without its images. Send fewer or shorter fields",
        code=ErrorCode.PAYLOAD_TOO_LARGE,
    )


def _with_attached(value: object, texts: dict[str, bytes]) -> object:
    """Return the parsed body with `Attached` in place of markers. Raises ShimError (400)."""
    root: Any = [value]
    open_containers = [root]
    count = 0
    while open_containers:
        container = open_containers.pop()
        items = list(container.items() if isinstance(container, dict) else enumerate(container))
        count += len(items) * (1 + isinstance(container, dict))
        if count > MAX_VALUES:
            raise bad_request([Fault("", f"has more than {MAX_VALUES:,} keys and values")])
        for key, item in items:
            if isinstance(item, dict | list):
                open_containers.append(item)
            elif item in texts or key in texts:
                container[key] = _attached(key, texts.get(str(item), b""))
    replaced: object = root[0]
    return replaced


def _attached(key: object, text: bytes) -> Attached:
    """Return the placeholder for a long string. Raises ShimError (400) if `key` is not an image field."""
    if not re.search("image|mask", str(key), re.IGNORECASE):
        name = str(key)[:64] if isinstance(key, str) and text else ""
        raise bad_request([Fault(name, f"has a string of more than {LONG_TEXT_BYTES:,} bytes; only images may")])
    return Attached.of(text)


def write_json(value: object) -> bytes:
    """Return the body that `read_json` read, with the long strings in place of their placeholders."""
    body = json.dumps(value).encode()
    for text in _attached_in(value):
        body = body.replace(f'"{text}"'.encode(), b'"%b"' % text.data, 1)
    return body


def _attached_in(value: object) -> Iterator[Attached]:
    match value:
        case Attached():
            yield value
        case dict():
            for item in value.values():
                yield from _attached_in(item)
        case list():
            for item in value:
                yield from _attached_in(item)


def decode_base64_in_pieces(text: bytes) -> bytes:
    """Return the bytes of base64 or of a data URL that still has JSON escapes, as encoded.decode_base64 does.

    Raises ValueError for any other text.
    """
    if len(text) <= _CHUNK_BYTES:
        return decode_base64("".join(piece.decode() for piece in _pieces(text, 0)))
    decoded, rest = [], b""
    for piece in _pieces(text, text.find(b",", 0, _DATA_URL_HEAD) + 1):
        clean = rest + piece.translate(_ALPHABET, b" \t\r\n\"'`=")
        whole = len(clean) // 4 * 4
        decoded.append(base64.b64decode(clean[:whole], validate=True))
        rest = clean[whole:]
    decoded.append(base64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True))
    return b"".join(decoded)


def _pieces(text: bytes, begin: int) -> Iterator[bytes]:
    """Yield the string from `begin` on, in pieces, with its JSON escapes decoded. An escape has 6 bytes at most."""
    while begin < len(text):
        end = begin + _CHUNK_BYTES
        if end < len(text) and (escape := text.find(b"\\", end - 6, end)) >= 0:
            end = escape
        piece = text[begin:end]
        if b"\\" in piece:
            piece = str(json.loads(b'"%b"' % piece, strict=False)).encode()
        yield piece
        begin = end
