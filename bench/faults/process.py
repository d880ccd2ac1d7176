"""Rows of the fault table: the ComfyUI process."""

from __future__ import annotations

from bench.faults.rows import fault_row, simulator_of
from bench.worker_setup import WorkerSetup, code_of
from simulators.runpod.queue_api import QueueJob
from simulators.waiting import until


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
    return setup.platform.wait_for(job_id)


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
    setup.platform.wait_for(first)
    assert until(lambda: "restarted" in setup.worker.log)
    second = setup.submit()
    setup.await_sampling(second)
    setup.kill_comfyui()
    return setup.platform.wait_for(second)


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
    job = setup.platform.wait_for(hanging)
    assert setup.platform.wait_for(waiting).output["seed"] == 2
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
        job = setup.platform.wait_for(job_id)
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
    job = setup.platform.wait_for(hanging)
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
    job = setup.platform.wait_for(hanging)
    assert setup.platform.wait_for(waiting, 150).output["seed"] == 2
    return job


@fault_row(
    "a job arrives during the warm-up",
    "the warm-up is interrupted and does not run again after the job",
    code=None,
    within_s=4,
    own_comfyui=True,
    WORKER_WARMUP="true",
    COMFYUI_ARGS="--fault hang_sampling:1",
)
def _(setup: WorkerSetup) -> QueueJob:
    assert until(lambda: "warming up" in setup.worker.log)
    return setup.run()
