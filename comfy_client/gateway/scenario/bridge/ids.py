"""Finds and replaces asset ids in JSON bytes, paths and queries. Pure.

An id is replaced if it is a whole JSON string, a whole path segment, or a whole value of a query. Bodies are not
parsed: an image in base64 can have 40 MB, and no part of it looks like a quoted id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

_ID = r"asset_[A-Za-z0-9_-]{1,64}"
_QUOTED = re.compile(rf'"({_ID})"'.encode())
_IN_URL = re.compile(rf"(?<=[/=,])({_ID})(?=$|[/&,])", re.ASCII)


def ids_in_json(body: bytes) -> set[str]:
    """Return the asset ids in a JSON text."""
    return {each.decode() for each in _QUOTED.findall(body)}


def ids_in_url(text: str) -> set[str]:
    """Return the asset ids in a path or in an encoded query."""
    return set(_IN_URL.findall(text))


def replaced_in_json(body: bytes, ids: Mapping[str, str]) -> bytes:
    """Return a JSON text with these ids replaced."""
    if not ids:
        return body
    return _QUOTED.sub(lambda found: f'"{ids.get(found[1].decode(), found[1].decode())}"'.encode(), body)


def replaced_in_url(text: str, ids: Mapping[str, str]) -> str:
    """Return a path or an encoded query with these ids replaced."""
    return _IN_URL.sub(lambda found: quote(ids.get(found[1], found[1]), safe=""), text)
