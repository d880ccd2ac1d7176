"""Model files on disk: existence, checksum, and the `.part` file during a download. No network access.

A marker file (`<name>.verified`) records that a file had the listed sha256, with its size and modification time. A boot
then reads one line instead of 17 GB, and a changed file is hashed again. A marker is trusted only if only
this user and root could have written the marker and the file (`_only_we_can_write`).

On a shared volume other users could replace our files by links. A part file is never opened through a link, and writing
a marker replaces a link.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from comfy_core.files import write_atomically
from comfy_core.models.listing import MARKER_SUFFIX, PART_SUFFIX, ModelError, WantedFile

LOG = logging.getLogger(__name__)
LOCK_TIMEOUT_S = 900.0
"""Seconds that another process may hold a part file without writing to it."""
_CHUNK_BYTES = 1024 * 1024
_POLL_S = 0.1
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of writing to a full disk, or above a quota."""
_LOCK_UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
_MAX_OPEN_ATTEMPTS = 100
_NOT_A_FILE = frozenset({errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.ENOTSUP})
"""Errors of opening a link, a socket or a device."""

Progress = Callable[[WantedFile, int], None]
"""Called with the number of bytes of a model that were downloaded or verified so far."""

Flock = Callable[[int, int], None]


def size_of(path: Path) -> int | None:
    """Return the size of a file in bytes; None if it does not exist, cannot be accessed, or is not a regular file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def is_verified(model: WantedFile, target: Path) -> bool:
    """Return whether `target` has the model's size, and a matching, trusted marker.

    False for a symbolic link, because another user may be able to change its target: the file is hashed each time.
    """
    try:
        owners = _owners_of(target.parent)
        status = target.lstat()
        if not (
            _only_we_can_write(target.parent.stat(), owners)
            and _only_we_can_write(status, owners)
            and stat.S_ISREG(status.st_mode)
        ):
            return False
        fd = os.open(marker_of(target), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as marker:
            is_trusted = _only_we_can_write(os.fstat(fd), owners)
            return (
                is_trusted
                and status.st_size == model.size
                and marker.read(1024) == _marker_content(model.sha256, status)
            )
    except OSError:
        return False


def hash_and_mark(model: WantedFile, target: Path, stop: threading.Event, progress: Progress) -> str:
    """Hash `target` and return the sha256. If it is the model's, write the marker, else delete the marker.

    A model without a sha256 gets the marker, too.
    """
    with target.open("rb") as file:
        before = os.fstat(file.fileno())
        digest = hashlib.sha256()
        _read(model, file.fileno(), digest, stop, progress)
    with contextlib.suppress(OSError):  # in a read-only folder there is no marker, and the file is hashed each time
        if model.sha256 in {"", digest.hexdigest()}:
            write_atomically(marker_of(target), _marker_content(digest.hexdigest(), before), mode=0o644)
        else:
            marker_of(target).unlink()
    return digest.hexdigest()


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the folder's disk."""
    return shutil.disk_usage(folder).free


def _read(model: WantedFile, fd: int, digest: hashlib._Hash, stop: threading.Event, progress: Progress) -> int:
    """Update `digest` with the file from its current position; return the number of bytes read."""
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    read_bytes = 0
    while count := os.readv(fd, [buffer]):
        if stop.is_set():
            raise stopped_error(model)
        digest.update(buffer[:count])
        read_bytes += count
        progress(model, read_bytes)
    return read_bytes


def stopped_error(model: WantedFile) -> ModelError:
    """Return the error of a model whose download was stopped."""
    return ModelError(model, "was stopped; the partial download is kept. Run it again to resume")


