"""The fault table: one row per fault, each run on the worker in production mode. docs/operate.md is generated from it.

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

from bench.stage import Stage, code_of
from comfy_core.contract import ErrorReport
from simulators.comfyui import Simulator
from simulators.runpod.queue_api import QueueJob
from simulators.waiting import until

Cause = Callable[[Stage], QueueJob]
STEP_S = 0.05


@dataclass(frozen=True)
class Row:
    """One fault.

    If `own_comfyui`, ComfyUI is the worker's child process. `environment` has additional variables of the worker.
    """

    fault: str
    happens: str
    code: str | None
    within_s: float
    next_job_works: bool
    cause: Cause
    own_comfyui: bool = False
    step_s: float = STEP_S
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def needs_own_stage(self) -> bool:
        """Whether the fault needs a worker with special settings, or makes its worker unusable for other rows."""
        return self.own_comfyui or not self.next_job_works or self.step_s != STEP_S or bool(self.environment)


ROWS: list[Row] = []


def simulator_of(stage: Stage) -> Simulator:
    """Return the simulator of a stage whose ComfyUI is not the worker's child process."""
    assert stage.simulator is not None
    return stage.simulator


def row(
    fault: str,
    happens: str,
    *,
    code: str | None,
    within_s: float,
    next_job_works: bool = True,
    own_comfyui: bool = False,
    step_s: float = STEP_S,
    **environment: str,
) -> Callable[[Cause], Cause]:
    """Return a decorator that adds a row to the table; the decorated function is the row's `cause`."""

    def add(cause: Cause) -> Cause:
        ROWS.append(Row(fault, happens, code, within_s, next_job_works, cause, own_comfyui, step_s, environment))
        return cause

    return add


# --- the connection to ComfyUI


@row("socket dropped while running", "reconnects, runs the save node again with a file output", code=None, within_s=4)
def _(stage: Stage) -> QueueJob:
    simulator = simulator_of(stage)
    simulator.faults.drop_socket(at_step=2)
    return stage.run()


@row("run ends while the socket is away", "reads /history after the reconnect", code=None, within_s=4)
def _(stage: Stage) -> QueueJob:
    simulator = simulator_of(stage)
    simulator.faults.drop_socket(at_step=4)
    return stage.run()


@row("connection reset", "the same as for a dropped socket", code=None, within_s=4)
def _(stage: Stage) -> QueueJob:
    simulator = simulator_of(stage)
    simulator.faults.reset_socket(at_step=2)
    return stage.run()


@row("socket stalled", "reads /history after one second of silence, opens a new socket", code=None, within_s=6)
def _(stage: Stage) -> QueueJob:
    simulator = simulator_of(stage)
    simulator.faults.stall_socket(at_step=1)
    return stage.run()


@row("history late by 500 ms", "polls until the entry exists", code=None, within_s=4)
def _(stage: Stage) -> QueueJob:
    simulator = simulator_of(stage)
    simulator.faults.write_history_late(0.5)
    return stage.run()


@row("500 from /prompt", "fails at once; nothing is queued", code="comfyui_unavailable", within_s=3)
def _(stage: Stage) -> QueueJob:
    simulator = simulator_of(stage)
    simulator.faults.answer_500("POST /prompt")
    return stage.run()


@row(
    "200 with node_errors",
    "the whole job is rejected, the valid half is removed from the queue",
    code="workflow_rejected",
    within_s=3,
)
def _(stage: Stage) -> QueueJob:
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}},
        "3": {"class_type": "SaveImage", "inputs": {"filename_prefix": "b"}},
    }
    return stage.platform.wait_for(stage.platform.submit({"workflow": graph}), 30)


# --- ComfyUI's process


@row(
    "ComfyUI killed before a job",
    "restarted; the job waits for it",
    code=None,
    within_s=15,
    own_comfyui=True,
)
def _(stage: Stage) -> QueueJob:
    stage.kill_comfyui()
    assert until(lambda: "ComfyUI died" in stage.worker.log)
    return stage.run()


@row(
    "ComfyUI killed during sampling",
    "the job fails at once with the last log lines; ComfyUI is restarted",
    code="comfyui_unavailable",
    within_s=5,
    own_comfyui=True,
    step_s=0.3,
)
def _(stage: Stage) -> QueueJob:
    job_id = stage.submit()
    stage.await_sampling(job_id)
    stage.kill_comfyui()
    return stage.platform.wait_for(job_id, 30)


@row(
    "ComfyUI killed after a job",
    "that job's result is not affected; the next job waits for the restart",
    code=None,
    within_s=15,
    own_comfyui=True,
)
def _(stage: Stage) -> QueueJob:
    stage.run()
    stage.kill_comfyui()
    return stage.run()


