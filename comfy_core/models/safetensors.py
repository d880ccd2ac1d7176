"""Checks the header of a safetensors file, before ComfyUI opens the file. Reads no tensor.

Format: 8 bytes with the header's length (little-endian), a JSON object with the place of each tensor, the tensors. The
library safetensors accepts headers of up to 100 MB; this module less, because Python needs many times that memory.
"""

from __future__ import annotations

import json
from pathlib import Path

MAX_HEADER_BYTES = 20_000_000
LENGTH_BYTES = 8
_METADATA = "__metadata__"


def start_problem(start: bytes, size: int) -> str:
    """Return the problem with a file of `size` bytes that begins with `start` (8 bytes or more), or an empty string."""
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if start.startswith(b"PK\x03\x04") or start[:1] == b"\x80":
        return "is a pickle (.ckpt, .pt), which can run code. Only safetensors files are accepted"
    if start.lstrip()[:1] in {b"<", b"{"}:
        return "is a web page or JSON, not a model. The host may want a token, or the address is not that of the file"
    if len(start) < LENGTH_BYTES or not 2 <= length <= size - LENGTH_BYTES:  # noqa: PLR2004 - an empty JSON object
        return f"is not a safetensors file: its header would have {length:,} bytes, and the file has {size:,}"
    if length > MAX_HEADER_BYTES:
        return f"has a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are accepted"
    return ""


def safetensors_problem(file: Path) -> str:
    """Return the problem with a file as a predicate, or an empty string if it is a complete safetensors file."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(LENGTH_BYTES)
        if problem := start_problem(start, size):
            return problem
        header = opened.read(int.from_bytes(start, "little"))
    try:
        tensors = json.loads(header)
        places = sorted(_place(tensors[name]) for name in tensors if name != _METADATA)
    except (ValueError, TypeError, LookupError, RecursionError):
        return "is not a safetensors file: its header is not valid"
    end = 0
    for begin, next_end in places:
        if begin != end or next_end < begin:
            return "is not a safetensors file: its tensors overlap, or have bytes between them"
        end = next_end
    expected = LENGTH_BYTES + len(header) + end
    return "" if expected == size else f"is incomplete or damaged: its header needs {expected:,} bytes, it has {size:,}"


def _place(tensor: dict[str, list[int]]) -> tuple[int, int]:
    """Return the begin and the end of a tensor. Raises TypeError, ValueError or LookupError if they are not valid."""
    begin, end = tensor["data_offsets"]
    if type(begin) is not int or type(end) is not int:
        raise TypeError
    return begin, end
