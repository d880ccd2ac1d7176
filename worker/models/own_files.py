"""Files on a volume that other users may write to: which are ours, and how one is opened without following a link."""

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
"""How opening a link, a socket or a device that is no file fails."""


def owners_of(folder: Path) -> frozenset[int]:
    """Return whose files are as good as our own: root's, ours, and the user's whom the volume takes us for."""
    owners = {0, os.geteuid()}
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as probe:
        owners.add(os.fstat(probe.fileno()).st_uid)
    return frozenset(owners)


def is_ours(status: os.stat_result, owners: frozenset[int]) -> bool:
    """Return whether no user but `owners` can write to a file or folder, nor a group but ours and root's."""
    by_group = status.st_mode & stat.S_IWGRP and status.st_gid not in {0, os.getegid()}
    return status.st_uid in owners and not by_group and not status.st_mode & stat.S_IWOTH


def open_own(path: Path) -> int:
    """Return the file at `path`, open for reading and writing; a new one if there is none.

    One that is a link, or that another user can write to, is removed first: its writer could redirect what is written,
    or change it once it is verified.
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
        LOG.warning("%s: is a link, or others can write to it; starting again without it", path.name)
        path.unlink(missing_ok=True)
    raise OSError(errno.EBUSY, "another process puts it there again and again", str(path))


def replace_file(path: Path, content: bytes) -> None:
    """Put a small file into the place of whatever is at `path`, in one step."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # a new file, never through a link
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            os.fchmod(fd, 0o644)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
