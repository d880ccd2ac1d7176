"""The database (SQLite) of jobs, assets and uploads. One connection, only used by the event loop's thread.

When a write returns, its data survives a crash of the process. A power failure may lose the last writes, but does not
corrupt the file (WAL mode with `synchronous=NORMAL`).

Every method of an open Store can raise ShimError: 507 if the disk is full or not writable, 500 if the database file is
corrupt.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from comfy_client.gateway.scenario.changes import ChangeLog
from comfy_client.gateway.scenario.columns import FILL_PROMPTS, INDEXES, column_of, fields_of, to_column_value
from comfy_client.gateway.scenario.errors import INTERNAL, ShimError, not_stored
from comfy_client.gateway.scenario.filters import Filter
from comfy_client.gateway.scenario.folder import make_private_folder
from comfy_client.gateway.scenario.models import (
    SHARED_OWNER,
    AssetLink,
    ForwardedCall,
    Phase,
    ShimAsset,
    ShimJob,
    ShimUpload,
    Side,
)
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError

Record = TypeVar("Record", ShimJob, ShimAsset, ShimUpload, AssetLink, ForwardedCall)

_VERSION = 1
_TABLES: Mapping[type, str] = {
    ShimJob: "jobs",
    ShimAsset: "assets",
    ShimUpload: "uploads",
    AssetLink: "links",
    ForwardedCall: "forwarded_calls",
}
_BUSY_TIMEOUT_S = 5.0


class Store:
    """The database in `directory`. Created if it does not exist. Raises ConfigError if it cannot be opened."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "shim.sqlite3"
        self.changes = ChangeLog()
        try:
            make_private_folder(directory)
            self._db = sqlite3.connect(
                self.file, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            [found] = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            if _is_corruption(error):
                raise ConfigError(self._storage_error(error).reason) from error
            raise ConfigError(f"The shim cannot open its database in {directory}: {error}") from error

    def _prepare(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise ConfigError(
                f"{self.file} has database version {version} of a newer shim; this shim reads version {_VERSION}. Use "
                "the newer shim"
            )
        with self._transaction():
            for kind, table in _TABLES.items():
                columns = ", ".join(
                    f"{column_of(each.name)}{' PRIMARY KEY' if each.name == 'id' else ''}" for each in fields(kind)
                )
                self._db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
                self._add_missing_columns(kind, table)
            for index in INDEXES:
                self._db.execute(index)
            if not version:
                self._db.execute(f"PRAGMA user_version = {_VERSION}")

    def _add_missing_columns(self, kind: type, table: str) -> None:
        """Add the columns that a database of an earlier version lacks, with the defaults of their fields."""
        present = {row["name"] for row in self._db.execute(f"PRAGMA table_info({table})")}
        for each in fields(kind):
            if column_of(each.name) not in present:
                default = each.default if each.default_factory is MISSING else each.default_factory()
                self._db.execute(f"ALTER TABLE {table} ADD COLUMN {column_of(each.name)}")
                self._db.execute(f"UPDATE {table} SET {column_of(each.name)} = ?", (to_column_value(default),))  # noqa: S608 - table and column names are constants
        if kind is ShimJob and "prompt" not in present:
            self._db.execute(FILL_PROMPTS)

    def _rows(self, sql: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        """Execute an SQL statement and return all rows. Raises ShimError."""
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise self._storage_error(error) from error

    def _storage_error(self, error: Exception) -> ShimError:
        """Return the ShimError for a failed database operation."""
        if not _is_corruption(error):
            return not_stored(error, self.file)
        return ShimError(
            INTERNAL,
            f"The shim's database {self.file} is damaged ({error}). Stop the shim and restore its folder from a "
            f"backup. Without a backup, `sqlite3 {self.file} .recover | sqlite3 new.sqlite3` saves the readable rows. "
            "To start without jobs and assets, move the file and its -wal and -shm files away",
            code=ErrorCode.INTERNAL,
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._rows("BEGIN IMMEDIATE")
        try:
            yield
            self._rows("COMMIT")
        except BaseException:
            with suppress(ShimError):  # With a full disk, SQLite has already rolled back.
                self._rows("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def add(self, *rows: ShimJob | ShimAsset | ShimUpload | AssetLink | ForwardedCall) -> None:
        """Insert or replace records in one transaction."""
        with self._transaction():
            for row in rows:
                names = [each.name for each in fields(row)]
                columns = ", ".join(column_of(name) for name in names)
                marks = ", ".join("?" * len(names))
                self._rows(
                    f"INSERT OR REPLACE INTO {_TABLES[type(row)]} ({columns}) VALUES ({marks})",  # noqa: S608 - table and column names are constants
                    [to_column_value(getattr(row, name)) for name in names],
                )
        self.changes.note(row.id for row in rows if isinstance(row, ShimJob))

    def job(self, job_id: str, owner: str | None = None) -> ShimJob | None:
        """Return a job or None. With `owner`, only if that owner may see it."""
        job = self._find(ShimJob, job_id, owner)
        return None if job is not None and job.is_deleted and owner is not None else job

    def by_id(self, kind: type[Record], ids: Collection[str]) -> dict[str, Record]:
        """Return the records with these ids by id, of all owners."""
        rows = self._rows(
            f"SELECT * FROM {_TABLES[kind]} WHERE id IN (SELECT value FROM json_each(?))",  # noqa: S608 - as above
            (json.dumps(list(ids)),),
        )
        return {row["id"]: self._read(kind, row) for row in rows}

    def asset(self, asset_id: str, owner: str | None = None) -> ShimAsset | None:
        """Return an asset or None. With `owner`, only if that owner may see it.

        The id of an own asset's copy at Scenario is another id of that own asset.
        """
        own_id = next((link.id for link in self.links_to([asset_id])), asset_id)
        return self._find(ShimAsset, own_id, owner)

    def upload(self, upload_id: str, owner: str | None = None) -> ShimUpload | None:
        """Return an upload or None. With `owner`, only if the upload belongs to that owner."""
        return self._find(ShimUpload, upload_id, owner)

    def _find(self, kind: type[Record], row_id: str, owner: str | None) -> Record | None:
        rows = self._rows(f"SELECT * FROM {_TABLES[kind]} WHERE id = ?", (row_id,))  # noqa: S608 - as above
        may_see = (row for row in rows if owner is None or row["owner"] in (owner, SHARED_OWNER))
        return next((self._read(kind, row) for row in may_see), None)

    def change(self, job: ShimJob, **changes: Any) -> ShimJob:  # noqa: ANN401 - of the row's fields
        """Save `changes` of a job and return the changed job."""
        changed = replace(job, **changes)
        names = list(changes)
        self._rows(
            f"UPDATE jobs SET {', '.join(f'{column_of(name)} = ?' for name in names)} WHERE id = ?",  # noqa: S608 - as above
            [*(to_column_value(changes[name]) for name in names), job.id],
        )
        self.changes.note([job.id])
        return changed

    def unfinished(self) -> list[ShimJob]:
        """Return the jobs that the shim runs and that have not ended, oldest first."""
        rows = self._rows(
            "SELECT * FROM jobs WHERE phase NOT IN (?, ?) ORDER BY created_at",
            (Phase.ENDED.value, Phase.FORWARDED.value),
        )
        return [self._read(ShimJob, row) for row in rows]

    def forwarded(self) -> list[ShimJob]:
        """Return the jobs that Scenario runs."""
        rows = self._rows("SELECT * FROM jobs WHERE phase = ?", (Phase.FORWARDED.value,))
        return [self._read(ShimJob, row) for row in rows]

    def page(self, kind: type[Record], wanted: Filter, *, order: str, is_descending: bool, size: int) -> list[Record]:
        """Return the first `size` rows that match `wanted`, sorted by the column `order` and the id."""
        direction = "DESC" if is_descending else "ASC"
        rows = self._rows(
            f"SELECT * FROM {_TABLES[kind]} WHERE {wanted.text} "  # noqa: S608 - as above
            f"ORDER BY {order} {direction}, id {direction} LIMIT ?",
            [*wanted.values, size],
        )
        return [self._read(kind, row) for row in rows]

    def equal_jobs(self, fingerprint: str, since: float) -> list[ShimJob]:
        """Return the jobs with this request fingerprint created at or after `since`, oldest first."""
        rows = self._rows(
            "SELECT * FROM jobs WHERE fingerprint = ? AND created_at >= ? ORDER BY created_at", (fingerprint, since)
        )
        return [self._read(ShimJob, row) for row in rows]

    def job_of_key(self, owner: str, idempotency_key: str) -> ShimJob | None:
        """Return the job created with an Idempotency-Key, or None."""
        rows = self._rows("SELECT * FROM jobs WHERE owner = ? AND idempotency_key = ?", (owner, idempotency_key))
        return next((self._read(ShimJob, row) for row in rows), None)

    def link(self, asset_id: str) -> AssetLink | None:
        """Return the link of the shim's asset `asset_id` to its copy at Scenario, or None."""
        return self._find(AssetLink, asset_id, None)

    def links(self) -> list[AssetLink]:
        """Return the links whose copy at Scenario has an id, oldest first."""
        rows = self._rows("SELECT * FROM links WHERE scenario_id != '' ORDER BY created_at, id")
        return [self._read(AssetLink, row) for row in rows]

    def own_assets_without_link(self) -> list[str]:
        """Return the ids of all owners' own assets that have no copy at Scenario, oldest first."""
        rows = self._rows(
            "SELECT id FROM assets WHERE side = ? AND id NOT IN (SELECT id FROM links WHERE scenario_id != '') "
            "ORDER BY created_at, id",
            (Side.OWN.value,),
        )
        return [str(row["id"]) for row in rows]

    def links_to(self, scenario_ids: Collection[str]) -> list[AssetLink]:
        """Return the links whose copy at Scenario has one of these ids."""
        rows = self._rows(
            "SELECT * FROM links WHERE scenario_id != '' AND scenario_id IN (SELECT value FROM json_each(?))",
            (json.dumps(sorted(scenario_ids)),),
        )
        return [self._read(AssetLink, row) for row in rows]

    def equal_calls(self, fingerprint: str, since: float) -> list[ForwardedCall]:
        """Return the forwarded calls with this fingerprint that were made at or after `since`, oldest first."""
        rows = self._rows(
            "SELECT * FROM forwarded_calls WHERE fingerprint = ? AND created_at >= ? ORDER BY created_at",
            (fingerprint, since),
        )
        return [self._read(ForwardedCall, row) for row in rows]

    def call_of_key(self, owner: str, idempotency_key: str) -> ForwardedCall | None:
        """Return the forwarded call with an Idempotency-Key, or None."""
        rows = self._rows(
            "SELECT * FROM forwarded_calls WHERE owner = ? AND idempotency_key = ?", (owner, idempotency_key)
        )
        return next((self._read(ForwardedCall, row) for row in rows), None)

    def calls_of(self, job_id: str) -> list[ForwardedCall]:
        """Return the forwarded calls that started a job."""
        rows = self._rows("SELECT * FROM forwarded_calls WHERE job_id = ?", (job_id,))
        return [self._read(ForwardedCall, row) for row in rows]

    def mark_answered(self, job_id: str) -> None:
        """Store that the caller received the response to the forwarded call that started a job."""
        self._rows("UPDATE forwarded_calls SET is_answered = 1 WHERE job_id = ?", (job_id,))

    def delete_call(self, call_id: str) -> None:
        """Delete a forwarded call that Scenario did not accept."""
        self._rows("DELETE FROM forwarded_calls WHERE id = ?", (call_id,))

    def pending_uploads(self, owner: str) -> list[ShimUpload]:
        """Return an owner's uploads in the state `pending`."""
        rows = self._rows("SELECT * FROM uploads WHERE owner = ? AND state = 'pending'", (owner,))
        return [self._read(ShimUpload, row) for row in rows]

    def stale_uploads(self, before: float) -> list[ShimUpload]:
        """Return all owners' uncompleted uploads that were created before `before`."""
        rows = self._rows(
            "SELECT * FROM uploads WHERE state IN ('pending', 'validating') AND created_at < ?", (before,)
        )
        return [self._read(ShimUpload, row) for row in rows]

    def delete_assets(self, asset_ids: Sequence[str]) -> None:
        """Delete assets and their links from the database. Their image files are not deleted."""
        job_ids = [asset.job_id for asset in self.by_id(ShimAsset, asset_ids).values() if asset.job_id]
        with self._transaction():
            for each in asset_ids:
                self._rows("DELETE FROM assets WHERE id = ?", (each,))
                self._rows("DELETE FROM links WHERE id = ?", (each,))
        self.changes.note(job_ids)

    def asset_of(self, sha256: str, owner: str) -> str:
        """Return the id of an asset of the owner with this image, or an empty text."""
        rows = self._rows("SELECT id FROM assets WHERE sha256 = ? AND owner = ? LIMIT 1", (sha256, owner))
        return next((str(row["id"]) for row in rows), "")

    def is_used(self, sha256: str) -> bool:
        """Return whether an asset or an unfinished job uses an image."""
        [found] = self._rows(
            "SELECT EXISTS (SELECT 1 FROM assets WHERE sha256 = ?) "
            "OR EXISTS (SELECT 1 FROM jobs WHERE picture = ? AND phase != ?)",
            (sha256, sha256, Phase.ENDED.value),
        )
        return bool(found[0])

    def _read(self, kind: type[Record], row: sqlite3.Row) -> Record:
        try:
            return kind(**fields_of(dict(row)))
        except (ValueError, TypeError) as error:
            raise self._storage_error(sqlite3.DatabaseError(f"row {row['id']!r} cannot be read")) from error


def _is_corruption(error: Exception) -> bool:
    """Return whether an error means that the database file is corrupt.

    An OperationalError without these texts comes from the OS, such as a full disk or a lock.
    """
    if isinstance(error, sqlite3.OperationalError):
        return any(sign in str(error) for sign in ("malformed", "UTF-8", "no such"))
    return isinstance(error, sqlite3.DatabaseError)
