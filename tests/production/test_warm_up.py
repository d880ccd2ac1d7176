"""The warm-up in production mode: it delays no job, fails no job, and a fault that it finds ends the worker."""

from __future__ import annotations

import pytest

from bench.worker_setup import ROOT, SMALL_JOB, code_of, running_worker
from simulators.comfyui import Simulator
from simulators.runpod.queue_api import RunPodPlatform, WorkerProcess
from simulators.waiting import until

pytestmark = pytest.mark.slow
WARM = {"WORKER_WARMUP": "true"}


def test_a_job_that_waits_is_the_first_prompt() -> None:
    """A job that was queued before the worker's start runs at once, and the worker does not warm up after it."""
    with RunPodPlatform(long_poll_s=1.0) as platform, Simulator() as simulator:
        job_id = platform.submit(SMALL_JOB)
        environment = {"COMFYUI_URL": simulator.url, "PYTHONPATH": str(ROOT)}
        with WorkerProcess(platform, ROOT / "handler.py", env=environment) as worker:
            job = platform.wait_for(job_id, 60)
            assert not until(lambda: "warming up" in worker.log, 2)

        assert simulator.executed_prompts == job.output["prompt_ids"]


def test_a_restarted_comfyui_is_warmed_up() -> None:
    """An idle worker warms up after its boot, and again after a restart of ComfyUI. A job then succeeds."""
    with running_worker(own_comfyui=True, environment=WARM) as setup:
        assert until(lambda: "warmed up in" in setup.worker.log)
        setup.kill_comfyui()
        assert until(lambda: setup.worker.log.count("warmed up in") == 2)

        assert code_of(setup.run()) is None
        assert setup.files_left() == []


def test_a_death_during_the_warm_up_fails_no_job() -> None:
    """If ComfyUI dies while a job waits for an interrupted warm-up, the job runs on the restarted ComfyUI."""
    arguments = "--step-s 0 --fault hang_sampling:2:true"  # as while a model is loaded, the interrupt has no effect
    with running_worker(own_comfyui=True, environment={**WARM, "COMFYUI_ARGS": arguments}) as setup:
        assert until(lambda: "warming up" in setup.worker.log)
        assert until(lambda: setup.comfyui_queue()["queue_running"])
        job_id = setup.submit(steps=1)
        assert until(lambda: "1 prompts" in setup.worker.log)
        setup.kill_comfyui()

        assert code_of(setup.platform.wait_for(job_id, 120)) is None
        assert setup.worker.exit_code is None
        assert not [ping for ping in setup.platform.pings if ping.is_unhealthy]


def test_a_failed_warm_up_is_reported() -> None:
    """The worker reports itself unhealthy with the warm-up's error, exits with 1 and leaves no ComfyUI."""
    environment = {**WARM, "COMFYUI_ARGS": "--fault run_out_of_memory:2"}
    with running_worker(own_comfyui=True, environment=environment) as setup:
        assert setup.worker.wait(60) == 1
        [ping] = [ping for ping in setup.platform.pings if ping.is_unhealthy]
        assert "the warm-up failed: The GPU ran out of memory" in str(ping.reason)
        assert setup.comfyui_processes() == []


def test_sigterm_during_the_warm_up_is_no_error() -> None:
    """SIGTERM ends the warm-up and ComfyUI. The worker exits with 0 and does not report itself unhealthy."""
    environment = {**WARM, "COMFYUI_ARGS": "--fault hang_sampling:1"}
    with running_worker(own_comfyui=True, environment=environment) as setup:
        assert until(lambda: "warming up" in setup.worker.log)
        setup.worker.terminate()

        assert setup.worker.wait(60) == 0
        assert "the warm-up failed" not in setup.worker.log
        assert not [ping for ping in setup.platform.pings if ping.is_unhealthy]
        assert setup.comfyui_processes() == []
