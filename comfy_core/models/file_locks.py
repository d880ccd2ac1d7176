"""Locks on model files: a job that loads a file holds a shared one, and a file is deleted under an exclusive one.

A lock file is for what only one process may do at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from comfy_core.models.files import is_at

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


@contextlib.contextmanager
def exclusive_lock(file: Path, check: Callable[[], None]) -> Iterator[None]:
    """Hold the lock `file` inside the block. While another process holds it, `check` is called, which may raise.

    The file is created, and deleted at the end. Raises OSError, also if the disk has no locks.
    """
    descriptor = _locked_descriptor(file)
    while descriptor is None:
        check()
        time.sleep(LOCK_POLL_S)
        descriptor = _locked_descriptor(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _locked_descriptor(file: Path) -> int | None:
    """Return a descriptor that holds the lock `file`, or None if another process holds or has just deleted it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    is_held = False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_held = is_at(file, descriptor)
    except BlockingIOError:
        pass
    finally:
        if not is_held:
            os.close(descriptor)
    return descriptor if is_held else None