class PartFile:
    """A partial download, locked by this process and hashed while it is written."""

    def __init__(self, model: WantedFile, path: Path, fd: int) -> None:
        self._model = model
        self.path = path
        self._fd = fd
        self._digest = hashlib.sha256()
        self.size = 0

    def read_back(self, stop: threading.Event, progress: Progress) -> None:
        """Hash the bytes that an earlier run left, so that the download can resume."""
        self.size = _read(self._model, self._fd, self._digest, stop, progress)

    def append(self, piece: bytes) -> None:
        """Append `piece`. Raises ModelError if the disk is full; earlier bytes are kept."""
        rest = memoryview(piece)
        try:
            while rest:
                count = os.write(self._fd, rest)
                self.size += count
                rest = rest[count:]
        except OSError as error:
            raise self._disk_full_error(error) from error
        self._digest.update(piece)

    def clear(self) -> None:
        """Truncate the file."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._digest = hashlib.sha256()
        self.size = 0

    def sha256(self) -> str:
        """Return the hash of all bytes."""
        return self._digest.hexdigest()

    def sync(self) -> None:
        """Write the file to the disk. Raises ModelError if the disk is full."""
        try:
            os.fsync(self._fd)
        except OSError as error:  # a network volume may report only now that it is full
            raise self._disk_full_error(error) from error

    def move_to(self, target: Path) -> None:
        """Move the file to `target`: sync it, rename it atomically, then write the marker.

        Raises ModelError if the disk is full, or if another process replaced the file.
        """
        self.sync()
        self.path.replace(target)
        if not is_at(target, self._fd):
            raise ModelError(
                self._model,
                f"another process replaced {self.path.name} during the download. Make sure that no other program "
                f"writes to {target.parent}, and run it again",
            )
        with contextlib.suppress(OSError):
            write_atomically(marker_of(target), _marker_content(self.sha256(), os.fstat(self._fd)), mode=0o644)
        with contextlib.suppress(OSError):  # not every network volume can sync a folder
            _sync(target.parent)

    def discard(self) -> None:
        """Delete the file, unless another process already has a new one at its path."""
        if is_at(self.path, self._fd):
            self.path.unlink(missing_ok=True)

    def _disk_full_error(self, error: OSError) -> Exception:
        if error.errno not in NO_SPACE:
            return error
        return ModelError(
            self._model,
            f"the disk is full ({error.strerror}): {self._model.size - self.size:,} of {self._model.size:,} bytes are "
            f"missing, {free_bytes(self.path.parent):,} are free. Free some space or use a larger volume, and run it "
            f"again; it resumes from {self.path.name}",
            is_temporary=True,
        )


@contextlib.contextmanager
def locked_part(
    model: WantedFile,
    target: Path,
    stop: threading.Event,
    *,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    flock: Flock = fcntl.flock,
) -> Iterator[PartFile]:
    """Yield the part file next to `target`, locked. Wait if another process holds the lock.

    An empty part file is deleted at the end. The lock is on the part file itself, so it is released when the process
    dies, and there is no lock file. Raises ModelError if `stop` is set, or if the part file cannot be locked.
    """
    path = part_of(target)
    while not stop.is_set():
        fd = _open_own(path)
        try:
            _await_lock(model, path, fd, stop, lock_timeout_s, flock)
            if is_at(path, fd):  # otherwise its previous holder finished or deleted it
                part = PartFile(model, path, fd)
                try:
                    yield part
                finally:
                    if os.fstat(fd).st_size == 0:
                        part.discard()
                return
        finally:
            os.close(fd)
    raise stopped_error(model)


def _await_lock(
    model: WantedFile, path: Path, fd: int, stop: threading.Event, lock_timeout_s: float, flock: Flock
) -> None:
    """Lock `fd`. Wait while another process holds the lock and makes progress. Raises ModelError.

    Returns without the lock if the file is no longer at `path`: its holder has finished, and may use the file for long.
    """
    size, since = -1, time.monotonic()
    while not stop.is_set():
        try:
            return flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not is_at(path, fd):
                return None
        except OSError as error:
            if error.errno not in _LOCK_UNSUPPORTED:
                raise
            raise ModelError(
                model,
                f"the disk of its {PART_SUFFIX} file has no file locks ({error.strerror}), which a download needs. Use "
                "a folder on another disk, or copy the file there by hand",
            ) from error
        if size < 0:
            LOG.info("%s: another process is downloading it; waiting", model.path)
        now, new_size = time.monotonic(), os.fstat(fd).st_size
        if new_size != size:
            size, since = new_size, now
        if now - since > lock_timeout_s:
            raise ModelError(
                model,
                f"another process holds its {PART_SUFFIX} file and has written nothing for {lock_timeout_s:g} s. End "
                "that process and run this again; the partial download is kept",
            )
        stop.wait(_POLL_S)
    raise stopped_error(model)


def _owners_of(folder: Path) -> frozenset[int]:
    """Return the trusted owners of files: root, this user, and the user that the volume maps this user to."""
    owners = {0, os.geteuid()}
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as probe:
        owners.add(os.fstat(probe.fileno()).st_uid)
    return frozenset(owners)


def _only_we_can_write(status: os.stat_result, owners: frozenset[int]) -> bool:
    """Return whether nobody but `owners`, this process's group and root's group can write to a file or folder."""
    by_group = status.st_mode & stat.S_IWGRP and status.st_gid not in {0, os.getegid()}
    return status.st_uid in owners and not by_group and not status.st_mode & stat.S_IWOTH


def _open_own(path: Path) -> int:
    """Return a descriptor of the file at `path`, open for reading and writing; it is created if it does not exist.

    A link, or a file that another user can write to, is deleted first: that user could redirect the writes, or change
    the file after its verification.
    """
    owners = _owners_of(path.parent)
    for _ in range(_MAX_OPEN_ATTEMPTS):
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in _NOT_A_FILE:
                raise
        else:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1 and _only_we_can_write(status, owners):
                return fd
            os.close(fd)
        LOG.warning("%s: is a link, or writable by others; deleting it and starting over", path.name)
        path.unlink(missing_ok=True)
    raise OSError(errno.EBUSY, "another process keeps creating it", str(path))


def is_at(path: Path, fd: int) -> bool:
    """Return whether the open file `fd` is the one at `path`."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def part_of(target: Path) -> Path:
    """Return the path of the part file of a download to `target`."""
    return target.with_name(target.name + PART_SUFFIX)


def marker_of(target: Path) -> Path:
    """Return the path of the marker of the file at `target`."""
    return target.with_name(target.name + MARKER_SUFFIX)


def _marker_content(sha256: str, status: os.stat_result) -> bytes:
    """Return the marker's content. It has whole seconds, because image layers store no fractions."""
    return f"{sha256} {status.st_size} {int(status.st_mtime)}\n".encode()


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
