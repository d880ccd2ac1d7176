"""Storage of image files by SHA-256, in a folder or a bucket. Files are deduplicated and never modified."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Protocol

from comfy_core.files import write_atomically
from comfy_core.object_store import Bucket, ObjectStore


class Blobs(Protocol):
    """A storage of image files. All methods block. They raise OSError, or ComfyClientError for a bucket."""

    def put(self, data: bytes, mime_type: str) -> str:
        """Store `data` and return its SHA-256. Idempotent."""
        ...

    def get(self, sha256: str) -> bytes:
        """Return the stored bytes. Raises FileNotFoundError."""
        ...

    def delete(self, sha256: str) -> None:
        """Delete the file if it exists."""
        ...


class FolderBlobs:
    """Stores images in a folder. Writes are atomic."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, data: bytes, mime_type: str) -> str:  # noqa: ARG002 - only buckets need the type
        """Write `data` to a file named by its SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._path(sha256)
        if not path.exists():
            write_atomically(path, data, mode=0o600)
        return sha256

    def get(self, sha256: str) -> bytes:
        """Return the file's bytes."""
        return self._path(sha256).read_bytes()

    def delete(self, sha256: str) -> None:
        """Delete the file if it exists."""
        self._path(sha256).unlink(missing_ok=True)

    def _path(self, sha256: str) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise FileNotFoundError(sha256[:64])
        return self._directory / sha256[:2] / sha256


class BucketBlobs:
    """Stores images in an S3 bucket. Writes are atomic."""

    def __init__(self, bucket: Bucket) -> None:
        self._store = ObjectStore(bucket)

    def put(self, data: bytes, mime_type: str) -> str:
        """Upload `data` under its hash."""
        sha256 = hashlib.sha256(data).hexdigest()
        self._store.put(sha256, data, mime_type)
        return sha256

    def get(self, sha256: str) -> bytes:
        """Download the bytes."""
        return self._store.get(sha256)

    def delete(self, sha256: str) -> None:
        """Delete the file if it exists."""
        self._store.delete(sha256)


def make_blobs(directory: Path, bucket: Bucket | None) -> Blobs:
    """Return the storage of a shim's images: the bucket if there is one, otherwise a subfolder of `directory`."""
    return BucketBlobs(bucket) if bucket else FolderBlobs(directory / "pictures")
