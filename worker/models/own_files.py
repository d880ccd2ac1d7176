"""Safe file access on a volume that other users can write to: ownership checks, opening without following links."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import tempfile
from pathlib import Path

LOG = logging.getLogger(__name__)
_MOST_TRIES = 100
_NO_FILES = frozenset({errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.ENOTSUP})
"""Errors of opening a link, a socket or a device."""


def owners_of(folder: Path) -> frozenset[int]:
    """Return the trusted owners of files: root, this user, and the user that the volume maps this user to."""
    owners = {0, os.geteuid()}
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as probe:
        owners.add(os.fstat(probe.fileno()).st_uid)
    return frozenset(owners)


def is_ours(status: os.stat_result, owners: frozenset[int]) -> bool:
    """Return whether only `owners`, this process's group and root's group can write to a file or folder."""
    by_group = status.st_mode & stat.S_IWGRP and status.st_gid not in {0, os.getegid()}
    return status.st_uid in owners and not by_group and not status.st_mode & stat.S_IWOTH


def open_own(path: Path) -> int:
    """Return a descriptor of the file at `path`, open for reading and writing; it is created if it does not exist.

    A link, or a file that another user can write to, is deleted first: that user could redirect the writes, or change
    the file after its verification.
    """
    owners = owners_of(path.parent)
    for _ in range(_MOST_TRIES):
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in _NO_FILES:
                raise
        else:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1 and is_ours(status, owners):
                return fd
            os.close(fd)
        LOG.warning("%s: is a link, or writable by others; deleting it and starting over", path.name)
        path.unlink(missing_ok=True)
    raise OSError(errno.EBUSY, "another process keeps creating it", str(path))
