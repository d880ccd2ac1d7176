"""The command `cost`: sums the costs in the log of jobs."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime

from comfy_client.cli.call import JSON, Call, Command
from comfy_client.cli.flags import Flag
from comfy_client.cli.tables import Column, table_lines
from comfy_client.job_log import JOB_LOG, JobLog, LoggedJob, job_log_from_env
from comfy_core.contract import JsonObject
from comfy_core.errors import ConfigError
from comfy_core.workflows import Workflow

_UNITS_S = {"h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}


def parse_since(text: str) -> float:
    """Return seconds since 1970. `text` is a local date or time in ISO 8601, or an age such as 12h, 7d or 4w.

    Raises argparse.ArgumentTypeError.
    """
    if age := re.fullmatch(r"(\d{1,4})([hdw])", text):
        return time.time() - int(age[1]) * _UNITS_S[age[2]]
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        problem = f"must be a date such as 2026-11-01, or an age such as 12h or 7d, not {text!r}"
        raise argparse.ArgumentTypeError(problem) from None


SINCE = Flag(
    ("--since",),
    "Only jobs submitted since a date (2026-11-01), or in the last hours, days or weeks (12h, 7d, 4w).",
    "DATE|AGE",
    {"type": parse_since},
)


def iso_time(seconds: float) -> str:
    """Return seconds since 1970 as local time in ISO 8601."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def cost_object(jobs: Sequence[LoggedJob]) -> JsonObject:
    """Return the number of jobs, the sum of their costs in US dollars, and both for each place."""
    places = dict.fromkeys(job.place for job in jobs)
    return {
        **_sums(jobs),
        "places": [{"place": place, **_sums([job for job in jobs if job.place == place])} for place in places],
    }


def _sums(jobs: Sequence[LoggedJob]) -> JsonObject:
    costs = [job.cost for job in jobs if job.cost is not None]
    return {"jobs": len(jobs), "cost": round(sum(costs), 9), "jobs_without_cost": len(jobs) - len(costs)}


def _cells(name: str, sums: JsonObject) -> tuple[str, ...]:
    jobs = "1 job" if sums["jobs"] == 1 else f"{sums['jobs']} jobs"
    without = f"{sums['jobs_without_cost']} without a cost" if sums["jobs_without_cost"] else ""
    return name, f"${sums['cost']:.4f}", jobs, without


def required_log(environment: Mapping[str, str]) -> JobLog:
    """Return the log that the environment selects. Raises ConfigError if there is none."""
    log = job_log_from_env(environment)
    if log is None:
        raise ConfigError(
            f"There is no log of jobs: {JOB_LOG.name} is off, or HOME is not set. Set {JOB_LOG.name} to a path"
        )
    return log


def _cost(call: Call) -> int:
    log = required_log(call.environment)
    since = call.options.since
    try:
        jobs = log.jobs(since or 0.0)
    finally:
        log.close()
    sums = cost_object(jobs)
    begin = None if since is None else iso_time(since)
    value = {"since": begin, **sums, "log": str(log.path)}
    rows = [_cells(each["place"] or "unknown place", each) for each in sums["places"]]
    rows.append(_cells(f"since {begin}" if begin else "in all", sums))
    columns = (Column("PLACE"), Column("COST", is_right=True), Column("JOBS", is_right=True), Column())
    call.screen.show(value, *table_lines(call.screen, columns, rows))
    return 0


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the command `cost`."""
    return (Command("cost", [SINCE, JSON], _cost),)
