"""The log of jobs: a SQLite file with one row for each job that this machine submitted or waited for.

A row has the job's id, provider, state, error, cost, inputs without image data, and the paths and hashes of its saved
files. It has no key and no URL with a query. Several processes may write the file at a time. A log that cannot be
written never fails a job: the first failed write logs a warning. A log that cannot be read raises ConfigError.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from comfy_client.providers.interface import JobState
from comfy_client.user_folders import state_folder
from comfy_core.contract import ErrorReport, JsonObject
from comfy_core.environment import Variable
from comfy_core.errors import ConfigError

JOB_LOG = Variable(
    "COMFY_CLIENT_JOB_LOG",
    str,
    "Path of the log of jobs that `comfy-client` writes, or `off`. Default: `comfy-client/jobs.sqlite3` in "
    "XDG_STATE_HOME.",
)

MAX_JOBS = 50_000
"""About 50 MB."""
_LOCK_TIMEOUT_S = 5.0
"""How long a write waits for other processes."""
_LOCK_POLL_S = 0.01
_MIGRATIONS = (
    """
    CREATE TABLE jobs (
        job_id TEXT PRIMARY KEY, provider TEXT NOT NULL DEFAULT '', place TEXT NOT NULL DEFAULT '',
        submitted_at REAL NOT NULL, updated_at REAL NOT NULL, state TEXT NOT NULL DEFAULT 'queued',
        workflow TEXT NOT NULL DEFAULT '', inputs TEXT NOT NULL DEFAULT '{}', error_code TEXT NOT NULL DEFAULT '',
        execution_s REAL, gpu TEXT, cost REAL, files TEXT NOT NULL DEFAULT '[]'
    );
    CREATE INDEX jobs_by_time ON jobs (submitted_at);
    """,
    """
    ALTER TABLE jobs ADD COLUMN hashes TEXT NOT NULL DEFAULT '[]';
    ALTER TABLE jobs ADD COLUMN error TEXT NOT NULL DEFAULT '';
    """,
)
"""The scripts that create the current schema. `PRAGMA user_version` is the number of scripts that a file has seen."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoggedJob:
    """A job in the log. Times are seconds since 1970.

    Attributes:
        provider: the value of IMAGE_GENERATION_PROVIDER.
        place: the endpoint or ComfyUI that has the job, as the provider's `str` names it.
        state: the last known state. The job may have continued since.
        inputs: the inputs of the request, or those of the result when there is one, without images and overrides.
        error_code: why the job failed, or why its result could not be read; else empty.
        cost: as GenerationResult.cost, also of a job that ended without a result.
        files: the paths at which the result was saved.
        hashes: the SHA-256 of each of `files` when it was saved, in hex.
        error: the error of a job that ended without a result, with at most `log_tail` as details; else None.
    """

    job_id: str
    provider: str
    place: str
    submitted_at: float
    updated_at: float
    state: JobState
    workflow: str
    inputs: JsonObject = field(repr=False)
    error_code: str
    execution_s: float | None
    gpu: str | None
    cost: float | None
    files: tuple[str, ...]
    hashes: tuple[str, ...] = ()
    error: ErrorReport | None = None

    @property
    def saved_files(self) -> tuple[Path, ...]:
        """The files of the result, if all of them still exist unchanged; else none."""
        paths = tuple(map(Path, self.files))
        is_intact = len(paths) == len(self.hashes) and all(
            sha256_of(path) == sha256 for path, sha256 in zip(paths, self.hashes, strict=True)
        )
        return paths if is_intact else ()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex, or an empty string if it cannot be read or is not a regular file."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


