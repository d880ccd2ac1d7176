"""The search of the web page in SQLite: filters, pages, who sees what, and what it reads."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfy_client.gateway.scenario.errors import ShimError
from comfy_client.gateway.scenario.models import SHARED_OWNER
from comfy_client.gateway.scenario.page.search import JobSearch, parse_search
from comfy_client.gateway.scenario.pagination import next_page
from comfy_client.gateway.scenario.store import Store
from comfy_client.providers.scenario_responses import Status
from tests.gateway.scenario.page.stored import OWNER, ended_job, forwarded_job

JOBS = (
    ended_job(1, "a red knight", asset_ids=("asset_abc",)),
    ended_job(2, "a blue Ägir", status=Status.FAILURE),
    ended_job(3, "the RED castle", status=Status.IN_PROGRESS),
    forwarded_job(4, "a red sheet", asset_ids=("asset_xyz",)),
    ended_job(5, "a red secret of another", "proj_second"),
    ended_job(6, "deleted red", is_deleted=True),
    forwarded_job(7, "a job that everybody sees", owner=SHARED_OWNER),
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with JOBS."""
    store = Store(tmp_path)
    store.add(*JOBS)
    yield store
    store.close()


def found(store: Store, owner: str | None = OWNER, **query: str) -> list[int]:
    """Return the numbers of the jobs that a query finds, in their order."""
    ids = asyncio.run(JobSearch(store.file).ids(parse_search(owner, query)))
    return [int(each.removeprefix("job_")) for each in ids]


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ({}, [7, 4, 3, 2, 1]),
        ({"search": "red"}, [4, 3, 1]),
        ({"search": "KNIGHT  red"}, [1]),
        ({"search": "ÄGIR"}, [2]),
        ({"search": "100%"}, []),
        ({"search": "job_002"}, [2]),
        ({"search": "asset_xyz"}, [4]),
        ({"status": "failure"}, [2]),
        ({"status": "queued,in-progress"}, [3]),
        ({"side": "scenario"}, [7, 4]),
        ({"side": "own", "search": "red", "status": "success"}, [1]),
        ({"authorId": "proj_second"}, []),
    ],
)
def test_a_query_finds_its_jobs(store: Store, query: dict[str, str], numbers: list[int]) -> None:
    """Newest first, without deleted jobs and those of other callers. Every word must be in prompt or ids."""
    assert found(store, **query) == numbers


def test_an_administrator_finds_the_jobs_of_all_callers(store: Store) -> None:
    """Without an owner all jobs are found, and `authorId` selects one caller."""
    assert found(store, None, search="red") == [5, 4, 3, 1]
    assert found(store, None, authorId="proj_second") == [5]


def test_pages_have_every_job_once(store: Store) -> None:
    """The token of each page leads to the next one, also when a job is added meanwhile."""
    first = found(store, pageSize="2")[:2]
    token = next_page(JOBS[first[-1] - 1], "created_at")
    store.add(ended_job(9, "new"))

    assert first + found(store, pageSize="50", paginationToken=token) == [7, 4, 3, 2, 1]


@pytest.mark.parametrize("query", [{"side": "both"}, {"search": "a " * 9}, {"search": "a" * 201}, {"pageSize": "0"}])
def test_an_invalid_query_is_refused(query: dict[str, str]) -> None:
    """The error (400) names the parameter."""
    with pytest.raises(ShimError, match=next(iter(query))) as info:
        parse_search(OWNER, query)

    assert info.value.status == 400


def test_a_search_reads_only_its_index(store: Store) -> None:
    """The filters and the search use the index `jobs_for_page`, without reading the jobs themselves."""
    page = parse_search(OWNER, {"search": "red", "status": "failure", "side": "own"})
    database = sqlite3.connect(store.file)
    database.create_function("folded", 1, str.casefold, deterministic=True)
    plan = database.execute(f"EXPLAIN QUERY PLAN {JobSearch.list_sql(page)}", [*page.wanted.values, 51]).fetchall()
    database.close()

    assert [row[3] for row in plan if "jobs" in row[3]] == ["SCAN jobs USING COVERING INDEX jobs_for_page"]


def test_an_earlier_database_can_be_searched(tmp_path: Path) -> None:
    """A database without the column `prompt` gets the prompts of its own and forwarded jobs."""
    store = Store(tmp_path)
    store.add(ended_job(1, "a red knight"), forwarded_job(2, "a red sheet"))
    store.close()
    database = sqlite3.connect(store.file, isolation_level=None)
    database.execute("DROP INDEX jobs_for_page")
    database.execute("ALTER TABLE jobs DROP COLUMN prompt")
    database.execute("ALTER TABLE jobs DROP COLUMN is_deleted")
    database.close()

    store = Store(tmp_path)
    assert found(store, search="red") == [2, 1]
    store.close()
