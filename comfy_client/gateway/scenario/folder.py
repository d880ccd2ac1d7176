"""The lock on the shim's folder: one process at a time. The system releases it if the process is killed."""

from __future__ import annotations

import datetime as dt
import os
import socket
from contextlib import suppress
from pathlib import Path

from comfy_core.errors import ConfigError, missing_extra

LOCK = "lock"
HOLDER = "lock-holder.txt"
"""Who has the lock, for the error of a second process. The lock itself cannot be read on every system."""


class FolderLock:
    """The lock on `directory`, taken at once. Raises ConfigError if another process has it, or it cannot be made."""

    def __init__(self, directory: Path) -> None:
        self._holder = directory / HOLDER
        try:
            import filelock  # noqa: PLC0415 - of the extra
        except ImportError as error:
            raise missing_extra("The shim", "scenario") from error
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(directory / LOCK, timeout=0, thread_local=False)
            self._lock.acquire()
        except filelock.Timeout:
            raise ConfigError(
                f"Another shim uses the folder {directory}: {self._told_holder()}. Stop that one, or give this one a "
                "folder of its own (--data, SCENARIO_SHIM_DATA_DIR)"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise ConfigError(f"The shim cannot lock its folder {directory}: {error}") from error
        with suppress(OSError):  # a full disk
            self._holder.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {_now()}\n")

    def release(self) -> None:
        """Let another process have the folder."""
        self._lock.release()

    def _told_holder(self) -> str:
        try:
            return self._holder.read_text(errors="replace").strip()[:200] or "a process that does not say its id"
        except OSError:
            return "a process that does not say its id"


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
