"""Finds jobs for the web page in SQLite, with a read-only connection and outside the event loop's thread."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_client.gateway.scenario.errors import UNAVAILABLE, ShimError, bad_request
from comfy_client.gateway.scenario.filters import Filter
from comfy_client.gateway.scenario.models import ShimJob, Side
from comfy_client.gateway.scenario.pagination import PageQuery, Query, parse_page_query
from comfy_client.gateway.scenario.record_schemas import SIDE, TEXT
from comfy_client.gateway.scenario.reports import reading
from comfy_core.contract import Fault, JsonObject
from comfy_core.error_codes import ErrorCode

MAX_WORDS = 8
"""Words of a search. Each of them is compared with every job."""
MAX_SEARCH_CHARACTERS = 200
SEARCH_PARAMETERS: Mapping[str, JsonObject] = {
    "search": {
        "type": "string",
        "maxLength": MAX_SEARCH_CHARACTERS,
        "description": "Words that are in the prompt, the job's id or the ids of its images",
    },
    "side": SIDE,
    "authorId": {**TEXT, "description": "The id of a caller"},
}
"""The query parameters that the web page's list has in addition to those of `GET /jobs`."""
_COSTS = """SELECT COUNT(execution_s), TOTAL(execution_s), SUM(cost_usd), COALESCE(SUM(side = 'scenario'), 0),
    TOTAL(scenario_units) FROM jobs INDEXED BY jobs_for_page"""
_CONTAINS = "instr(folded(id || ' ' || prompt || ' ' || asset_ids), ?) > 0"
_AMONG = "id IN (SELECT value FROM json_each(?))"


@dataclass(frozen=True)
class JobCosts:
    """The costs of jobs: own jobs that ran with their seconds and US dollars, forwarded jobs and creative units.

    `usd` is None if the cost of no job is known, as with a ComfyUI that is called directly.
    """

    own_jobs: int
    seconds: float
    usd: float | None
    forwarded_jobs: int
    units: float


def parse_search(owner: str | None, query: Query) -> PageQuery:
    """Return the page of jobs that a query requests, of one owner or of all. Raises ShimError (400)."""
    wanted = Filter().where("is_deleted = ?", 0)
    if side := query.get("side", ""):
        if side not in set(Side):
            raise bad_request([Fault("side", f"must be one of {', '.join(Side)}")])
        wanted = wanted.where("side = ?", side)
    text = query.get("search", "")
    words = _folded(text).split()
    if len(text) > MAX_SEARCH_CHARACTERS or len(words) > MAX_WORDS:
        limits = f"at most {MAX_WORDS} words and {MAX_SEARCH_CHARACTERS} characters"
        raise bad_request([Fault("search", f"must have {limits}")])
    for word in words:
        wanted = wanted.where(_CONTAINS, word)
    return parse_page_query(ShimJob, owner, query, only=wanted)


class JobSearch:
    """Searches the jobs of the database `file`, one search at a time. Raises ShimError (503) if that takes too long."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._turn = asyncio.Lock()

    async def ids(self, page: PageQuery) -> list[str]:
        """Return the ids of the first jobs of a page, one more than its size."""
        rows = await self._rows(self.list_sql(page), [*page.wanted.values, page.size + 1])
        return [job_id for (job_id,) in rows]

    @staticmethod
    def list_sql(page: PageQuery) -> str:
        """Return the SQL of a page of ids, with a LIMIT as its last value. It only reads the index `jobs_for_page`."""
        direction = "DESC" if page.is_descending else "ASC"
        return (
            f"SELECT id FROM jobs INDEXED BY jobs_for_page WHERE {page.wanted.text} "  # noqa: S608 - constants
            f"ORDER BY {page.order} {direction}, id {direction} LIMIT ?"
        )

    async def matching(self, wanted: Filter, job_ids: Collection[str]) -> list[str]:
        """Return those of these jobs that match a filter."""
        wanted = wanted.where(_AMONG, json.dumps(list(job_ids)))
        rows = await self._rows(f"SELECT id FROM jobs WHERE {wanted.text}", wanted.values)  # noqa: S608 - as above
        return [job_id for (job_id,) in rows]

    async def owners(self) -> list[str]:
        """Return the owners of all jobs."""
        return [owner for (owner,) in await self._rows("SELECT DISTINCT owner FROM jobs", [])]

    async def costs(self, owner: str | None) -> JobCosts:
        """Return the costs of an owner's jobs, or of all jobs."""
        where, values = ("", []) if owner is None else (" WHERE owner = ?", [owner])
        [row] = await self._rows(_COSTS + where, values)
        return JobCosts(*row)

    async def _rows(self, sql: str, values: Sequence[object]) -> list[Any]:
        async with self._turn:
            try:
                return await asyncio.to_thread(_read, self._file, sql, values)
            except sqlite3.Error as error:
                reason = f"The shim cannot search its jobs ({error}). Search again, with fewer words"
                raise ShimError(UNAVAILABLE, reason, code=ErrorCode.INTERNAL) from error


def _read(file: Path, sql: str, values: Sequence[object]) -> list[Any]:
    with reading(file) as database:
        database.create_function("folded", 1, _folded, deterministic=True)
        return database.execute(sql, values).fetchall()


def _folded(text: str) -> str:
    return text.casefold()
