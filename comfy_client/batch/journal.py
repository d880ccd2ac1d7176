"""Crash-safe journal of submitted, generated and uploaded images: one JSON object per line, synced to disk.

`intent` is written before a job is submitted. After the submit, `sent` is written with the job's id, or `unsent` if no
job was created. If the last event is `intent`, a job with an unknown id may be running. The image is then not submitted
again without the user's consent, because it might be paid twice.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from comfy_core.contract import JsonObject
from comfy_core.errors import ConfigError

INTENT, UNSENT, SENT, MADE, FAILED, UPLOADED = "intent", "unsent", "sent", "made", "failed", "uploaded"


@dataclass
class JournalEntry:
    """The recorded state of the image with one digest (see plan.py).

    Attributes:
        state: the last event other than `uploaded`, or an empty string.
        job_id: id of the last job, or an empty string.
        made: data of the image: file, sha256, seed, and so on. Empty if there is no image.
        urls: for each s3:// URL to which the image was uploaded, the URL that serves it.
    """

    state: str = ""
    job_id: str = ""
    made: JsonObject = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)

    @property
    def may_run(self) -> bool:
        """Whether a job with an unknown id may have been submitted."""
        return self.state == INTENT


def _lock_file(file: IO[bytes]) -> None:
    """Lock the file against other processes until it is closed. Raises BlockingIOError. No effect on Windows."""
    try:
        import fcntl  # noqa: PLC0415 - exists only on POSIX
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Journal:
    """The journal file. It is read when opened, and appended to. Thread-safe; used by one process at a time."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            _lock_file(self._file)
            self._file.seek(0)
            content = self._file.read()
            end = content.rfind(b"\n") + 1
            self._file.truncate(end)  # an incomplete last line was never synced
        except BlockingIOError:
            self._file.close()
            raise ConfigError(f"Another run uses {path.parent}: wait for it, or stop it") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be used: {error.strerror}. --out names another folder") from error
        self.entries = _entries(content[:end])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def entry(self, digest: str) -> JournalEntry:
        """Return the entry of a digest, or an empty entry if there is none."""
        return self.entries.get(digest, JournalEntry())

    def note(self, event: str, digest: str, **facts: object) -> None:
        """Append an event and sync it to disk. Raises OSError if it was not written."""
        event_record = {"at": round(self._clock(), 3), "event": event, "digest": digest, **facts}
        with self._lock:
            self._file.write(json.dumps(event_record, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            _apply(self.entries, event_record)


def read_entries(path: Path) -> dict[str, JournalEntry]:
    """Return the entry of each digest in a journal, without locking it. A missing file counts as empty."""
    try:
        content = path.read_bytes()
    except OSError:
        return {}
    return _entries(content[: content.rfind(b"\n") + 1])


def _entries(lines: bytes) -> dict[str, JournalEntry]:
    entries: dict[str, JournalEntry] = {}
    for line in lines.splitlines():
        _apply(entries, json.loads(line))
    return entries


def _apply(entries: dict[str, JournalEntry], event_record: JsonObject) -> None:
    entry = entries.setdefault(event_record["digest"], JournalEntry())
    match event_record:
        case {"event": "uploaded", "to": str(place), "url": str(url)}:
            entry.urls[place] = url
        case {"event": "sent", "job_id": str(job_id)}:
            entry.state, entry.job_id = SENT, job_id
        case {"event": "made", **facts}:
            entry.state = MADE
            entry.made = {name: value for name, value in facts.items() if name not in ("at", "digest")}
        case {"event": str(event)}:
            entry.state = event
