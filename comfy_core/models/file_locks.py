"""Locks on model files: a job that loads a file holds a shared one, and a file is deleted under an exclusive one."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

LOCK_WAIT_S = 1.0
"""How long a lock is tried. Another process holds it as long only if its job loads the file."""
LOCK_POLL_S = 0.02


def is_in_use(file: Path) -> bool:
    """Return whether a running job of any worker on the volume holds a file."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the disk has no locks
        return False
    finally:
        os.close(descriptor)
    return False


def shared_lock(file: Path) -> int | None:
    """Return a descriptor that holds a file, or None if it was deleted or its disk has no locks."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    deadline = time.monotonic() + LOCK_WAIT_S
    while time.monotonic() < deadline:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # another process looks whether it is in use, or deletes it
            time.sleep(LOCK_POLL_S)
        except OSError:
            break
        else:
            return descriptor
    os.close(descriptor)
    return None
