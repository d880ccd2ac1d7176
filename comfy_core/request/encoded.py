"""Recognises URLs and data URIs, and decodes base64, including malformed variants that other software writes. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote

from comfy_core.contract import is_asset_id

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{1,31}://", re.IGNORECASE)
_HTTPS = re.compile(r"https://", re.IGNORECASE)
_DATA_URI_HEAD = re.compile(r"(?P<scheme>data\s*:)?(?P<type>[^,]{0,200}),", re.IGNORECASE)
_IS_BASE64 = re.compile(r"(^|;)\s*base64\s*$", re.IGNORECASE)
_ESCAPES = re.compile(r"\\[nrt]")
_MIN_UNMARKED_LENGTH = 16
"""Minimum length of content that is read as base64 although its data URI lacks `;base64`."""


def is_https(text: str) -> bool:
    """Return whether `text` begins like an https URL."""
    return _HTTPS.match(_trimmed(text[:64])) is not None


def is_url(text: str) -> bool:
    """Return whether `text` begins like a URL of any scheme, such as https or ftp."""
    return _SCHEME.match(_trimmed(text[:64])) is not None


def is_data_uri(text: str) -> bool:
    """Return whether `text` begins like a data URI."""
    return re.match(r"data\s*(:|%3a)", _trimmed(text[:64]), re.IGNORECASE) is not None


def bare_url(text: str) -> str:
    """Return a URL without surrounding quotes and white space."""
    return _trimmed(text)


def decode_base64(text: str) -> bytes:
    """Return the bytes of base64 or of a data URI. Raises ValueError, with a message for the user, for any other text.

    Accepts upper case and spaces in the head of a data URI, quotes around the content, white space in it, both base64
    alphabets, percent and JSON escapes, and wrong padding with `=`.
    """
    content = _trimmed(text)
    if is_asset_id(content):
        raise ValueError("is an asset id, which only the provider scenario can read; send the image itself")
    if is_url(content):
        raise ValueError("is a URL with another scheme than https; send an https URL, base64 or a data URI")
    if "%" in content:
        content = unquote(content)
    is_marked = True
    if is_data_uri(content) or "," in content[:256]:
        head = _DATA_URI_HEAD.match(content)
        is_marked = head is not None and _IS_BASE64.search(head["type"]) is not None
        content = content[head.end() :] if head else ""
    decoded = _decoded(content) if is_marked or len(content) >= _MIN_UNMARKED_LENGTH else None
    if decoded is None and not is_marked:
        raise ValueError("is a data URI that is not base64-encoded; it must begin with data:image/png;base64,")
    if decoded is None:
        raise ValueError("is not base64")
    return decoded


def _trimmed(text: str) -> str:
    return text.strip("\"'`\ufeff \t\r\n\v\f")


def _decoded(content: str) -> bytes | None:
    if "\\" in content:
        content = _ESCAPES.sub("", content).replace("\\/", "/")
    digits = "".join(content.split()).strip("\"'`").rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
