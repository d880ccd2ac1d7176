"""The lock that limits the shim's folder to one process. The OS releases it if the process is killed."""

from __future__ import annotations

import datetime as dt
import os
import socket
from contextlib import suppress
from pathlib import Path

from comfy_core.errors import ConfigError, missing_extra

LOCK_FILE_NAME = "lock"
HOLDER_FILE_NAME = "lock-holder.txt"
"""File that describes the process with the lock, for error messages. Some systems cannot read a locked file."""


def make_private_folder(directory: Path) -> None:
    """Create a folder that does not exist yet for this user only: it will have prompts and images. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


class FolderLock:
    """Acquires the lock on `directory`. Raises ConfigError if another process has the lock, or locking fails."""

    def __init__(self, directory: Path) -> None:
        self._holder = directory / HOLDER_FILE_NAME
        try:
            import filelock  # noqa: PLC0415 - optional dependency
        except ImportError as error:
            raise missing_extra("The shim", "scenario") from error
        try:
            make_private_folder(directory)
            self._lock = filelock.FileLock(directory / LOCK_FILE_NAME, timeout=0, thread_local=False)
            self._lock.acquire()
        except filelock.Timeout:
            raise ConfigError(
                f"Another server uses the folder {directory}: {self._describe_holder()}. Stop it, or use another "
                "folder (--data, SCENARIO_SHIM_DATA_DIR)"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise ConfigError(f"The shim cannot lock its folder {directory}: {error}") from error
        with suppress(OSError):  # The disk may be full.
            self._holder.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {_now()}\n")

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def _describe_holder(self) -> str:
        try:
            return self._holder.read_text(errors="replace").strip()[:200] or "unknown process"
        except OSError:
            return "unknown process"


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