@row(
    "ComfyUI killed twice",
    "no third start: the worker reports itself unhealthy and exits after its jobs got a response",
    code="comfyui_unavailable",
    within_s=15,
    next_job_works=False,
    own_comfyui=True,
    step_s=0.3,
)
def _(stage: Stage) -> QueueJob:
    first = stage.submit()
    stage.await_sampling(first)
    stage.kill_comfyui()
    stage.platform.wait_for(first, 30)
    assert until(lambda: "restarted" in stage.worker.log)
    second = stage.submit()
    stage.await_sampling(second)
    stage.kill_comfyui()
    return stage.platform.wait_for(second, 30)


@row(
    "ComfyUI hangs (a node holds the GIL)",
    "killed and restarted; a job that waited for it then runs",
    code="execution_failed",
    within_s=30,
    own_comfyui=True,
    step_s=0.3,
)
def _(stage: Stage) -> QueueJob:
    hanging = stage.submit(steps=100, seed=1)
    stage.await_sampling(hanging)
    waiting = stage.submit(seed=2)
    assert until(lambda: stage.worker.log.count("1 prompts") == 2)
    stage.freeze_comfyui()
    job = stage.platform.wait_for(hanging, 30)
    assert stage.platform.wait_for(waiting, 30).output["seed"] == 2
    return job


@row(
    "ComfyUI hangs twice in a row",
    "no third start: the worker reports itself unhealthy and exits after its jobs got a response",
    code="execution_failed",
    within_s=30,
    next_job_works=False,
    own_comfyui=True,
    step_s=0.3,
    WORKER_HUNG_AFTER_S="2",
)
def _(stage: Stage) -> QueueJob:
    for number in (1, 2):
        job_id = stage.submit(steps=100, seed=number)
        stage.await_sampling(job_id)
        stage.freeze_comfyui()
        job = stage.platform.wait_for(job_id, 30)
    return job


@row(
    "external ComfyUI (COMFYUI_URL) hangs",
    "a job that waited gets `comfyui_unavailable`, later jobs at once, until it responds again; after three the worker "
    "retires",
    code="execution_failed",
    within_s=30,
    step_s=0.2,
    WORKER_HUNG_AFTER_S="5",
)
def _(stage: Stage) -> QueueJob:
    simulator = simulator_of(stage)
    simulator.faults.hold_server(at_step=5)
    hanging = stage.submit(steps=20, seed=1)
    stage.await_sampling(hanging)
    waiting = stage.submit(seed=2)
    job = stage.platform.wait_for(hanging, 30)
    assert code_of(stage.platform.wait_for(waiting, 30)) == "comfyui_unavailable"
    later = stage.run(seed=3)
    assert code_of(later) == "comfyui_unavailable"
    assert (later.ended_at or 0) - later.submitted_at < 2
    assert stage.worker.exit_code is None
    simulator.faults.go_on()
    assert until(lambda: "responds again" in stage.worker.log)
    return job


@row(
    "ComfyUI ignores an interrupt, and another job waits",
    "killed after 30 s and restarted; the job that waited then runs",
    code="deadline_exceeded",
    within_s=10,
    own_comfyui=True,
    COMFYUI_ARGS="--fault hang_sampling:7:true",
)
def _(stage: Stage) -> QueueJob:
    hanging = stage.submit(steps=10, timeout_s=1)
    waiting = stage.submit(steps=1, seed=2)
    job = stage.platform.wait_for(hanging, 30)
    assert stage.platform.wait_for(waiting, 60).output["seed"] == 2
    return job


# --- faults while the job runs


@row("out of memory once", "memory is freed, the prompt is retried", code=None, within_s=4)
def _(stage: Stage) -> QueueJob:
    simulator = simulator_of(stage)
    simulator.faults.run_out_of_memory(times=1)
    return stage.run()


@row("out of memory always", "an error with advice", code="out_of_memory", within_s=4)
def _(stage: Stage) -> QueueJob:
    simulator = simulator_of(stage)
    simulator.faults.run_out_of_memory(times=2)
    return stage.run()


@row(
    "an error that breaks CUDA",
    "the worker reports itself unhealthy and exits after its jobs got a response",
    code="comfyui_unavailable",
    within_s=4,
    next_job_works=False,
)
def _(stage: Stage) -> QueueJob:
    simulator = simulator_of(stage)
    simulator.faults.fail_node("KSampler", "torch.AcceleratorError", "CUDA error: an illegal memory access")
    return stage.run()


