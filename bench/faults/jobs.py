"""Rows of the fault table: running jobs, cancels, the platform, and invalid requests."""

from __future__ import annotations

import base64
import io

import requests
from PIL import Image

from bench.faults.rows import fault_row, simulator_of
from bench.worker_setup import WorkerSetup
from comfy_core.contract import ErrorReport
from simulators.runpod.queue_api import QueueJob
from simulators.waiting import until


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
    assert setup.platform.wait_for(succeeding).output["seed"] == 2
    return setup.platform.wait_for(failing)


@fault_row("cancel while queued in ComfyUI", "removed from the queue", code="CANCELLED", within_s=5, step_s=0.3)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    first = setup.submit(steps=10)
    setup.await_sampling(first)
    second = setup.submit(seed=2)
    assert until(lambda: len(simulator.queue_ids) == 2)
    cancel(setup, second)
    assert until(lambda: len(simulator.queue_ids) <= 1)
    assert setup.platform.wait_for(first).output["images"]
    return setup.platform.wait_for(second)


@fault_row(
    "cancel while sampling", "interrupted within a second of the stop signal", code="CANCELLED", within_s=5, step_s=0.2
)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    job_id = setup.submit(steps=100)
    setup.await_sampling(job_id)
    cancel(setup, job_id)
    assert until(lambda: not simulator.queue_ids)
    return setup.platform.wait_for(job_id)


@fault_row("cancel while encoding", "no result is posted, no file is left", code="CANCELLED", within_s=8)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    before = len(simulator.executed_prompts)
    job_id = setup.submit(num_images=8, width=1024, height=1024, steps=1, output_format="webp", output_quality=100)
    assert until(lambda: len(simulator.executed_prompts) == before + 8 and not simulator.queue_ids)
    cancel(setup, job_id)
    return setup.platform.wait_for(job_id)


def cancel(setup: WorkerSetup, job_id: str) -> None:
    """Cancel a job as a client does."""
    headers = {"Authorization": f"Bearer {setup.platform.api_key}"}
    requests.post(f"{setup.platform.endpoint_url}/cancel/{job_id}", headers=headers, timeout=60).raise_for_status()


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
    return setup.platform.wait_for(setup.platform.submit(None))


@fault_row("a list as the input", "one fault: must be a JSON object", code="invalid_input", within_s=3)
def _(setup: WorkerSetup) -> QueueJob:
    return setup.platform.wait_for(setup.platform.submit([1, 2]))


@fault_row("text as the input", "one fault: must be a JSON object", code="invalid_input", within_s=3)
def _(setup: WorkerSetup) -> QueueJob:
    return setup.platform.wait_for(setup.platform.submit("a knight"))
