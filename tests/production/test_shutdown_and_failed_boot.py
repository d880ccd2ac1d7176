"""Shutdown and failing boot of the worker: SIGTERM, and a ComfyUI that never becomes ready."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest

from bench.worker_setup import MODELS, ROOT, code_of, make_comfyui, put_models, running_worker
from simulators.hugging_face import ModelServer
from simulators.runpod.queue_api import QueueJobState, RunPodPlatform, WorkerProcess
from simulators.waiting import until

pytestmark = pytest.mark.slow
NEVER_READY = "import threading; print('loading for ever', flush=True); threading.Event().wait()"


def test_sigterm_while_idle_exits_at_once() -> None:
    """Without a job the worker stops ComfyUI and exits 0 without waiting for the SDK's long polls."""
    with running_worker(own_comfyui=True, platform=RunPodPlatform(long_poll_s=30)) as setup:
        begun = time.monotonic()
        setup.worker.terminate()

        assert setup.worker.wait(60) == 0
        assert time.monotonic() - begun < 20
        assert setup.comfyui_processes() == []


def test_sigterm_while_busy_lets_the_job_finish() -> None:
    """A running job is finished and its result is posted; then the worker stops ComfyUI and exits 0."""
    with running_worker(own_comfyui=True, step_s=0.2, platform=RunPodPlatform(long_poll_s=30)) as setup:
        job_id = setup.submit(steps=10)
        setup.await_sampling(job_id)
        setup.worker.terminate()
        job = setup.platform.wait_for(job_id)

        assert code_of(job) is None
        assert setup.worker.wait(60) == 0
        assert setup.comfyui_processes() == []


def test_sigterm_interrupts_the_job_after_the_grace_period() -> None:
    """A job that exceeds the grace period is interrupted in ComfyUI, and its error is posted; the worker exits 0."""
    with running_worker(step_s=0.2, environment={"WORKER_SHUTDOWN_GRACE_S": "1"}) as setup:
        job_id = setup.submit(steps=100)
        setup.await_sampling(job_id)
        setup.worker.terminate()
        job = setup.platform.wait_for(job_id)

        assert code_of(job) == "interrupted"
        assert setup.worker.wait(60) == 0
        assert until(lambda: setup.simulator is not None and not setup.simulator.queue_ids)


def test_a_comfyui_that_never_becomes_ready_keeps_the_worker_from_taking_jobs() -> None:
    """After COMFYUI_READY_TIMEOUT_S the worker reports itself unhealthy and exits 1, and its ComfyUI is stopped."""
    environment = {"COMFYUI_READY_TIMEOUT_S": "1"}
    with running_worker(own_comfyui=True, main=NEVER_READY, environment=environment) as setup:
        assert setup.worker.wait(60) == 1
        assert not setup.platform.takes
        assert ["not ready" in str(ping.reason) for ping in setup.platform.pings if ping.is_unhealthy] == [True]
        assert setup.comfyui_processes() == []


def test_a_queued_job_is_left_to_another_worker_at_sigterm() -> None:
    """At SIGTERM the running jobs are finished, and a job that was not taken stays queued on the platform."""
    with running_worker(step_s=0.2) as setup:
        running = [setup.submit(steps=10, seed=seed) for seed in (1, 2)]
        setup.await_sampling(running[0])
        setup.worker.terminate()
        waiting = setup.submit(seed=3)

        assert [code_of(setup.platform.wait_for(job_id, 30)) for job_id in running] == [None, None]
        assert setup.worker.wait(60) == 0
        assert setup.platform.jobs[waiting].state == QueueJobState.IN_QUEUE


def test_sigterm_while_comfyui_starts_exits_without_an_error() -> None:
    """If SIGTERM ends the boot, the worker exits 0 and does not report itself unhealthy."""
    with RunPodPlatform(long_poll_s=1.0) as platform, tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        put_models(directory / "baked")
        env = make_comfyui(directory, NEVER_READY)
        with WorkerProcess(platform, ROOT / "handler.py", env={**env, "COMFYUI_READY_TIMEOUT_S": "60"}) as worker:
            assert until(lambda: "using those of snapshot.json's ComfyUI" in worker.log)
            worker.terminate()

            assert worker.wait(60) == 0
            assert not [ping for ping in platform.pings if ping.is_unhealthy]


def test_sigterm_during_a_model_download_keeps_the_partial_file() -> None:
    """SIGTERM ends the download, the worker exits 0, and the partial file is kept for the next worker."""
    with ModelServer() as hub, RunPodPlatform(long_poll_s=1.0) as platform, tempfile.TemporaryDirectory() as name:
        directory, vae = Path(name), next(model for model in MODELS if model.path == "vae/ae.safetensors")
        put_models(directory / "baked", *(model.path for model in MODELS if model != vae))
        (directory / "volume").mkdir()
        path = vae.url.removeprefix("https://huggingface.co")
        hub.put(path, bytes(vae.size))
        hold = hub.hold(path, 1_000_000)
        env = {**make_comfyui(directory), "WORKER_FETCH_MODELS": "true", "HF_ENDPOINT": hub.url}
        with WorkerProcess(platform, ROOT / "handler.py", env=env) as worker:
            part = directory / "volume" / "models" / f"{vae.path}.part"
            assert until(lambda: part.exists() and part.stat().st_size)
            assert hold.reached.is_set()
            worker.terminate()

            assert worker.wait(60) == 0
            assert part.stat().st_size
            assert not [ping for ping in platform.pings if ping.is_unhealthy]
