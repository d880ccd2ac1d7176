"""Models on a disk: is it there, is it the right one, and the `.part` beside it that becomes it. It knows no network.

A file counts as verified if a marker beside it (`<name>.verified`) says that it had the list's sha256 when it had this
size and this time of change. So a boot reads one line instead of 17 GB, and a file that was changed is read again. A
marker is believed only if nobody but this user and root can have written it or the file: see `is_ours`.

On a shared volume other users may put links in the place of our files: a part is never opened through one, and a marker
replaces one.
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
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from worker.models.listing import MARKER_SUFFIX, PART_SUFFIX, ModelError, ModelFile
from worker.models.own_files import is_ours, open_own, owners_of, replace_file

LOG = logging.getLogger(__name__)
_PIECE = 1024 * 1024
_POLL_S = 0.1
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})

Progress = Callable[[ModelFile, int], None]
"""Told how many bytes of a model are there, or were read again."""

Flock = Callable[[int, int], None]


def size_of(path: Path) -> int | None:
    """Return the bytes of a file, None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def missing_models(models: Iterable[ModelFile], directories: Iterable[Path]) -> list[ModelFile]:
    """Return the models that none of `directories` (ComfyUI's models folders) holds in its size. No file is read."""
    folders = tuple(directories)
    return [model for model in models if not any(size_of(folder / model.path) == model.size for folder in folders)]


