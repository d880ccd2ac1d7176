"""Local test mode (`python handler.py`, `--test_input`): result files are written to disk, not printed as base64."""

from __future__ import annotations

import base64
import itertools
from pathlib import Path

from comfy_core.contract import JsonObject


def write_files(result: JsonObject, folder: Path) -> JsonObject:
    """Return the result with each inline file written to `folder`, and its path instead of the base64 text.

    An existing file is kept; the new file gets a numbered name. If a file cannot be written, the reason is in
    place of the path.
    """
    groups = {key: result[key] for key in ("images", "files") if isinstance(result.get(key), list)}
    return {**result, **{key: [_entry(each, folder) for each in entries] for key, entries in groups.items()}}


def _entry(entry: JsonObject, folder: Path) -> JsonObject:
    if entry.get("type") != "base64":
        return entry
    fields = [field for field in ("data", "image") if field in entry]  # WORKER_IMAGE_FIELD selects one or both
    try:
        location = str(_write(base64.b64decode(entry[fields[0]]), Path(entry["filename"]).name, folder))
    except OSError as error:
        location = f"not written to {folder}: {error.strerror}"
    return {**entry, "type": "path", **dict.fromkeys(fields, location)}


def _write(data: bytes, name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path, numbers = folder / name, itertools.count(2)
    while path.exists():
        path = folder / f"{Path(name).stem}-{next(numbers)}{Path(name).suffix}"
    path.write_bytes(data)
    return path
