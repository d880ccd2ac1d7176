"""Drops files from the kernel's page cache, and checks whether they are in it. Linux only; needs no privileges."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

SAMPLES = 64
"""Number of places of each file that are checked."""
COLD, CACHED, PARTLY, UNKNOWN = "cold", "cached", "partly cached", "page cache unknown"


def drop(files: Iterable[Path]) -> None:
    """Drop the files from the page cache. Pages that another process has mapped stay."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # a page that is not yet on the disk would stay
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def state(files: Iterable[Path]) -> str:
    """Return whether the files are in the page cache: COLD, CACHED, PARTLY, or UNKNOWN if the file system hides it."""
    try:
        cached = [is_cached for file in files for is_cached in _samples(file)]
    except OSError:
        return UNKNOWN
    share = sum(cached) / len(cached)
    return COLD if share < 0.05 else CACHED if share > 0.95 else PARTLY


def _samples(file: Path) -> Iterable[bool]:
    """Yield whether each of some places of a file can be read without the disk."""
    size, one_byte = file.stat().st_size, bytearray(1)
    with file.open("rb") as opened:
        for number in range(SAMPLES):
            try:
                os.preadv(opened.fileno(), [one_byte], size * number // SAMPLES, os.RWF_NOWAIT)
                yield True
            except BlockingIOError:
                yield False