def is_verified(model: ModelFile, target: Path) -> bool:
    """Return whether `target` has the model's size, and a marker that fits it and can be believed.

    False for a symbolic link, whose target another user may be able to change: it is read each time.
    """
    try:
        owners = owners_of(target.parent)
        status = target.lstat()
        if not (is_ours(target.parent.stat(), owners) and is_ours(status, owners) and stat.S_ISREG(status.st_mode)):
            return False
        fd = os.open(_marker(target), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as marker:
            believed = is_ours(os.fstat(fd), owners)
            return believed and status.st_size == model.size and marker.read(1024) == _mark(model, status)
    except OSError:
        return False


def verify(model: ModelFile, target: Path, stop: threading.Event, progress: Progress) -> str:
    """Return the sha256 of `target`; if it is the model's, mark it as verified, else take the mark away."""
    with target.open("rb") as file:
        before = os.fstat(file.fileno())
        digest = hashlib.sha256()
        _read(model, file.fileno(), digest, stop, progress)
    with contextlib.suppress(OSError):  # a folder that cannot be written has no mark, and is read each time
        if digest.hexdigest() == model.sha256:
            replace_file(_marker(target), _mark(model, before))
        else:
            _marker(target).unlink()
    return digest.hexdigest()


def require_space(models: Iterable[ModelFile], directory: Path) -> None:
    """Raise ModelError where the disks have not room for what of `models` has still to come."""
    needed: dict[int, int] = {}
    folders: dict[int, tuple[ModelFile, Path, int]] = {}
    for model in models:
        target = directory / model.path
        target.parent.mkdir(parents=True, exist_ok=True)
        device = target.parent.stat().st_dev
        # Free first: another process may be writing this part, and must not be counted twice.
        folders.setdefault(device, (model, target.parent, free_bytes(target.parent)))
        needed[device] = needed.get(device, 0) + max(0, model.size - (size_of(_part(target)) or 0))
    for device, (model, folder, free) in folders.items():
        if needed[device] > free:
            raise ModelError(
                model,
                f"the disk of {folder} has too little space for it and the others that are missing: {needed[device]:,} "
                f"bytes are needed, {free:,} are free. Make room, take a larger volume, or choose with --only",
            )


def free_bytes(folder: Path) -> int:
    """Return the bytes that may still be written there."""
    return shutil.disk_usage(folder).free


def _read(model: ModelFile, fd: int, digest: hashlib._Hash, stop: threading.Event, progress: Progress) -> int:
    """Feed `digest` the file from its current position on; return how many bytes that were."""
    buffer = memoryview(bytearray(_PIECE))
    done = 0
    while count := os.readv(fd, [buffer]):
        if stop.is_set():
            raise stopped(model)
        digest.update(buffer[:count])
        done += count
        progress(model, done)
    return done


def stopped(model: ModelFile) -> ModelError:
    """Return the error of a model whose turn ended because all was to end."""
    return ModelError(model, "was stopped; what came is kept. Run it again to go on")


class PartFile:
    """The unfinished model: written by this process alone, hashed as it is written."""

    def __init__(self, model: ModelFile, path: Path, fd: int) -> None:
        self._model = model
        self._path = path
        self._fd = fd
        self._digest = hashlib.sha256()
        self._is_kept = True
        self.size = 0

    def read_back(self, stop: threading.Event, progress: Progress) -> None:
        """Hash what an earlier run left, so that it can be gone on with."""
        self.size = _read(self._model, self._fd, self._digest, stop, progress)

    def append(self, piece: bytes) -> None:
        """Write `piece`. Raises ModelError where the disk is full; what was written before stays."""
        rest = memoryview(piece)
        try:
            while rest:
                count = os.write(self._fd, rest)
                self.size += count
                rest = rest[count:]
        except OSError as error:
            raise self._no_room(error) from error
        self._digest.update(piece)

    def clear(self) -> None:
        """Begin again with nothing."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._digest = hashlib.sha256()
        self.size = 0

    def sha256(self) -> str:
        """Return the hash of all that was written."""
        return self._digest.hexdigest()

    def become(self, target: Path) -> None:
        """Take the place of `target`: on the disk first, then renamed in one step, then marked as verified."""
        try:
            os.fsync(self._fd)
        except OSError as error:  # a network volume may say only now that it is full
            raise self._no_room(error) from error
        self._path.replace(target)
        self._is_kept = False
        if not _is_at(target, self._fd):
            raise ModelError(
                self._model,
                f"another process replaced {self._path.name} while it was fetched. Let nobody else write to "
                f"{target.parent}, and run it again",
            )
        with contextlib.suppress(OSError):
            replace_file(_marker(target), _mark(self._model, os.fstat(self._fd)))
        with contextlib.suppress(OSError):  # not every network volume can sync a folder
            _sync(target.parent)

    def discard(self) -> None:
        """Remove it."""
        if self._is_kept:
            self._path.unlink(missing_ok=True)
            self._is_kept = False

    def close(self, *, is_shared: bool) -> None:
        """Let go of it. It stays for the next run, unless that would find nothing in it, or not find it."""
        if not is_shared or os.fstat(self._fd).st_size == 0:
            self.discard()
        os.close(self._fd)

    def _no_room(self, error: OSError) -> Exception:
        if error.errno not in _NO_SPACE:
            return error
        return ModelError(
            self._model,
            f"the disk is full ({error.strerror}): {self._model.size - self.size:,} of {self._model.size:,} bytes are "
            f"still to come, {free_bytes(self._path.parent):,} are free. Make room or take a larger volume, and run it "
            f"again; {self._path.name} is kept and gone on with",
        )


@contextlib.contextmanager
def locked_part(
    model: ModelFile, target: Path, stop: threading.Event, *, lock_timeout_s: float, flock: Flock = fcntl.flock
) -> Iterator[PartFile]:
    """Hold the part beside `target`, which no other process has meanwhile; wait for one that has it.

    The lock is on the part itself, so that a process's death frees it and nothing is left lying about. Where the volume
    has no locks the part gets a name of this run's own: nobody else's is spoilt, but it cannot be gone on with.
    """
    path = _part(target)
    try:
        fd = _lock(model, path, stop, lock_timeout_s, flock)
        is_shared = True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        LOG.warning("%s: the volume has no locks (%s); a download cut short begins anew", model.path, error.strerror)
        path = target.with_name(f"{target.name}.{uuid.uuid4().hex}{PART_SUFFIX}")
        fd = open_own(path)
        is_shared = False
    part = PartFile(model, path, fd)
    try:
        yield part
    finally:
        part.close(is_shared=is_shared)


def _lock(model: ModelFile, path: Path, stop: threading.Event, lock_timeout_s: float, flock: Flock) -> int:
    """Return the open and locked part. Raises OSError where the volume has no locks."""
    while not stop.is_set():
        fd = open_own(path)
        with contextlib.ExitStack() as unless_held:
            unless_held.callback(os.close, fd)
            _await_lock(model, fd, stop, lock_timeout_s, flock)
            if _is_at(path, fd):  # else whoever had it has finished or removed it
                unless_held.pop_all()
                return fd
    raise stopped(model)


def _await_lock(model: ModelFile, fd: int, stop: threading.Event, lock_timeout_s: float, flock: Flock) -> None:
    """Lock `fd`, however long another process takes, as long as it gets on."""
    size, since = -1, time.monotonic()
    while not stop.is_set():
        try:
            return flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        if size < 0:
            LOG.info("%s: another process is fetching it; waiting for that", model.path)
        now, grown = time.monotonic(), os.fstat(fd).st_size
        if grown != size:
            size, since = grown, now
        if now - since > lock_timeout_s:
            raise ModelError(
                model,
                f"another process holds its {PART_SUFFIX} and has written nothing for {lock_timeout_s:g} s. End that "
                "process and run this again; what came is kept",
            )
        stop.wait(_POLL_S)
    raise stopped(model)


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _part(target: Path) -> Path:
    return target.with_name(target.name + PART_SUFFIX)


def _marker(target: Path) -> Path:
    return target.with_name(target.name + MARKER_SUFFIX)


def _mark(model: ModelFile, status: os.stat_result) -> bytes:
    """Return the marker's content. Whole seconds: the layers of an image keep no fractions."""
    return f"{model.sha256} {status.st_size} {int(status.st_mtime)}\n".encode()


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