@row("deadline", "the prompt is interrupted", code="deadline_exceeded", within_s=5)
def _(stage: Stage) -> QueueJob:
    simulator = simulator_of(stage)
    simulator.faults.hang_sampling()
    return stage.run(timeout_s=1)


@row("two jobs at once, one failing", "the other one is not affected", code="execution_failed", within_s=5)
def _(stage: Stage) -> QueueJob:
    simulator = simulator_of(stage)
    simulator.faults.fail_node("KSampler", "ValueError", "bad latent", times=1)
    failing, succeeding = stage.submit(seed=1), stage.submit(seed=2)
    assert stage.platform.wait_for(succeeding, 30).output["seed"] == 2
    return stage.platform.wait_for(failing, 30)


# --- cancel


@row("cancel while queued in ComfyUI", "removed from the queue", code="CANCELLED", within_s=5, step_s=0.3)
def _(stage: Stage) -> QueueJob:
    simulator = simulator_of(stage)
    first = stage.submit(steps=10)
    stage.await_sampling(first)
    second = stage.submit(seed=2)
    assert until(lambda: len(simulator.queue_ids) == 2)
    cancel(stage, second)
    assert until(lambda: len(simulator.queue_ids) <= 1)
    assert stage.platform.wait_for(first, 30).output["images"]
    return stage.platform.wait_for(second, 30)


@row(
    "cancel while sampling", "interrupted within a second of the stop signal", code="CANCELLED", within_s=5, step_s=0.2
)
def _(stage: Stage) -> QueueJob:
    simulator = simulator_of(stage)
    job_id = stage.submit(steps=100)
    stage.await_sampling(job_id)
    cancel(stage, job_id)
    assert until(lambda: not simulator.queue_ids, 5)
    return stage.platform.wait_for(job_id, 30)


@row("cancel while encoding", "nothing is posted, no file is left", code="CANCELLED", within_s=8)
def _(stage: Stage) -> QueueJob:
    simulator = simulator_of(stage)
    before = len(simulator.executed_prompts)
    job_id = stage.submit(num_images=8, width=1024, height=1024, steps=1, output_format="webp", output_quality=100)
    assert until(lambda: len(simulator.executed_prompts) == before + 8 and not simulator.queue_ids)
    cancel(stage, job_id)
    return stage.platform.wait_for(job_id, 30)


def cancel(stage: Stage, job_id: str) -> None:
    """Cancel a job as a client does."""
    headers = {"Authorization": f"Bearer {stage.platform.api_key}"}
    requests.post(f"{stage.platform.endpoint_url}/cancel/{job_id}", headers=headers, timeout=10).raise_for_status()


# --- the platform


@row("job-done returns 500, 500, 200", "posted a third time", code=None, within_s=12)
def _(stage: Stage) -> QueueJob:
    stage.platform.faults.respond("final", 500, times=2)
    return stage.run()


@row(
    "job-done returns 400",
    "the platform has no result: COMPLETED without output; the worker continues",
    code="no output",
    within_s=5,
)
def _(stage: Stage) -> QueueJob:
    stage.platform.faults.respond("final", 400)
    return stage.run()


@row(
    "a result of 12 MB, no bucket",
    "measured before it is returned; the error contains the remedies",
    code="output_too_large",
    within_s=30,
)
def _(stage: Stage) -> QueueJob:
    job = stage.run_large()
    assert ErrorReport.from_json(str(job.error)).details["bytes"] > 12_000_000
    return job


# --- invalid requests


def in_base64(data: bytes) -> str:
    """Return bytes in base64, as requests contain them."""
    return base64.b64encode(data).decode()


@row("corrupt image", "decoded and rejected before it is sent to ComfyUI", code="invalid_image", within_s=3)
def _(stage: Stage) -> QueueJob:
    encoded = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(encoded, "PNG")
    return stage.platform.wait_for(
        stage.platform.submit({"prompt": "x", "image": in_base64(encoded.getvalue()[:900])}), 30
    )


@row("image URL to a private address", "no connection is made", code="invalid_image", within_s=3)
def _(stage: Stage) -> QueueJob:
    return stage.platform.wait_for(
        stage.platform.submit({"prompt": "x", "image": "https://169.254.169.254/latest/meta-data"}), 30
    )


@row("NaN in the input", "rejected with its path", code="invalid_input", within_s=3)
def _(stage: Stage) -> QueueJob:
    return stage.run(guidance=float("nan"))


@row("null as the input", "one fault: must be a JSON object", code="invalid_input", within_s=3)
def _(stage: Stage) -> QueueJob:
    return stage.platform.wait_for(stage.platform.submit(None), 30)


