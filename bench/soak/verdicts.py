"""The checks of a soak: how a job may end, and that no file, prompt or process is left."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.soak.cases import SoakCase, essence
from bench.stage import Stage
from comfy_core.error_codes import ErrorCode
from simulators.runpod.queue_api import QueueJob, QueueJobState
from simulators.waiting import until

BOUND_S = 30.0
"""Most seconds from hand-out to end of a job: two waits for ComfyUI, a second run for lost images, retried posts."""
GONE_S = 2.0
GRACE_S = 30.0
"""Most seconds after the last job: jobs without faults, clean-up, the worker's exit."""


@dataclass
class Report:
    """The outcomes of one worker's jobs. `wrong` has the failed checks."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    durations_s: list[float] = field(default_factory=list)
    handed_out_again: int = 0
    posted_again: int = 0
    memory: str = ""


def outcome_of(job: QueueJob) -> str:
    """Return `result`, an error code, or the state of a job that has neither."""
    if job.state is QueueJobState.CANCELLED:
        return "cancelled"
    if job.state is QueueJobState.COMPLETED and essence(job.output or {}) is not None:
        return "result"
    try:
        return str(json.loads(job.error or "")["code"])
    except (ValueError, TypeError, KeyError):
        return f"nothing ({job.state.value})"


def problems_of(job: QueueJob, case: SoakCase, codes: frozenset[ErrorCode]) -> Iterator[str]:
    """Yield the failed checks of a finished job. A job that reaches ComfyUI may also end with one of `codes`."""
    outcome = outcome_of(job)
    allowed = {code.value for code in codes} if case.reaches_comfyui else set()
    allowed |= {"cancelled", "result" if case.code is None else case.code.value}
    if outcome not in allowed:
        yield f"ended as {outcome}, and not as {', '.join(sorted(allowed))}"
    if outcome == "result" and case.result is not None and essence(job.output) != essence(case.result):
        yield f"has the result of another request: {essence(job.output)}, and not {essence(case.result)}"
    if job.final_posts > 2 + job.retries:  # a result whose response was lost is posted once more
        yield f"was completed {job.final_posts} times"
    if outcome != "cancelled" and not job.final_posts:
        yield "was never completed"


def leftovers(stage: Stage, unknowable_files: int = 0) -> list[str]:
    """Return what is left in ComfyUI, then stop the worker and return what is left of it."""
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
    """Return the processes left of a worker that has exited. Processes that it killed may take a moment to end."""
    until(lambda: not (stage.worker.leftovers() or stage.comfyui_processes()), GONE_S)
    pids = [*stage.worker.leftovers(), *(process.pid for process in stage.comfyui_processes())]
    return [f"processes are left: {pids}"] if pids else []
