"""Hides this process's memory and environment from other processes of the same user. Standard library only."""

from __future__ import annotations

import ctypes
import sys

_PR_SET_DUMPABLE = 4


def protect_process_memory() -> bool:
    """Make /proc/<pid>/environ and the memory of this process unreadable for this user; return whether it worked.

    ComfyUI runs as the same user, so without this call a custom node could read the worker's secrets. Child processes
    are not protected: the kernel resets the flag on exec. root can still read everything.
    """
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)
