"""The checks of the soak: how a job may end, and that no file, prompt or process is left."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.soak.cases import SoakCase, stable_parts
from bench.worker_setup import WorkerSetup
from comfy_core.error_codes import ErrorCode
from simulators.runpod.queue_api import QueueJob, QueueJobState
from simulators.waiting import until

MAX_JOB_S = 30.0
"""Maximum seconds from hand-out to end of a job: two waits for ComfyUI, a second run for lost images, retried posts."""
EXIT_WAIT_S = 30.0
"""Maximum seconds until a killed process has exited."""
MAX_WAIT_AFTER_JOBS_S = 30.0
"""Maximum seconds for a restart of ComfyUI, and for the exit of a worker."""


@dataclass
class Report:
    """The outcomes of one worker's jobs, the injected faults, and the failed checks as `problems`."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    problems: list[str] = field(default_factory=list)
    durations_s: list[float] = field(default_factory=list)
    handed_out_again: int = 0
    posted_again: int = 0
    memory: str = ""


def outcome_of(job: QueueJob) -> str:
    """Return `result`, an error code, or the state of a job that has neither."""
    if job.state is QueueJobState.CANCELLED:
        return "cancelled"
    if job.state is QueueJobState.COMPLETED and stable_parts(job.output or {}) is not None:
        return "result"
    try:
        return str(json.loads(job.error or "")["code"])
    except (ValueError, TypeError, KeyError):
        return f"nothing ({job.state.value})"


def failed_checks(job: QueueJob, case: SoakCase, codes: frozenset[ErrorCode]) -> Iterator[str]:
    """Yield a sentence for each failed check of a finished job. `codes` are allowed if the job reaches ComfyUI."""
    outcome = outcome_of(job)
    allowed = {code.value for code in codes} if case.reaches_comfyui else set()
    allowed |= {"cancelled", "result" if case.code is None else case.code.value}
    if outcome not in allowed:
        yield f"ended as {outcome}, and not as {', '.join(sorted(allowed))}"
    if outcome == "result" and case.result is not None and stable_parts(job.output) != stable_parts(case.result):
        yield f"has the result of another request: {stable_parts(job.output)}, and not {stable_parts(case.result)}"
    if job.final_posts > 2 + job.retries:  # a result whose response was lost is posted once more
        yield f"was completed {job.final_posts} times"
    if outcome != "cancelled" and not job.final_posts:
        yield "was never completed"


def stop_and_find_leftovers(setup: WorkerSetup, allowed_files: int = 0) -> list[str]:
    """Stop the worker, and return as problems what its jobs left in ComfyUI, and what is wrong with its exit.

    `allowed_files` is the number of files that may be left.
    """
    problems = []
    simulator = setup.simulator
    if simulator is not None and not until(lambda: not (simulator.queue_ids or simulator.history_ids)):
        problems.append(f"ComfyUI still has prompts {simulator.queue_ids} and entries {simulator.history_ids}")
    if len(files := setup.files_left()) > allowed_files:
        problems.append(f"files are left: {files}")
    setup.worker.terminate()
    if (status := setup.worker.wait(MAX_WAIT_AFTER_JOBS_S)) != 0:
        problems.append(f"the worker ended with {status}")
    problems += processes_left(setup)
    if "Traceback" in setup.worker.log:
        problems.append(
            f"the worker's log has a traceback: {setup.worker.log[setup.worker.log.index('Traceback') :][:4000]}"
        )
    return problems


def processes_left(setup: WorkerSetup) -> list[str]:
    """Return the processes of an exited worker that still run, as problems. They have EXIT_WAIT_S to end."""
    until(lambda: not (setup.worker.leftovers() or setup.comfyui_processes()), EXIT_WAIT_S)
    pids = [*setup.worker.leftovers(), *(process.pid for process in setup.comfyui_processes())]
    return [f"processes are left: {pids}"] if pids else []
