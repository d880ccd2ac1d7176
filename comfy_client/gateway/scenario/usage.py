"""`GET /shim/usage`: what a caller's jobs cost by day and side."""

from __future__ import annotations

import asyncio
import datetime as dt
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from comfy_client.gateway.scenario.errors import UNAVAILABLE, ShimError, bad_request
from comfy_client.gateway.scenario.models import Side
from comfy_client.gateway.scenario.pagination import Query
from comfy_client.gateway.scenario.record_schemas import DATE
from comfy_client.gateway.scenario.reports import UsageRow, read_usage
from comfy_core.contract import Fault, JsonObject
from comfy_core.error_codes import ErrorCode

DEFAULT_DAYS = 31
MAX_DAYS = 366
YEARS = range(2000, 3000)
USAGE_QUERY: JsonObject = {
    "startDate": {**DATE, "description": f"The first day (UTC). Default: {DEFAULT_DAYS} days up to endDate"},
    "endDate": {**DATE, "description": "The last day (UTC). Default: today"},
}


async def usage(store_file: Path, owner: str | None, query: Query) -> JsonObject:
    """Return the usage of a caller, or of all callers, by day and side, and the totals of these days.

    The newest day is first. Raises ShimError.
    """
    first, last = _period(query, dt.datetime.fromtimestamp(time.time(), dt.UTC).date())
    try:
        rows = await asyncio.to_thread(
            read_usage, store_file, owner, _begin(first), _begin(last + dt.timedelta(days=1))
        )
    except sqlite3.Error as error:
        reason = f"The shim cannot read its totals ({error}). Request fewer days"
        raise ShimError(UNAVAILABLE, reason, code=ErrorCode.INTERNAL) from error
    sums: dict[tuple[str, Side], list[UsageRow]] = defaultdict(list)
    for row in rows:
        sums[row.owner, row.side].append(row)
    return {
        "startDate": first.isoformat(),
        "endDate": last.isoformat(),
        "days": [{"date": row.date, **_amounts([row])} for row in rows],
        "totals": [_amounts(each) for _, each in sorted(sums.items())],
    }


def _amounts(rows: Iterable[UsageRow]) -> JsonObject:
    """Return the sum of the rows of one caller and side."""
    rows = list(rows)
    return {
        "caller": rows[0].owner,
        "side": rows[0].side.value,
        "jobs": sum(row.jobs for row in rows),
        "failed": sum(row.failed for row in rows),
        "seconds": round(sum(row.seconds for row in rows), 3),
        "usd": round(sum(row.usd for row in rows), 6),
        "creativeUnits": round(sum(row.units for row in rows), 2),
    }


def _period(query: Query, today: dt.date) -> tuple[dt.date, dt.date]:
    """Return the first and the last day. Raises ShimError (400)."""
    faults: list[Fault] = []
    last = _day(query, "endDate", today, faults)
    first = _day(query, "startDate", last - dt.timedelta(days=DEFAULT_DAYS - 1), faults)
    if not faults and not 0 <= (last - first).days < MAX_DAYS:
        faults.append(Fault("startDate", f"must be at most {MAX_DAYS - 1} days before endDate, and not after it"))
    if faults:
        raise bad_request(faults)
    return first, last


def _day(query: Query, name: str, default: dt.date, faults: list[Fault]) -> dt.date:
    text = query.get(name, "")
    with suppress(ValueError):
        day = dt.date.fromisoformat(text[:10]) if text else default
        if day.year in YEARS:
            return day
    faults.append(Fault(name, f"must be a day of the years {YEARS[0]} to {YEARS[-1]}, such as 2026-11-29"))
    return default


def _begin(day: dt.date) -> float:
    return dt.datetime.combine(day, dt.time(), dt.UTC).timestamp()
