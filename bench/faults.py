"""The fault table: one row per fault. Tests cause each fault on a worker in production mode; docs/operate.md shows it.

A row has the error code that the caller gets (None for a success), the maximum seconds from submission to the end of
the job, and whether the same worker runs the next job. `cause` is the function that causes the fault and returns the
job.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field

import requests
from PIL import Image

from bench.worker_setup import WorkerSetup, code_of
from comfy_core.contract import ErrorReport
from simulators.comfyui import Simulator
from simulators.runpod.queue_api import QueueJob
from simulators.waiting import until

Cause = Callable[[WorkerSetup], QueueJob]
STEP_S = 0.05


@dataclass(frozen=True)
class FaultRow:
    """One fault, what the worker does about it, and what the caller gets.

    If `own_comfyui`, ComfyUI is the worker's child process, otherwise a simulator in the process of the tests.
    `environment` has additional variables of the worker.
    """

    fault: str
    reaction: str
    code: str | None
    within_s: float
    next_job_works: bool
    cause: Cause
    own_comfyui: bool = False
    step_s: float = STEP_S
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def needs_own_worker(self) -> bool:
        """Whether the fault needs a worker with special settings, or makes its worker unusable for other rows."""
        return self.own_comfyui or not self.next_job_works or self.step_s != STEP_S or bool(self.environment)


FAULT_ROWS: list[FaultRow] = []


def simulator_of(setup: WorkerSetup) -> Simulator:
    """Return the simulated ComfyUI. Only for rows without `own_comfyui`."""
    assert setup.simulator is not None
    return setup.simulator


def fault_row(
    fault: str,
    reaction: str,
    *,
    code: str | None,
    within_s: float,
    next_job_works: bool = True,
    own_comfyui: bool = False,
    step_s: float = STEP_S,
    **environment: str,
) -> Callable[[Cause], Cause]:
    """Return a decorator that adds a row to FAULT_ROWS. The decorated function is the row's `cause`."""

    def add(cause: Cause) -> Cause:
        FAULT_ROWS.append(
            FaultRow(fault, reaction, code, within_s, next_job_works, cause, own_comfyui, step_s, environment)
        )
        return cause

    return add


# --- the connection to ComfyUI


@fault_row(
    "socket dropped while running", "reconnects, runs the save node again with a file output", code=None, within_s=4
)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.drop_socket(at_step=2)
    return setup.run()


@fault_row("run ends while the socket is disconnected", "reads /history after the reconnect", code=None, within_s=4)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.drop_socket(at_step=4)
    return setup.run()


@fault_row("connection reset", "the same as for a dropped socket", code=None, within_s=4)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.reset_socket(at_step=2)
    return setup.run()


@fault_row("socket stalled", "reads /history after one second of silence, opens a new socket", code=None, within_s=6)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.stall_socket(at_step=1)
    return setup.run()


@fault_row("history late by 500 ms", "polls until the entry exists", code=None, within_s=4)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.write_history_late(0.5)
    return setup.run()


@fault_row("500 from /prompt", "fails at once; nothing is queued", code="comfyui_unavailable", within_s=3)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.respond_500("POST /prompt")
    return setup.run()


@fault_row(
    "200 with node_errors",
    "the whole job is rejected, the valid half is removed from the queue",
    code="workflow_rejected",
    within_s=3,
)
def _(setup: WorkerSetup) -> QueueJob:
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}},
        "3": {"class_type": "SaveImage", "inputs": {"filename_prefix": "b"}},
    }
    return setup.platform.wait_for(setup.platform.submit({"workflow": graph}), 30)


# --- ComfyUI's process


@fault_row(
    "ComfyUI killed before a job",
    "restarted; the job waits for it",
    code=None,
    within_s=15,
    own_comfyui=True,
)
def _(setup: WorkerSetup) -> QueueJob:
    setup.kill_comfyui()
    assert until(lambda: "ComfyUI died" in setup.worker.log)
    return setup.run()


@fault_row(
    "ComfyUI killed during sampling",
    "the job fails at once with the last log lines; ComfyUI is restarted",
    code="comfyui_unavailable",
    within_s=5,
    own_comfyui=True,
    step_s=0.3,
)
def _(setup: WorkerSetup) -> QueueJob:
    job_id = setup.submit()
    setup.await_sampling(job_id)
    setup.kill_comfyui()
    return setup.platform.wait_for(job_id, 30)