@row("a list as the input", "one fault: must be a JSON object", code="invalid_input", within_s=3)
def _(stage: Stage) -> QueueJob:
    return stage.platform.wait_for(stage.platform.submit([1, 2]), 30)


@row("text as the input", "one fault: must be a JSON object", code="invalid_input", within_s=3)
def _(stage: Stage) -> QueueJob:
    return stage.platform.wait_for(stage.platform.submit("a knight"), 30)


@dataclass(frozen=True)
class ProvenElsewhere:
    """A row of the table that another test proves. `test` is the name of that test, as `file::function`."""

    fault: str
    happens: str
    gets: str
    within_s: float
    next_job: str
    test: str


PROVEN_ELSEWHERE = (
    ProvenElsewhere(
        "ComfyUI never becomes ready",
        "no job is taken; the worker reports itself unhealthy and exits 1",
        "nothing: the job stays queued for another worker",
        300,
        "another worker",
        "tests/production/test_end.py::test_a_comfyui_that_never_becomes_ready_keeps_the_worker_from_taking_jobs",
    ),
    ProvenElsewhere(
        "a workflow's model is missing at boot",
        "the error has the file and every location searched; ComfyUI is not started, no job is taken; the "
        "worker exits 1",
        "nothing: the job stays queued for another worker",
        5,
        "another worker",
        "tests/production/test_worker.py::test_a_missing_model_keeps_the_worker_from_taking_jobs",
    ),
    ProvenElsewhere(
        "a model cannot be downloaded at boot (WORKER_FETCH_MODELS)",
        "the error has the file, what was expected and what was received; no job is taken; the worker exits 1",
        "nothing: the job stays queued for another worker",
        1800,
        "another worker",
        "tests/worker/test_boot.py::test_a_failed_model_download_fails_the_boot",
    ),
    ProvenElsewhere(
        "ComfyUI does not print its launch flags",
        "started with those of the pinned ComfyUI after five seconds",
        "a result",
        10,
        "yes",
        "tests/worker/test_launch_flags.py::test_a_comfyui_without_usable_help_is_treated_as_an_old_version",
    ),
    ProvenElsewhere(
        "SIGTERM during a model download",
        "the download ends, partial files are kept, nothing is reported, exit 0",
        "nothing: the job stays queued for another worker",
        20,
        "another worker",
        "tests/production/test_end.py::test_sigterm_during_a_model_download_keeps_the_partial_file",
    ),
    ProvenElsewhere(
        "SIGTERM while idle",
        "ComfyUI is stopped, exit 0",
        "nothing",
        4,
        "another worker",
        "tests/production/test_end.py::test_sigterm_while_idle_exits_at_once",
    ),
    ProvenElsewhere(
        "SIGTERM while busy",
        "the job is finished and posted, then exit 0",
        "a result",
        20,
        "another worker",
        "tests/production/test_end.py::test_sigterm_while_busy_lets_the_job_finish",
    ),
    ProvenElsewhere(
        "SIGTERM, and the job exceeds the grace period",
        "interrupted and posted, then exit 0",
        "`interrupted`",
        22,
        "another worker",
        "tests/production/test_end.py::test_sigterm_interrupts_the_job_after_the_grace_period",
    ),
    ProvenElsewhere(
        "image URL that redirects to a private address",
        "the redirect is checked like the first URL; no connection is made",
        "`invalid_image`",
        20,
        "yes",
        "tests/core/test_safe_fetch.py::test_redirect_to_a_private_address",
    ),
    ProvenElsewhere(
        "ComfyUI ignores an interrupt",
        "the job still ends; the worker's own ComfyUI is killed after 30 s and restarted",
        "`deadline_exceeded`, or cancelled",
        5,
        "yes, after ComfyUI's restart",
        "tests/faults/test_following.py::test_a_sampler_that_cannot_be_interrupted_does_not_hang_the_job",
    ),
    ProvenElsewhere(
        "external ComfyUI (COMFYUI_URL) stops while a job runs",
        "retried for ten seconds, then given up",
        "`comfyui_unavailable`",
        16,
        "once it is back",
        "tests/faults/test_following.py::test_a_dead_comfyui_fails_the_job_within_the_limit",
    ),
    ProvenElsewhere(
        "a result of 12 MB, with a bucket",
        "delivered through the bucket",
        "a result",
        30,
        "yes",
        "tests/production/test_bucket.py::test_a_result_that_does_not_fit_goes_to_the_bucket",
    ),
)
"""Rows that other tests prove. `test_the_other_rows_have_their_tests` checks that those tests exist."""