class JobLog:
    """The log in the file `path`, which is created by the first write. Thread-safe.

    When the file is opened, its oldest jobs over `max_jobs` are removed.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time, max_jobs: int = MAX_JOBS) -> None:
        self.path = path
        self._clock = clock
        self._max_jobs = max_jobs
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._has_warned = False

    def __repr__(self) -> str:
        return f"JobLog({str(self.path)!r})"

    def close(self) -> None:
        """Close the file. The next call opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def note(self, job_id: str, **values: object) -> None:
        """Create or change the row of a job. Never raises an error of the log.

        `values` are fields of LoggedJob. None does not replace a value, such as a cost that is known already.
        """
        now = self._clock()
        row = {"updated_at": now} | {name: _column_value(value) for name, value in values.items()}
        columns = ", ".join(row)
        changes = ", ".join(f"{name} = COALESCE(excluded.{name}, {name})" for name in row)
        statement = (
            f"INSERT INTO jobs (job_id, submitted_at, {columns}) VALUES ({', '.join('?' * (len(row) + 2))}) "  # noqa: S608 - the columns are names of fields
            f"ON CONFLICT (job_id) DO UPDATE SET {changes}"
        )
        try:
            with self._lock:
                self._open().execute(statement, [job_id, now, *row.values()])
        except (sqlite3.Error, OSError, ValueError, OverflowError, ConfigError) as error:
            if not self._has_warned:
                self._has_warned = True
                _logger.warning(
                    "The log of jobs %s cannot be written: %s. Jobs are not affected. Set COMFY_CLIENT_JOB_LOG to "
                    "another path, or to off",
                    self.path,
                    error,
                )

    def jobs(self, since: float = 0.0) -> list[LoggedJob]:
        """Return the jobs submitted at or after `since`, in the order in which they were logged.

        Raises ConfigError if the file is unreadable.
        """
        return self._read("submitted_at >= ?", since)

    def job(self, job_id: str) -> LoggedJob | None:
        """Return the job with this id, or None if the log does not have it. Raises ConfigError like `jobs`."""
        return next(iter(self._read("job_id = ?", job_id)), None)

    def _read(self, condition: str, value: object) -> list[LoggedJob]:
        if not self.path.exists():
            return []
        try:
            with self._lock:
                rows = self._open().execute(
                    f"SELECT * FROM jobs WHERE {condition} ORDER BY rowid",  # noqa: S608 - a literal of this class
                    (value,),
                )
                return [_job(row) for row in rows]
        except (sqlite3.Error, OSError, ValueError, OverflowError, TypeError) as error:
            raise ConfigError(
                f"The log of jobs {self.path} cannot be read: {error}. If it is damaged, move it away: a new one is "
                "created"
            ) from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            connection = sqlite3.connect(
                self.path, timeout=_LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Set up a new connection, create the schema and remove old jobs. Raises ConfigError and sqlite3.Error."""
        connection.row_factory = sqlite3.Row
        _use_wal(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")  # two processes may create the file at a time
        [version] = connection.execute("PRAGMA user_version").fetchone()
        if version > len(_MIGRATIONS):
            raise ConfigError(
                f"The log of jobs {self.path} belongs to a newer comfy-client. Install that, or set "
                "COMFY_CLIENT_JOB_LOG to another path"
            )
        for script in _MIGRATIONS[version:]:
            for statement in script.split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
        connection.execute("DELETE FROM jobs WHERE rowid <= (SELECT MAX(rowid) FROM jobs) - ?", (self._max_jobs,))
        connection.execute("COMMIT")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch the file to a write-ahead log. Raises sqlite3.Error.

    SQLite's own timeout does not apply to this switch while another process makes it, or uses the file.
    """
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOCK_POLL_S)
        else:
            return


def _column_value(value: object) -> object:
    return json.dumps(value) if isinstance(value, dict | list | tuple) else value


def _job(row: sqlite3.Row) -> LoggedJob:
    """Return the job of a row. Raises ValueError, OverflowError and TypeError for values that no client has written."""
    values: dict[str, Any] = dict(row)
    for name in ("submitted_at", "updated_at"):
        datetime.fromtimestamp(values[name]).astimezone()
    values["state"] = JobState(values["state"])
    values["inputs"] = dict(json.loads(values["inputs"]))
    values["files"] = tuple(json.loads(values["files"]))
    values["hashes"] = tuple(json.loads(values["hashes"]))
    values["error"] = ErrorReport.from_json(values["error"]) if values["error"] else None
    return LoggedJob(**values)


def job_log_from_env(environment: Mapping[str, str]) -> JobLog | None:
    """Return the log that the environment selects; None if it is switched off, or the user has no folder."""
    match JOB_LOG.read(environment):
        case "":
            state = state_folder(environment)
            return JobLog(state / "jobs.sqlite3") if state else None
        case "off":
            return None
        case path:
            return JobLog(Path(path))