@fault_row(
    "ComfyUI killed after a job",
    "that job's result is not affected; the next job waits for the restart",
    code=None,
    within_s=15,
    own_comfyui=True,
)
def _(setup: WorkerSetup) -> QueueJob:
    setup.run()
    setup.kill_comfyui()
    return setup.run()


@fault_row(
    "ComfyUI killed twice",
    "no third start: the worker reports itself unhealthy and exits after its jobs got a response",
    code="comfyui_unavailable",
    within_s=15,
    next_job_works=False,
    own_comfyui=True,
    step_s=0.3,
)
def _(setup: WorkerSetup) -> QueueJob:
    first = setup.submit()
    setup.await_sampling(first)
    setup.kill_comfyui()
    setup.platform.wait_for(first, 30)
    assert until(lambda: "restarted" in setup.worker.log)
    second = setup.submit()
    setup.await_sampling(second)
    setup.kill_comfyui()
    return setup.platform.wait_for(second, 30)


@fault_row(
    "ComfyUI hangs (a node blocks the interpreter)",
    "killed and restarted; a job that waited for it then runs",
    code="execution_failed",
    within_s=30,
    own_comfyui=True,
    step_s=0.3,
)
def _(setup: WorkerSetup) -> QueueJob:
    hanging = setup.submit(steps=100, seed=1)
    setup.await_sampling(hanging)
    waiting = setup.submit(seed=2)
    assert until(lambda: setup.worker.log.count("1 prompts") == 2)
    setup.freeze_comfyui()
    job = setup.platform.wait_for(hanging, 30)
    assert setup.platform.wait_for(waiting, 30).output["seed"] == 2
    return job


@fault_row(
    "ComfyUI hangs twice in a row",
    "no third start: the worker reports itself unhealthy and exits after its jobs got a response",
    code="execution_failed",
    within_s=30,
    next_job_works=False,
    own_comfyui=True,
    step_s=0.3,
    WORKER_HUNG_AFTER_S="2",
)
def _(setup: WorkerSetup) -> QueueJob:
    for number in (1, 2):
        job_id = setup.submit(steps=100, seed=number)
        setup.await_sampling(job_id)
        setup.freeze_comfyui()
        job = setup.platform.wait_for(job_id, 30)
    return job


@fault_row(
    "external ComfyUI (COMFYUI_URL) hangs",
    "a waiting job gets `comfyui_unavailable`, and later jobs get it at once until ComfyUI responds again; after three "
    "such jobs the worker retires",
    code="execution_failed",
    within_s=30,
    step_s=0.2,
    WORKER_HUNG_AFTER_S="5",
)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.block_server(at_step=5)
    hanging = setup.submit(steps=20, seed=1)
    setup.await_sampling(hanging)
    waiting = setup.submit(seed=2)
    job = setup.platform.wait_for(hanging, 30)
    assert code_of(setup.platform.wait_for(waiting, 30)) == "comfyui_unavailable"
    later = setup.run(seed=3)
    assert code_of(later) == "comfyui_unavailable"
    assert (later.ended_at or 0) - later.submitted_at < 2
    assert setup.worker.exit_code is None
    simulator.faults.release()
    assert until(lambda: "responds again" in setup.worker.log)
    return job


@fault_row(
    "ComfyUI ignores an interrupt, and another job waits",
    "killed after 30 s and restarted; the job that waited then runs",
    code="deadline_exceeded",
    within_s=10,
    own_comfyui=True,
    COMFYUI_ARGS="--fault hang_sampling:7:true",
)
def _(setup: WorkerSetup) -> QueueJob:
    hanging = setup.submit(steps=10, timeout_s=1)
    waiting = setup.submit(steps=1, seed=2)
    job = setup.platform.wait_for(hanging, 30)
    assert setup.platform.wait_for(waiting, 60).output["seed"] == 2
    return job


# --- faults while the job runs


@fault_row("out of memory once", "memory is freed, the prompt is retried", code=None, within_s=4)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.run_out_of_memory(times=1)
    return setup.run()


@fault_row("out of memory always", "the error suggests smaller images", code="out_of_memory", within_s=4)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.run_out_of_memory(times=2)
    return setup.run()


@fault_row(
    "an error that breaks CUDA",
    "the worker reports itself unhealthy and exits after its jobs got a response",
    code="comfyui_unavailable",
    within_s=4,
    next_job_works=False,
)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.fail_node("KSampler", "torch.AcceleratorError", "CUDA error: an illegal memory access")
    return setup.run()


@fault_row("deadline", "the prompt is interrupted", code="deadline_exceeded", within_s=5)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.hang_sampling()
    return setup.run(timeout_s=1)


