"""A folder of model files that were downloaded from addresses, with a size limit. Workers on one volume share it.

    <sha256>.safetensors           a complete, verified file; <sha256>.safetensors.verified is its marker
    <key>.<bytes>.part             a download; the process that writes it holds a lock on it
    addresses/<key>                the sha256 of the file with this address and version, if the address has none
    lock                           exists while a process makes room, or moves a file to its place
    <name>.lock                    exists while a process downloads a file that gets this name (actions.py)

A file is in use while a process holds a shared lock on it (`Lease`), and only a file that is not in use is removed.
The operating system releases the locks of a process that dies, so no lock outlives its holder. The time of the last
access is set explicitly: the modification time belongs to the marker, and many volumes do not record accesses.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from comfy_core.files import write_atomically
from comfy_core.models.address_source import AddressedFile, AddressSource, RemoteFile
from comfy_core.models.download import DEFAULT_RETRY_POLICY, DownloadRetryPolicy, FetchContext, fill_part
from comfy_core.models.file_locks import exclusive_lock
from comfy_core.models.files import (
    PartFile,
    free_bytes,
    hash_and_mark,
    is_at,
    is_verified,
    locked_part,
    marker_of,
    part_of,
    stopped_error,
)
from comfy_core.models.listing import PART_SUFFIX, ModelError, WantedFile
from comfy_core.models.safetensors import safetensors_problem
from comfy_core.models.source import RetryableDownloadError
from comfy_core.request.model_address import ModelAddress

LOG = logging.getLogger(__name__)
CACHE_FOLDER = ".by-address"
"""Name of the cache's folder inside a models folder. The dot keeps it from being a type of models."""
SUFFIX = ".safetensors"
MIN_FREE_BYTES = 64 * 1024 * 1024
"""Bytes of the disk that downloads leave free."""
LOCK_TIMEOUT_S = 60.0
"""Seconds to wait while another process makes room. It deletes files, which takes a moment."""
_MAX_ROUNDS = 3
"""How often a file is downloaded again if another process removes it before it is in use."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART_NAME = re.compile(r"[0-9a-f]{64}\.([0-9]{1,18})")

OnBytes = Callable[[int, int], None]
"""Called with the number of bytes of a file that are there, and the number of all its bytes."""


@dataclass(frozen=True)
class Lease:
    """A complete file of the cache. It is not removed before `release`."""

    path: Path
    sha256: str
    descriptor: int

    def release(self) -> None:
        """Allow other processes to remove the file. Call it once."""
        os.close(self.descriptor)


@dataclass(frozen=True)
class _Entry:
    """A file or a download in the cache. `size` is the final size."""

    path: Path
    size: int
    missing: int
    used_at: float


class AddressCache:
    """The cache in one folder. Thread-safe.

    Args:
        folder: the folder. It is created when the first file is downloaded.
        limit_bytes: maximum size of all files and downloads.
        retry_policy: retry limits of a download.
        free: returns the free bytes of a folder's disk.
    """

    def __init__(
        self,
        folder: Path,
        limit_bytes: int,
        retry_policy: DownloadRetryPolicy = DEFAULT_RETRY_POLICY,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._retry_policy = retry_policy
        self._free = free

    def fetch(self, address: ModelAddress, source: AddressSource, stop: threading.Event, on_bytes: OnBytes) -> Lease:
        """Return the file at `address`, downloaded if it is not in the cache. Setting `stop` ends the download early.

        If the address has a hash, a file of the cache is used without a request. Otherwise the file's version is
        requested from its server each time, so that a token that was withdrawn gives no access.

        Raises ModelError. Its `is_temporary` is whether the same request may succeed later.
        """
        remote = None
        for _ in range(_MAX_ROUNDS):
            if lease := self._lease(address.sha256, stop):
                return lease
            remote = remote or self._described(address, source, stop)
            file = AddressedFile(address.source, remote.size, address.sha256 or remote.sha256, source.url(address))
            key = file.sha256 or remote.key(file.url)
            if lease := self._lease(file.sha256 or self._recorded(key), stop):
                return lease
            self._download(file, key, FetchContext(source, self._retry_policy, stop, _reporter(on_bytes)))
        raise ModelError(
            file,
            "was removed from the cache before it was used; WORKER_MODEL_LIMIT_GB is too small for all jobs",
            is_temporary=True,
        )

    def _described(self, address: ModelAddress, source: AddressSource, stop: threading.Event) -> RemoteFile:
        """Return what the server says about a file, with retries. Raises ModelError."""
        named = AddressedFile(address.source, 0, "", "")
        for failures in itertools.count(1):
            try:
                return self._checked(address, source.describe(address))
            except RetryableDownloadError as error:
                if self._retry_policy.is_over(failures, error):
                    problem = f"{error}; given up after {failures} attempts"
                    raise ModelError(named, problem, is_temporary=True) from error
                stop.wait(self._retry_policy.pause_s(failures, error))
            if stop.is_set():
                break
        raise stopped_error(named)

    def _checked(self, address: ModelAddress, remote: RemoteFile) -> RemoteFile:
        """Return `remote`. Raises ModelError if it is another file than the request expects, or too large."""
        named = AddressedFile(address.source, remote.size, address.sha256, "")
        if remote.sha256 and address.sha256 and remote.sha256 != address.sha256:
            raise ModelError(named, f"wrong file: sha256 {address.sha256} was expected, its server has {remote.sha256}")
        if remote.size > self.limit_bytes:
            raise ModelError(
                named,
                f"has {remote.size:,} bytes; this worker keeps at most {self.limit_bytes:,} (WORKER_MODEL_LIMIT_GB)",
            )
        return remote

    def _recorded(self, key: str) -> str:
        """Return the sha256 that an earlier download of this version had, or an empty string."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = (self.folder / "addresses" / key).read_text(encoding="ascii").strip()
            return text if _SHA256.fullmatch(text) else ""
        return ""

    def _lease(self, sha256: str, stop: threading.Event) -> Lease | None:
        """Return a lease of the file with this hash, or None if the cache does not have it. Sets its time of use."""
        path = self.folder / f"{sha256}{SUFFIX}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        is_kept = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            status = os.fstat(descriptor)
            file = AddressedFile(path.name, status.st_size, sha256, "")
            if not is_at(path, descriptor):  # another process removed it in between
                return None
            if is_verified(file, path) or hash_and_mark(file, path, stop, lambda _, __: None) == sha256:
                with contextlib.suppress(OSError):  # the file of another user
                    os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
                is_kept = True
                return Lease(path, sha256, descriptor)
        except OSError:  # locked, because another process removes it; or the volume has no locks
            return None
        finally:
            if not is_kept:
                os.close(descriptor)
        LOG.warning("%s is damaged; it is removed", path)
        with self._locked(file, stop):
            remove_unless_used(path)
        return None

    def _download(self, file: AddressedFile, key: str, context: FetchContext) -> None:
        """Download a file into the cache, or wait while another process does. Raises ModelError."""
        try:
            target = self.folder / f"{key}.{file.size}"
            self._make_room(file, target, context.stop)
            with locked_part(file, target, context.stop) as part:
                done = file.sha256 or self._recorded(key)
                if done and (self.folder / f"{done}{SUFFIX}").exists():
                    LOG.info("%s: another job has downloaded it", file.path)
                    return
                self._make_room(file, target, context.stop)  # again: until now, others could remove the part
                fill_part(file, part, context)
                self._keep(file, key, part, context.stop)
        except OSError as error:
            raise ModelError(
                file, f"the folder {self.folder} cannot be read or written ({error.strerror})", is_temporary=True
            ) from error

    def _keep(self, file: AddressedFile, key: str, part: PartFile, stop: threading.Event) -> None:
        """Move a complete part to its name in the cache. Raises ModelError if it is not a safetensors file."""
        if problem := safetensors_problem(part.path):
            part.discard()
            raise ModelError(file, f"{problem}. Nothing of it was kept")
        part.sync()
        with self._locked(file, stop):  # so that no process removes an older file at this path, and hits the new one
            if not file.sha256:  # before the move, because a job that waits for the part looks for it right after that
                write_atomically(self.folder / "addresses" / key, f"{part.sha256()}\n".encode(), mode=0o644)
            part.move_to(self.folder / f"{part.sha256()}{SUFFIX}")
        LOG.info("%s: downloaded, %s bytes, sha256 %s", file.path, f"{file.size:,}", part.sha256())

    def _make_room(self, file: AddressedFile, target: Path, stop: threading.Event) -> None:
        """Remove files that are not in use, the least recently used ones first, until `file` has room.

        Creates the part file, which reserves the room. Raises ModelError if there is not enough room.
        """
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        part = part_of(target)
        with self._locked(file, stop):
            entries = sorted(self._entries(), key=lambda entry: entry.used_at)
            own = [entry for entry in entries if entry.path == part]
            needed = own[0].missing if own else file.size
            kept = [entry for entry in entries if entry.path != part]
            for entry in list(kept):
                if self._problem(file, needed, kept) and remove_unless_used(entry.path):
                    LOG.info("removed %s (%s bytes) to make room", entry.path.name, f"{entry.size:,}")
                    kept.remove(entry)
            if len(kept) < len(entries) - len(own):
                self._forget_removed()
            if problem := self._problem(file, needed, kept):
                raise ModelError(file, problem, is_temporary=True)
            part.touch(mode=0o644)

    def _problem(self, file: AddressedFile, needed: int, others: list[_Entry]) -> str:
        """Return why `file` has no room besides `others`, or an empty string."""
        used = sum(entry.size for entry in others)
        free = self._free(self.folder) - sum(entry.missing for entry in others) - MIN_FREE_BYTES
        if used + file.size > self.limit_bytes:
            limit = f"the limit is {self.limit_bytes:,} bytes (WORKER_MODEL_LIMIT_GB)"
            return f"has {file.size:,} bytes and no room: running jobs use {used:,} bytes of models, and {limit}"
        if needed > free:
            return (
                f"has no room: {needed:,} bytes are needed, {max(0, free):,} are free on the disk of {self.folder}, "
                "and no further file can be removed. Free space there, or use a larger disk or volume"
            )
        return ""

    def _forget_removed(self) -> None:
        """Delete the records of addresses whose file was removed."""
        for record in (self.folder / "addresses").glob("*"):
            if _SHA256.fullmatch(record.name) and not (self.folder / f"{self._recorded(record.name)}{SUFFIX}").exists():
                record.unlink(missing_ok=True)

    def _entries(self) -> Iterator[_Entry]:
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):
                status = path.lstat()
                if path.suffix == SUFFIX:
                    yield _Entry(path, status.st_size, 0, max(status.st_atime, status.st_mtime))
                elif path.suffix == PART_SUFFIX and (found := _PART_NAME.fullmatch(path.stem)):
                    yield _Entry(path, int(found[1]), max(0, int(found[1]) - status.st_size), status.st_mtime)

    @contextlib.contextmanager
    def _locked(self, file: WantedFile, stop: threading.Event) -> Iterator[None]:
        """Hold the lock for making room. Raises ModelError if `stop` is set, or after LOCK_TIMEOUT_S."""
        deadline = time.monotonic() + LOCK_TIMEOUT_S

        def check() -> None:
            if stop.is_set():
                raise stopped_error(file)
            if time.monotonic() > deadline:
                raise ModelError(file, f"another process holds {self.folder / 'lock'} for too long", is_temporary=True)

        with exclusive_lock(self.folder / "lock", check):
            yield


def remove_unless_used(path: Path) -> bool:
    """Delete a file or a part and its marker, unless it is in use. Return whether it was deleted."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_at(path, descriptor):
            return False
        path.unlink()
        marker_of(path).unlink(missing_ok=True)
    except OSError:  # in use
        return False
    finally:
        os.close(descriptor)
    return True


def _reporter(on_bytes: OnBytes) -> Callable[[WantedFile, int], None]:
    return lambda file, size: on_bytes(size, file.size)
