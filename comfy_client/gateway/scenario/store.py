"""Jobs, assets and uploads in SQLite. One connection, used from one thread: the event loop's.

A write is durable against a kill of the process when its call returns (WAL with `synchronous=NORMAL`: a loss of power
may cost the last moments, but never the file). Every read for a caller names the owner.

Every call raises ShimError: 507 if the disk is full or cannot be written, 500 if the database file is damaged.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from comfy_client.gateway.scenario.errors import INTERNAL, ShimError, not_stored
from comfy_client.gateway.scenario.models import AssetRow, JobRow, Phase, Status, UploadRow
from comfy_core.contract import ErrorCode
from comfy_core.errors import ConfigError

Kept = TypeVar("Kept", JobRow, AssetRow, UploadRow)

_VERSION = 1
_TABLES: Mapping[type, str] = {JobRow: "jobs", AssetRow: "assets", UploadRow: "uploads"}
_INDEXES = (
    "CREATE INDEX IF NOT EXISTS jobs_by_owner ON jobs (owner, created_at, id)",
    "CREATE INDEX IF NOT EXISTS jobs_by_fingerprint ON jobs (fingerprint, created_at)",
    "CREATE INDEX IF NOT EXISTS jobs_by_key ON jobs (owner, idempotency_key) WHERE idempotency_key != ''",
    "CREATE INDEX IF NOT EXISTS jobs_by_phase ON jobs (phase)",
    "CREATE INDEX IF NOT EXISTS assets_by_owner ON assets (owner, created_at, id)",
    "CREATE INDEX IF NOT EXISTS assets_by_sha256 ON assets (sha256)",
    "CREATE INDEX IF NOT EXISTS uploads_by_owner ON uploads (owner, state)",
)
_JSON = (dict, list, tuple)
_BUSY_S = 5.0


@dataclass(frozen=True)
class Filter:
    """Which rows of a list are wanted: pairs of a condition in SQL and its values."""

    conditions: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def where(self, condition: str, *values: object) -> Filter:
        """Return the filter with one more condition."""
        return Filter((*self.conditions, (condition, values)))


class Store:
    """The database in `directory`, created if it does not exist. Raises ConfigError if it cannot be used."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "shim.sqlite3"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.file, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            [found] = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            if _is_damage(error):
                raise ConfigError(self._told(error).reason) from error
            raise ConfigError(f"The shim's data cannot be kept in {directory}: {error}") from error

    def _prepare(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise ConfigError(
                f"{self.file} was written by a newer shim (its version is {version}, this one reads {_VERSION}): use "
                "that shim"
            )
        with self._transaction():
            for kind, table in _TABLES.items():
                columns = ", ".join(
                    f"{each.name}{' PRIMARY KEY' if each.name == 'id' else ''}" for each in fields(kind)
                )
                self._db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
            for index in _INDEXES:
                self._db.execute(index)
            if not version:
                self._db.execute(f"PRAGMA user_version = {_VERSION}")

    def _rows(self, sql: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        """Return all rows of a statement. Raises ShimError."""
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise self._told(error) from error

    def _told(self, error: Exception) -> ShimError:
        """Return the error for a failed call."""
        if not _is_damage(error):
            return not_stored(error, self.file)
        return ShimError(
            INTERNAL,
            f"The shim's database {self.file} is damaged ({error}). Stop the shim and restore its folder from a "
            f"backup. Without one: `sqlite3 {self.file} .recover | sqlite3 new.sqlite3` saves what can be read, or "
            "move the file and its -wal and -shm away to begin without jobs and assets",
            code=ErrorCode.INTERNAL,
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._rows("BEGIN IMMEDIATE")
        try:
            yield
            self._rows("COMMIT")
        except BaseException:
            with suppress(ShimError):  # a full disk has rolled back already
                self._rows("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def add(self, *rows: JobRow | AssetRow | UploadRow) -> None:
        """Keep new rows, or the new state of rows: all or none."""
        with self._transaction():
            for row in rows:
                names = [each.name for each in fields(row)]
                marks = ", ".join("?" * len(names))
                self._rows(
                    f"INSERT OR REPLACE INTO {_TABLES[type(row)]} ({', '.join(names)}) VALUES ({marks})",  # noqa: S608 - names of our own
                    [_kept(getattr(row, name)) for name in names],
                )

    def job(self, job_id: str, owner: str | None = None) -> JobRow | None:
        """Return a job; of `owner`, where one is named."""
        return self._one(JobRow, job_id, owner)

    def asset(self, asset_id: str, owner: str | None = None) -> AssetRow | None:
        """Return an asset; of `owner`, where one is named."""
        return self._one(AssetRow, asset_id, owner)

    def upload(self, upload_id: str, owner: str | None = None) -> UploadRow | None:
        """Return an upload; of `owner`, where one is named."""
        return self._one(UploadRow, upload_id, owner)

    def _one(self, kind: type[Kept], row_id: str, owner: str | None) -> Kept | None:
        rows = self._rows(f"SELECT * FROM {_TABLES[kind]} WHERE id = ?", (row_id,))  # noqa: S608 - as above
        return next((self._read(kind, row) for row in rows if owner is None or row["owner"] == owner), None)

    def change(self, job: JobRow, **changes: Any) -> JobRow:  # noqa: ANN401 - of the row's fields
        """Return the job with `changes`, which are kept."""
        changed = replace(job, **changes)
        names = list(changes)
        self._rows(
            f"UPDATE jobs SET {', '.join(f'{name} = ?' for name in names)} WHERE id = ?",  # noqa: S608 - as above
            [*(_kept(changes[name]) for name in names), job.id],
        )
        return changed

    def unfinished(self) -> list[JobRow]:
        """Return the jobs that a restart goes on with, the oldest first."""
        rows = self._rows("SELECT * FROM jobs WHERE phase != ? ORDER BY created_at", (Phase.ENDED.value,))
        return [self._read(JobRow, row) for row in rows]

    def page(self, kind: type[Kept], wanted: Filter, *, order: str, is_descending: bool, size: int) -> list[Kept]:
        """Return the first `size` rows that are wanted, by `order`, a column of our own, and the id."""
        direction = "DESC" if is_descending else "ASC"
        rows = self._rows(
            f"SELECT * FROM {_TABLES[kind]} WHERE {' AND '.join(text for text, _ in wanted.conditions)} "  # noqa: S608 - as above
            f"ORDER BY {order} {direction}, id {direction} LIMIT ?",
            [*(value for _, values in wanted.conditions for value in values), size],
        )
        return [self._read(kind, row) for row in rows]

    def equal_jobs(self, fingerprint: str, since: float) -> list[JobRow]:
        """Return the jobs of equal calls since then, the oldest first."""
        rows = self._rows(
            "SELECT * FROM jobs WHERE fingerprint = ? AND created_at >= ? ORDER BY created_at", (fingerprint, since)
        )
        return [self._read(JobRow, row) for row in rows]

    def job_of_key(self, owner: str, idempotency_key: str) -> JobRow | None:
        """Return the job that an owner's Idempotency-Key made."""
        rows = self._rows("SELECT * FROM jobs WHERE owner = ? AND idempotency_key = ?", (owner, idempotency_key))
        return next((self._read(JobRow, row) for row in rows), None)

    def pending_uploads(self, owner: str) -> list[UploadRow]:
        """Return an owner's uploads that are not completed yet."""
        rows = self._rows("SELECT * FROM uploads WHERE owner = ? AND state = 'pending'", (owner,))
        return [self._read(UploadRow, row) for row in rows]

    def stale_uploads(self, before: float) -> list[UploadRow]:
        """Return everybody's uploads that began before then and are not completed yet."""
        rows = self._rows(
            "SELECT * FROM uploads WHERE state IN ('pending', 'validating') AND created_at < ?", (before,)
        )
        return [self._read(UploadRow, row) for row in rows]

    def delete_assets(self, asset_ids: Sequence[str]) -> None:
        """Forget assets; their pictures are the blobs' matter."""
        with self._transaction():
            for each in asset_ids:
                self._rows("DELETE FROM assets WHERE id = ?", (each,))

    def is_used(self, sha256: str) -> bool:
        """Return whether an asset, or a job that has not ended, needs that picture."""
        [found] = self._rows(
            "SELECT EXISTS (SELECT 1 FROM assets WHERE sha256 = ?) "
            "OR EXISTS (SELECT 1 FROM jobs WHERE picture = ? AND phase != ?)",
            (sha256, sha256, Phase.ENDED.value),
        )
        return bool(found[0])

    def spent(self, owner: str) -> tuple[int, float]:
        """Return how many of an owner's jobs ran, and for how many seconds in all."""
        [found] = self._rows(
            "SELECT COUNT(*), COALESCE(SUM(execution_s), 0) FROM jobs WHERE owner = ? AND execution_s IS NOT NULL",
            (owner,),
        )
        return int(found[0]), float(found[1])

    def _read(self, kind: type[Kept], row: sqlite3.Row) -> Kept:
        try:
            return kind(**{name: _READ.get(name, lambda kept: kept)(row[name]) for name in row.keys()})  # noqa: SIM118 - a row's iterator gives values
        except (ValueError, TypeError) as error:
            raise self._told(sqlite3.DatabaseError(f"row {row['id']!r} cannot be read")) from error


def _is_damage(error: Exception) -> bool:
    """Return whether the file's content is at fault. An OperationalError is else the system's: a full disk, a lock."""
    if isinstance(error, sqlite3.OperationalError):
        return any(sign in str(error) for sign in ("malformed", "UTF-8", "no such"))
    return isinstance(error, sqlite3.DatabaseError)


def _kept(value: object) -> object:
    if isinstance(value, _JSON):
        return json.dumps(value, ensure_ascii=False)
    return value.value if isinstance(value, Phase | Status) else value


def _texts(kept: str) -> tuple[Any, ...]:
    return tuple(json.loads(kept))


_READ: Mapping[str, Any] = {
    "asked": json.loads,
    "input": json.loads,
    "about": json.loads,
    "options": json.loads,
    "notes": _texts,
    "asset_ids": _texts,
    "tags": _texts,
    "history": lambda kept: tuple((at, status) for at, status in json.loads(kept)),
    "phase": Phase,
    "status": Status,
    "is_hidden": bool,
    "is_cancel_wanted": bool,
    "is_answered": bool,
}
"""How a column is read that SQLite keeps as text or number."""
