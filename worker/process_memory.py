"""Keeps other processes of the same user out of this one. It imports the standard library alone."""

from __future__ import annotations

import ctypes
import sys

_PR_SET_DUMPABLE = 4


def protect_process_memory() -> bool:
    """Keep other processes of this user out of this one's memory and /proc/<pid>/environ; return whether that worked.

    ComfyUI runs as the same user. Without this, a custom node could read the worker's secrets there. A process that
    this one starts can be read again, as the kernel resets the flag at exec. root can read everything all the same.
    """
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)