@fault_row("two jobs at once, one failing", "the other one is not affected", code="execution_failed", within_s=5)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.fail_node("KSampler", "ValueError", "bad latent", times=1)
    failing, succeeding = setup.submit(seed=1), setup.submit(seed=2)
    assert setup.platform.wait_for(succeeding, 30).output["seed"] == 2
    return setup.platform.wait_for(failing, 30)


# --- cancel


@fault_row("cancel while queued in ComfyUI", "removed from the queue", code="CANCELLED", within_s=5, step_s=0.3)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    first = setup.submit(steps=10)
    setup.await_sampling(first)
    second = setup.submit(seed=2)
    assert until(lambda: len(simulator.queue_ids) == 2)
    cancel(setup, second)
    assert until(lambda: len(simulator.queue_ids) <= 1)
    assert setup.platform.wait_for(first, 30).output["images"]
    return setup.platform.wait_for(second, 30)


@fault_row(
    "cancel while sampling", "interrupted within a second of the stop signal", code="CANCELLED", within_s=5, step_s=0.2
)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    job_id = setup.submit(steps=100)
    setup.await_sampling(job_id)
    cancel(setup, job_id)
    assert until(lambda: not simulator.queue_ids, 5)
    return setup.platform.wait_for(job_id, 30)


@fault_row("cancel while encoding", "no result is posted, no file is left", code="CANCELLED", within_s=8)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    before = len(simulator.executed_prompts)
    job_id = setup.submit(num_images=8, width=1024, height=1024, steps=1, output_format="webp", output_quality=100)
    assert until(lambda: len(simulator.executed_prompts) == before + 8 and not simulator.queue_ids)
    cancel(setup, job_id)
    return setup.platform.wait_for(job_id, 30)


def cancel(setup: WorkerSetup, job_id: str) -> None:
    """Cancel a job as a client does."""
    headers = {"Authorization": f"Bearer {setup.platform.api_key}"}
    requests.post(f"{setup.platform.endpoint_url}/cancel/{job_id}", headers=headers, timeout=10).raise_for_status()


# --- the platform


@fault_row("job-done returns 500, 500, 200", "posted a third time", code=None, within_s=12)
def _(setup: WorkerSetup) -> QueueJob:
    setup.platform.faults.respond("final", 500, times=2)
    return setup.run()


@fault_row(
    "job-done returns 400",
    "the platform has no result: COMPLETED without output; the worker continues",
    code="no output",
    within_s=5,
)
def _(setup: WorkerSetup) -> QueueJob:
    setup.platform.faults.respond("final", 400)
    return setup.run()


@fault_row(
    "a result of 12 MB, no bucket",
    "measured before it is returned; the error contains the remedies",
    code="output_too_large",
    within_s=30,
)
def _(setup: WorkerSetup) -> QueueJob:
    job = setup.run_large()
    assert ErrorReport.from_json(str(job.error)).details["bytes"] > 12_000_000
    return job


# --- invalid requests


def in_base64(data: bytes) -> str:
    """Return bytes in base64, as requests contain them."""
    return base64.b64encode(data).decode()


@fault_row("corrupt image", "decoded and rejected before it is sent to ComfyUI", code="invalid_image", within_s=3)
def _(setup: WorkerSetup) -> QueueJob:
    encoded = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(encoded, "PNG")
    return setup.platform.wait_for(
        setup.platform.submit({"prompt": "x", "image": in_base64(encoded.getvalue()[:900])}), 30
    )


@fault_row("image URL to a private address", "no connection is made", code="invalid_image", within_s=3)
def _(setup: WorkerSetup) -> QueueJob:
    return setup.platform.wait_for(
        setup.platform.submit({"prompt": "x", "image": "https://169.254.169.254/latest/meta-data"}), 30
    )


@fault_row("NaN in the input", "rejected with its path", code="invalid_input", within_s=3)
def _(setup: WorkerSetup) -> QueueJob:
    return setup.run(guidance=float("nan"))


@fault_row("null as the input", "one fault: must be a JSON object", code="invalid_input", within_s=3)
def _(setup: WorkerSetup) -> QueueJob:
    return setup.platform.wait_for(setup.platform.submit(None), 30)


@fault_row("a list as the input", "one fault: must be a JSON object", code="invalid_input", within_s=3)
def _(setup: WorkerSetup) -> QueueJob:
    return setup.platform.wait_for(setup.platform.submit([1, 2]), 30)


@fault_row("text as the input", "one fault: must be a JSON object", code="invalid_input", within_s=3)
def _(setup: WorkerSetup) -> QueueJob:
    return setup.platform.wait_for(setup.platform.submit("a knight"), 30)


