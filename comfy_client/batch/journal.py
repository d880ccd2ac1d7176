"""What was sent, made and uploaded, in a file that survives a kill: one JSON object a line, on the disk when it counts.

`intent` is written before a job is sent, `sent` with its id behind it. So an intent without an id means that a job may
run that nobody knows: it is not sent again unasked, since that might be paid twice.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from comfy_core.contract import JsonObject
from comfy_core.errors import ConfigError

INTENT, UNSENT, SENT, MADE, FAILED, UPLOADED = "intent", "unsent", "sent", "made", "failed", "uploaded"


@dataclass
class JournalEntry:
    """What is known of one digest.

    Attributes:
        state: the last event that counts; `uploaded` is apart.
        job_id: of the job that runs, or ran.
        made: what was made: file, sha256, seed, and so on.
        urls: where it was uploaded to.
    """

    state: str = ""
    job_id: str = ""
    made: JsonObject = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)

    @property
    def may_run(self) -> bool:
        """Whether a job was sent, or not, and nobody knows."""
        return self.state == INTENT


def _lock(file: IO[bytes]) -> None:
    """Keep other processes out until the file is closed. Raises BlockingIOError. Windows has no such lock."""
    try:
        import fcntl  # noqa: PLC0415 - POSIX alone has it
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Journal:
    """The file, read at the start and written line by line. Safe to use from several threads, of one process."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            _lock(self._file)
            self._file.seek(0)
            whole = self._file.read()
            end = whole.rfind(b"\n") + 1
            self._file.truncate(end)  # a line that a kill cut off was not on the disk when it would have counted
        except BlockingIOError:
            self._file.close()
            raise ConfigError(f"Another run uses {path.parent}: wait for it, or end it") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be used: {error.strerror}. --out names another folder") from error
        self.entries = _entries(whole[:end])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def entry(self, digest: str) -> JournalEntry:
        """Return what is known of a digest."""
        return self.entries.get(digest, JournalEntry())

    def note(self, event: str, digest: str, **facts: object) -> None:
        """Write an event; it is on the disk when this returns. Raises OSError, and then it was not written."""
        told = {"at": round(self._clock(), 3), "event": event, "digest": digest, **facts}
        with self._lock:
            self._file.write(json.dumps(told, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            _apply(self.entries, told)


def read_entries(path: Path) -> dict[str, JournalEntry]:
    """Return what a journal knows of each digest, without keeping others from it. A file that is missing is empty."""
    try:
        whole = path.read_bytes()
    except OSError:
        return {}
    return _entries(whole[: whole.rfind(b"\n") + 1])


def _entries(lines: bytes) -> dict[str, JournalEntry]:
    entries: dict[str, JournalEntry] = {}
    for line in lines.splitlines():
        _apply(entries, json.loads(line))
    return entries


def _apply(entries: dict[str, JournalEntry], told: JsonObject) -> None:
    entry = entries.setdefault(told["digest"], JournalEntry())
    match told:
        case {"event": "uploaded", "to": str(place), "url": str(url)}:
            entry.urls[place] = url
        case {"event": "sent", "job_id": str(job_id)}:
            entry.state, entry.job_id = SENT, job_id
        case {"event": "made", **facts}:
            entry.state = MADE
            entry.made = {name: value for name, value in facts.items() if name not in ("at", "digest")}
        case {"event": str(event)}:
            entry.state = event
