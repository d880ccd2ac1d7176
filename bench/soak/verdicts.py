"""What a soak holds jobs and workers against: how a job may end, and that nothing is left."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.soak.cases import Case, essence
from bench.stage import Stage
from comfy_core.contract import ErrorCode
from simulators.runpod.queue_api import Job, JobState
from simulators.waiting import until

BOUND_S = 30.0
"""From a job's handing out to its end: two waits for ComfyUI, a second run for pictures lost, posts tried again."""
GONE_S = 2.0
GRACE_S = 30.0
"""For what comes after the last job: jobs without faults, clean-up, the worker's end."""


@dataclass
class Report:
    """What a lane has seen. `wrong` are the promises that were broken."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    weather: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    durations_s: list[float] = field(default_factory=list)
    handed_out_again: int = 0
    posted_again: int = 0
    memory: str = ""


def outcome_of(job: Job) -> str:
    """Return `result`, the code of an error, or the state of a job without either."""
    if job.state is JobState.CANCELLED:
        return "cancelled"
    if job.state is JobState.COMPLETED and essence(job.output or {}) is not None:
        return "result"
    try:
        return str(json.loads(job.error or "")["code"])
    except (ValueError, TypeError, KeyError):
        return f"nothing ({job.state.value})"


def problems_of(job: Job, case: Case, codes: frozenset[ErrorCode]) -> Iterator[str]:
    """Yield which promises the end of a job breaks; where it reaches ComfyUI, it may have ended with one of `codes`."""
    outcome = outcome_of(job)
    allowed = {code.value for code in codes} if case.reaches_comfyui else set()
    allowed |= {"cancelled", "result" if case.code is None else case.code.value}
    if outcome not in allowed:
        yield f"ended as {outcome}, and not as {', '.join(sorted(allowed))}"
    if outcome == "result" and case.result is not None and essence(job.output) != essence(case.result):
        yield f"has the result of another request: {essence(job.output)}, and not {essence(case.result)}"
    if job.final_posts > 2 + job.retries:  # a result whose response was lost is posted once more
        yield f"was answered {job.final_posts} times"
    if outcome != "cancelled" and not job.final_posts:
        yield "was not answered"


def leftovers(stage: Stage, unknowable_files: int = 0) -> list[str]:
    """Return what is left in ComfyUI, and then of the worker once it is told to end."""
    wrong = []
    simulator = stage.simulator
    if simulator is not None and not until(lambda: not (simulator.queue_ids or simulator.history_ids), 5):
        wrong.append(f"ComfyUI still has prompts {simulator.queue_ids} and entries {simulator.history_ids}")
    if len(files := stage.files_left()) > unknowable_files:
        wrong.append(f"files are left: {files}")
    stage.worker.terminate()
    if (status := stage.worker.wait(GRACE_S)) != 0:
        wrong.append(f"the worker ended with {status}")
    wrong += processes_left(stage)
    if "Traceback" in stage.worker.log:
        wrong.append(
            f"the worker's log has a traceback: {stage.worker.log[stage.worker.log.index('Traceback') :][:4000]}"
        )
    return wrong


def processes_left(stage: Stage) -> list[str]:
    """Return what is left of a worker that has ended: what it killed at its end may take a moment to be gone."""
    until(lambda: not (stage.worker.leftovers() or stage.comfyui_processes()), GONE_S)
    pids = [*stage.worker.leftovers(), *(process.pid for process in stage.comfyui_processes())]
    return [f"processes are left: {pids}"] if pids else []
