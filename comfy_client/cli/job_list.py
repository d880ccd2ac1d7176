"""The command `jobs`: lists the log of jobs, and updates the states of unfinished jobs from the provider."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from comfy_client.cli.call import JSON, Call, Command
from comfy_client.cli.costs import SINCE, iso_time, required_log
from comfy_client.cli.flags import Flag, parse_count
from comfy_client.cli.screen import Screen
from comfy_client.cli.tables import BAD, DOUBTFUL, GOOD, MIN_PROSE_COLUMNS, Column, table_lines
from comfy_client.cli.terminal import console_for
from comfy_client.job import PROPAGATION_S
from comfy_client.job_log import JobLog, LoggedJob
from comfy_client.providers.interface import JobState
from comfy_core.contract import JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError, ConfigError, JobError

if TYPE_CHECKING:
    from comfy_client.client import Client
    from comfy_core.workflows import Workflow

_MAX_REFRESHED = 16
"""How many unfinished jobs are updated. The provider's response for a finished job has its images."""
_REFRESH_THREADS = 8
_REFRESH_S = 10.0
"""How long to wait for the provider."""
_LIMIT_DEFAULT = 20
_SHORT_PROMPT = 60

_FLAGS = (
    SINCE,
    Flag(("--state",), "Only jobs in this state.", "|".join(JobState), {"choices": [each.value for each in JobState]}),
    Flag(
        ("--limit",),
        f"The newest jobs, at most this many. [default {_LIMIT_DEFAULT}]",
        "N",
        {"type": parse_count, "default": _LIMIT_DEFAULT},
    ),
    Flag(
        ("--no-refresh",),
        f"Send no request, and show the logged states. Default: update the newest {_MAX_REFRESHED} unfinished jobs.",
        settings={"action": "store_true"},
    ),
    JSON,
)


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the command `jobs`."""
    return (Command("jobs", _FLAGS, _jobs),)


def _jobs(call: Call) -> int:
    log = required_log(call.environment)
    since = call.options.since or 0.0
    try:
        note = "" if call.options.no_refresh else _refresh(call, log, log.jobs(since))
        jobs = [job for job in reversed(log.jobs(since)) if call.options.state in (None, job.state.value)]
    finally:
        log.close()
    shown = jobs[: call.options.limit]
    value = {"jobs": list(map(job_object, shown)), "more": len(jobs) - len(shown), "note": note, "log": str(log.path)}
    call.screen.show(value, *job_lines(call.screen, shown))
    for line in (note, f"{value['more']} older jobs; see --limit" if value["more"] else ""):
        if line:
            call.screen.note(line)
    return 0


def _refresh(call: Call, log: JobLog, jobs: Sequence[LoggedJob]) -> str:
    """Update the unfinished jobs of the selected provider. Return what was not updated, as a sentence, or nothing."""
    unfinished = [job for job in jobs if not job.state.is_final]
    if not unfinished:
        return ""
    try:
        client = call.client()
    except ConfigError as error:
        return f"the states are those of the log: {error}"
    with client:
        own = [job for job in unfinished if job.place == str(client.provider)][-_MAX_REFRESHED:]
        errors = _refresh_all(client, log, own)
    if errors:
        return f"{len(errors)} of {len(own)} states are those of the log: {errors[0]}"
    if others := len(unfinished) - len(own):
        return f"{others} states are those of the log: older jobs, or jobs of another provider than {client.provider}"
    return ""


def _refresh_all(client: Client, log: JobLog, jobs: Sequence[LoggedJob]) -> list[str]:
    """Request the status of each job, at most for _REFRESH_S, and log it. Return what went wrong, for each failure.

    The threads are daemons, so that a provider that does not respond does not keep the command from exiting.
    """
    todo: queue.SimpleQueue[LoggedJob] = queue.SimpleQueue()
    problems: queue.SimpleQueue[str] = queue.SimpleQueue()
    for job in reversed(jobs):
        todo.put(job)

    def work() -> None:
        with suppress(queue.Empty):
            while True:
                problems.put(_refresh_one(client, log, todo.get_nowait()))

    for _ in range(min(_REFRESH_THREADS, len(jobs))):
        threading.Thread(target=work, name="refresh", daemon=True).start()
    deadline = time.monotonic() + _REFRESH_S
    found: list[str] = []
    with suppress(queue.Empty):
        while len(found) < len(jobs):
            found.append(problems.get(timeout=max(0.0, deadline - time.monotonic())))
    late = [f"no response within {_REFRESH_S:g} s"] * (len(jobs) - len(found))
    return [problem for problem in found + late if problem]


def _refresh_one(client: Client, log: JobLog, job: LoggedJob) -> str:
    """Log the status of a job; the client does that. Return the problem, or an empty string."""
    try:
        client.provider.status(job.job_id)
    except JobError as error:
        is_new = time.time() - job.submitted_at < PROPAGATION_S
        if error.code is ErrorCode.JOB_EXPIRED and not is_new:
            log.note(job.job_id, state=JobState.EXPIRED.value, error_code=error.code.value)
            return ""
        return str(error)
    except ComfyClientError as error:
        return str(error)
    return ""


def job_object(job: LoggedJob) -> JsonObject:
    """Return a job of the log as JSON."""
    return {
        "job_id": job.job_id,
        "provider": job.provider,
        "place": job.place,
        "submitted_at": iso_time(job.submitted_at),
        "updated_at": iso_time(job.updated_at),
        "state": job.state.value,
        "workflow": job.workflow,
        "inputs": job.inputs,
        "error": {"code": job.error_code, "message": job.error.message if job.error else ""}
        if job.error_code
        else None,
        "execution_s": job.execution_s,
        "gpu": job.gpu,
        "cost": job.cost,
        "files": list(job.files),
    }


def job_lines(screen: Screen, jobs: Sequence[LoggedJob]) -> list[str]:
    """Return the lines of a table of jobs. On a narrow terminal, columns are left out until the others fit."""
    if not jobs:
        return ["no jobs"]
    cells = {column: [_CELLS[column](job) for job in jobs] for column in _CELLS}
    shown = list(_CELLS)
    if screen.is_terminal:
        left = console_for(screen.out).width - MIN_PROSE_COLUMNS
        widths = {name: max(len(name), *map(len, cells[name])) + 2 for name in shown if name != _PROSE}
        for name in _LEFT_OUT_FIRST:
            if sum(widths.values()) > left:
                widths.pop(name, None)
                shown.remove(name)
    columns = [Column(name, name == "COST", name == _PROSE, _STYLES) for name in shown]
    return table_lines(screen, columns, list(zip(*(cells[name] for name in shown), strict=True)))


def _time(job: LoggedJob) -> str:
    return datetime.fromtimestamp(job.submitted_at).astimezone().strftime("%Y-%m-%d %H:%M")


def _prompt(job: LoggedJob) -> str:
    text = " ".join(str(job.inputs.get("prompt", "")).split())
    return text if len(text) <= _SHORT_PROMPT else f"{text[: _SHORT_PROMPT - 3]}..."


def _files(job: LoggedJob) -> str:
    """Return the first of the paths, relative to the current folder if it is in it, and the number of the others."""
    if not job.files:
        return ""
    path = Path(job.files[0])
    with suppress(ValueError, OSError):
        path = path.relative_to(Path.cwd())
    return f"{path} +{len(job.files) - 1}" if len(job.files) > 1 else os.fspath(path)


_CELLS: Mapping[str, Callable[[LoggedJob], str]] = {
    "ID": lambda job: job.job_id,
    "TIME": _time,
    "STATE": lambda job: job.state.value,
    "COST": lambda job: "" if job.cost is None else f"${job.cost:.4f}",
    "PROMPT": _prompt,
    "FILES": _files,
    "ERROR": lambda job: job.error_code,
    "WORKFLOW": lambda job: job.workflow,
}
_PROSE = "PROMPT"
_LEFT_OUT_FIRST = ("WORKFLOW", "ERROR", "FILES", "COST", "TIME", _PROSE)
_STYLES = {
    JobState.SUCCEEDED.value: GOOD,
    **dict.fromkeys((JobState.QUEUED.value, JobState.RUNNING.value), DOUBTFUL),
    **dict.fromkeys((JobState.FAILED.value, JobState.TIMED_OUT.value), BAD),
}