@dataclass(frozen=True)
class FaultTestedElsewhere:
    """A row of the table whose fault another test causes: the test with the name `test`, as `file::function`."""

    fault: str
    reaction: str
    caller_gets: str
    within_s: float
    next_job: str
    test: str


FAULTS_TESTED_ELSEWHERE = (
    FaultTestedElsewhere(
        "ComfyUI never becomes ready",
        "no job is taken; the worker reports itself unhealthy and exits 1",
        "nothing: the job stays queued for another worker",
        300,
        "another worker",
        "tests/production/test_shutdown_and_failed_boot.py::test_a_comfyui_that_never_becomes_ready_keeps_the_worker_from_taking_jobs",
    ),
    FaultTestedElsewhere(
        "a workflow's model is missing at boot",
        "the error has the file and every location searched; ComfyUI is not started, no job is taken; the "
        "worker exits 1",
        "nothing: the job stays queued for another worker",
        5,
        "another worker",
        "tests/production/test_worker.py::test_a_missing_model_keeps_the_worker_from_taking_jobs",
    ),
    FaultTestedElsewhere(
        "a model cannot be downloaded at boot (WORKER_FETCH_MODELS)",
        "the error has the file, what was expected and what was received; no job is taken; the worker exits 1",
        "nothing: the job stays queued for another worker",
        1800,
        "another worker",
        "tests/worker/test_boot.py::test_a_failed_model_download_fails_the_boot",
    ),
    FaultTestedElsewhere(
        "ComfyUI does not print its launch flags",
        "started with those of the pinned ComfyUI after five seconds",
        "a result",
        10,
        "yes",
        "tests/worker/test_launch_flags.py::test_a_comfyui_without_usable_help_is_treated_as_an_old_version",
    ),
    FaultTestedElsewhere(
        "SIGTERM during a model download",
        "the download ends, partial files are kept, nothing is reported, exit 0",
        "nothing: the job stays queued for another worker",
        20,
        "another worker",
        "tests/production/test_shutdown_and_failed_boot.py::test_sigterm_during_a_model_download_keeps_the_partial_file",
    ),
    FaultTestedElsewhere(
        "SIGTERM while idle",
        "ComfyUI is stopped, exit 0",
        "nothing",
        4,
        "another worker",
        "tests/production/test_shutdown_and_failed_boot.py::test_sigterm_while_idle_exits_at_once",
    ),
    FaultTestedElsewhere(
        "SIGTERM while busy",
        "the job is finished and posted, then exit 0",
        "a result",
        20,
        "another worker",
        "tests/production/test_shutdown_and_failed_boot.py::test_sigterm_while_busy_lets_the_job_finish",
    ),
    FaultTestedElsewhere(
        "SIGTERM, and the job exceeds the grace period",
        "interrupted and posted, then exit 0",
        "`interrupted`",
        22,
        "another worker",
        "tests/production/test_shutdown_and_failed_boot.py::test_sigterm_interrupts_the_job_after_the_grace_period",
    ),
    FaultTestedElsewhere(
        "image URL that redirects to a private address",
        "the redirect is checked like the first URL; no connection is made",
        "`invalid_image`",
        20,
        "yes",
        "tests/core/test_safe_fetch.py::test_redirect_to_a_private_address",
    ),
    FaultTestedElsewhere(
        "ComfyUI ignores an interrupt",
        "the job still ends; the worker's own ComfyUI is killed after 30 s and restarted",
        "`deadline_exceeded`, or cancelled",
        5,
        "yes, after ComfyUI's restart",
        "tests/faults/test_faults_during_a_job.py::test_a_sampler_that_cannot_be_interrupted_does_not_hang_the_job",
    ),
    FaultTestedElsewhere(
        "external ComfyUI (COMFYUI_URL) stops while a job runs",
        "retried for ten seconds, then given up",
        "`comfyui_unavailable`",
        16,
        "when ComfyUI responds again",
        "tests/faults/test_faults_during_a_job.py::test_a_dead_comfyui_fails_the_job_within_the_limit",
    ),
    FaultTestedElsewhere(
        "a result of 12 MB, with a bucket",
        "delivered through the bucket",
        "a result",
        30,
        "yes",
        "tests/production/test_bucket.py::test_a_result_that_does_not_fit_goes_to_the_bucket",
    ),
)
"""Faults that other tests cause. `test_a_fault_tested_elsewhere_has_its_test` checks that those tests exist."""
