"""`GET /shim/usage`: the costs of both sides by day."""

from __future__ import annotations

import asyncio
import datetime as dt
from contextlib import closing
from pathlib import Path

import pytest

from comfy_client.gateway.scenario.errors import ShimError
from comfy_client.gateway.scenario.models import ShimJob, Side
from comfy_client.gateway.scenario.store import Store
from comfy_client.gateway.scenario.usage import usage
from comfy_client.providers.scenario_responses import Status
from comfy_core.contract import JsonObject


def job(job_id: str, day: str, owner: str = "proj_a", **changes: object) -> ShimJob:
    """Return a job that was created at noon of a day."""
    at = dt.datetime.fromisoformat(f"{day}T12:00:00+00:00").timestamp()
    fixed = {"route": "", "job_type": "", "task": "", "model_id": "", "scenario_request": {}, "worker_request": {}}
    return ShimJob(id=job_id, owner=owner, created_at=at, updated_at=at, **{**fixed, **changes})  # type: ignore[arg-type]


def of_period(folder: Path, **query: str) -> JsonObject:
    """Return the usage of the caller proj_a."""
    return asyncio.run(usage(folder / "shim.sqlite3", "proj_a", query))


def test_the_usage_has_each_day_and_side_of_the_caller(tmp_path: Path) -> None:
    """Days are UTC and newest first; jobs of other callers and days do not count, except for an administrator."""
    with closing(Store(tmp_path)) as store:
        store.add(
            job("1", "2026-11-01", execution_s=1.5, cost_usd=0.02),
            job("2", "2026-11-01", status=Status.FAILURE),
            job("3", "2026-11-01", side=Side.SCENARIO, scenario_units=5.0),
            job("4", "2026-11-02", execution_s=2.0, cost_usd=0.04),
            job("5", "2026-11-02", owner="proj_b", cost_usd=9.0),
            job("6", "2026-10-31", cost_usd=9.0),
            job("7", "2026-11-03", cost_usd=9.0),
        )
        found = of_period(tmp_path, startDate="2026-11-01", endDate="2026-11-02T23:00:00Z")
        of_all = asyncio.run(usage(store.file, None, {"startDate": "2026-11-01", "endDate": "2026-11-02"}))
    own, forwarded = {"caller": "proj_a", "side": "own"}, {"caller": "proj_a", "side": "scenario"}
    first = {**own, "jobs": 2, "failed": 1, "seconds": 1.5, "usd": 0.02, "creativeUnits": 0}
    there = {**forwarded, "jobs": 1, "failed": 0, "seconds": 0, "usd": 0, "creativeUnits": 5}

    assert [(each["caller"], each["side"], each["usd"]) for each in of_all["totals"]] == [
        ("proj_a", "own", 0.06),
        ("proj_a", "scenario", 0),
        ("proj_b", "own", 9),
    ]
    assert found == {
        "startDate": "2026-11-01",
        "endDate": "2026-11-02",
        "days": [
            {"date": "2026-11-02", **own, "jobs": 1, "failed": 0, "seconds": 2, "usd": 0.04, "creativeUnits": 0},
            {"date": "2026-11-01", **first},
            {"date": "2026-11-01", **there},
        ],
        "totals": [{**own, "jobs": 3, "failed": 1, "seconds": 3.5, "usd": 0.06, "creativeUnits": 0}, there],
    }


@pytest.mark.parametrize(
    "query",
    [
        {"startDate": "yesterday"},
        {"startDate": "2026-11-02", "endDate": "2026-11-01"},
        {"startDate": "2024-01-01", "endDate": "2026-01-01"},
        {"endDate": "0001-01-01"},
    ],
    ids=str,
)
def test_an_invalid_period_is_rejected(tmp_path: Path, query: dict[str, str]) -> None:
    """A text that is no day, an end before the start, and more than 366 days are 400."""
    with closing(Store(tmp_path)), pytest.raises(ShimError) as raised:
        of_period(tmp_path, **query)
    assert raised.value.status == 400
