"""Whether the disk that ComfyUI writes to is full. It imports the standard library alone, for the health check."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

MIN_FREE_BYTES = 16 * 1024 * 1024
"""With less, a picture of a request may not be stored: it can have 25 MB, and ComfyUI writes it twice."""
_SWEPT = ("input/run-*", "output/run-*", "temp/*")


def full_disk(folders: Iterable[Path], min_free_bytes: int = MIN_FREE_BYTES) -> str:
    """Return a sentence that names the first folder whose disk is full; empty if none is."""
    for folder in folders:
        try:
            disk = os.statvfs(folder)
        except OSError:
            continue
        free_bytes = disk.f_bavail * disk.f_frsize
        if disk.f_blocks and free_bytes < min_free_bytes:  # a file system without blocks does not say
            return f"The disk of {folder} is full: {free_bytes / 1024 / 1024:.1f} MB are left."
        if disk.f_files and not disk.f_favail:
            return f"The disk of {folder} is full: it takes no further file."
    return ""


def sweep(data: Path) -> None:
    """Delete what earlier jobs left in ComfyUI's data folder. Only while no job uses it."""
    for pattern in _SWEPT:
        for path in data.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def temporary_folder(environment: Mapping[str, str]) -> Path:
    """Return where ComfyUI's web server keeps an upload while it arrives. Nothing is written to find out."""
    return Path(environment.get("TMPDIR", "").strip() or "/tmp")  # noqa: S108 - the system's own
