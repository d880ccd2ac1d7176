"""Checks for full disks, and deletes files of earlier jobs. Standard library only, because the health check uses it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

MIN_FREE_BYTES = 16 * 1024 * 1024
"""A disk with fewer free bytes counts as full."""
_JOB_FILES = ("input/run-*", "output/run-*", "temp/*")


def full_disk_problem(folders: Iterable[Path], min_free_bytes: int = MIN_FREE_BYTES) -> str:
    """Return a sentence that names the first folder whose disk is full, or an empty string. Skips missing folders."""
    for folder in folders:
        try:
            disk = os.statvfs(folder)
        except OSError:
            continue
        free_bytes = disk.f_bavail * disk.f_frsize
        if disk.f_blocks and free_bytes < min_free_bytes:  # some file systems report 0 blocks
            return f"The disk of {folder} is full: {free_bytes / 1024 / 1024:.1f} MB are left."
        if disk.f_files and not disk.f_favail:
            return f"The disk of {folder} is full: no more files can be created."
    return ""


def delete_job_files(data: Path) -> None:
    """Delete the files that earlier jobs left in ComfyUI's data folder. Call it only while no job uses the folder."""
    for pattern in _JOB_FILES:
        for path in data.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
