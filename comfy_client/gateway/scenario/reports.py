"""Totals of the shim's database. Each report has a read-only connection, so it can run in any thread.

A report that takes more than REPORT_TIMEOUT_S is stopped. It never blocks the shim's own writes (WAL mode).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from comfy_client.gateway.scenario.models import Side
from comfy_client.providers.scenario_responses import Status

REPORT_TIMEOUT_S = 5.0
_STEPS_BETWEEN_CHECKS = 10_000
WAITING = (Status.PENDING, Status.QUEUED, Status.WARMING_UP)
"""The statuses of a job that no worker has started."""


@dataclass(frozen=True)
class AssetTotals:
    """The number of assets, and the bytes of their images."""

    count: int = 0
    bytes: int = 0


NO_ASSETS = AssetTotals()


@dataclass(frozen=True)
class StoreTotals:
    """What the database contains now.

    Attributes:
        jobs: the number of jobs by side and status.
        oldest_at: the creation time of the oldest own job that waits for a worker, or None.
    """

    jobs: Mapping[tuple[Side, Status], int] = field(default_factory=dict)
    assets: Mapping[Side, AssetTotals] = field(default_factory=dict)
    oldest_at: float | None = None

    @property
    def waiting(self) -> int:
        """The number of own jobs that wait for a worker."""
        return sum(self.jobs.get((Side.OWN, status), 0) for status in WAITING)


def read_totals(file: Path) -> StoreTotals:
    """Return the totals of the database `file`. Raises sqlite3.Error."""
    with reading(file) as database:
        jobs = database.execute("SELECT side, status, COUNT(*), MIN(created_at) FROM jobs GROUP BY side, status")
        found = [(Side(side), Status(status), count, oldest) for side, status, count, oldest in jobs]
        assets = database.execute("SELECT side, COUNT(*), SUM(bytes) FROM assets GROUP BY side")
        return StoreTotals(
            {(side, status): count for side, status, count, _ in found},
            {Side(side): AssetTotals(count, size) for side, count, size in assets},
            min((oldest for side, status, _, oldest in found if side is Side.OWN and status in WAITING), default=None),
        )


@dataclass(frozen=True)
class UsageRow:
    """The jobs of one caller that one side got on one day (UTC).

    Attributes:
        failed: how many of the jobs failed.
        seconds: how long the own jobs ran.
        usd: what the own jobs cost.
        units: the creative units that Scenario announced for the forwarded jobs.
    """

    date: str
    owner: str
    side: Side
    jobs: int
    failed: int
    seconds: float
    usd: float
    units: float


def read_usage(file: Path, owner: str | None, begin_at: float, end_at: float) -> list[UsageRow]:
    """Return the usage of an owner, or of all, from `begin_at` to before `end_at` (seconds since 1970).

    The newest day is first. Raises sqlite3.Error.
    """
    with reading(file) as database:
        rows = database.execute(
            "SELECT date(created_at, 'unixepoch') AS day, owner, side, COUNT(*), SUM(status = ?1), "
            "TOTAL(execution_s), TOTAL(cost_usd), TOTAL(scenario_units) FROM jobs "
            "WHERE (?2 IS NULL OR owner = ?2) AND created_at >= ?3 AND created_at < ?4 "
            "GROUP BY day, owner, side ORDER BY day DESC, owner, side",
            (Status.FAILURE.value, owner, begin_at, end_at),
        )
        return [UsageRow(day, caller, Side(side), *numbers) for day, caller, side, *numbers in rows]


@contextmanager
def reading(file: Path) -> Iterator[sqlite3.Connection]:
    """Yield a read-only connection whose statements are stopped after REPORT_TIMEOUT_S."""
    give_up_at = time.monotonic() + REPORT_TIMEOUT_S
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=REPORT_TIMEOUT_S)) as database:
        database.set_progress_handler(lambda: time.monotonic() > give_up_at, _STEPS_BETWEEN_CHECKS)
        yield database
