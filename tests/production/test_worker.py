"""handler.py in production mode: a backlog, progress, logs, a worker without graphs, and a boot without a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.worker_setup import code_of, running_worker
from comfy_core.workflows import default_directory
from simulators.runpod.queue_api import QueueJobState
from simulators.waiting import until
from worker.job_record import MESSAGE

pytestmark = pytest.mark.slow


def test_a_backlog_runs_in_order_and_nothing_is_left() -> None:
    """Six jobs on the worker's own ComfyUI succeed in order. No file and no process is left."""
    with running_worker(own_comfyui=True, step_s=0.02) as setup:
        ids = [setup.submit(seed=seed) for seed in range(6)]
        jobs = [setup.platform.wait_for(job_id, 60) for job_id in ids]

        assert [code_of(job) for job in jobs] == [None] * 6
        assert [job.output["seed"] for job in jobs] == list(range(6))
        ends = [job.ended_at for job in jobs if job.ended_at is not None]
        assert len(ends) == len(jobs)
        assert ends == sorted(ends)
        assert setup.files_left() == []
        setup.worker.terminate()
        assert setup.worker.wait(60) == 0
        assert setup.comfyui_processes() == []


def test_progress_arrives_in_order_and_never_after_the_result() -> None:
    """A few progress posts name the image and the step, in order, and the result is the last post."""
    with running_worker(step_s=0.2) as setup:
        job = setup.run(steps=10, num_images=2)

        seen = [(each["picture"], each["step"]) for each in job.progress]
        assert seen == sorted(seen)
        assert 2 <= len(seen) <= 6
        assert all(each["stage"] == "sampling" and each["steps"] in {0, 10} for each in job.progress)
        assert job.final_posts == 1
        posts = [post.kind for post in setup.platform.posts if post.job_id == job.id]
        assert posts == ["progress"] * len(seen) + ["final"]


def test_progress_has_small_previews_if_enabled() -> None:
    """With WORKER_PREVIEWS, progress contains previews of less than 40,000 characters."""
    with running_worker(own_comfyui=True, step_s=0.3, environment={"WORKER_PREVIEWS": "true"}) as setup:
        job_id = setup.submit(steps=100)

        def previews() -> list[str]:
            progress = setup.platform.jobs[job_id].progress
            return [each["preview"] for each in progress if isinstance(each, dict) and "preview" in each]

        assert all(len(preview) < 40_000 for preview in setup.platform.wait_until(previews, 60))


def test_logs_are_json_with_the_job_s_id_and_without_its_prompt() -> None:
    """The log lines are JSON objects. Each job has one record in them. No line contains the prompt or an image."""
    with running_worker() as setup:
        job = setup.run(prompt="a very secret castle")
        failed = setup.run(steps=0)
        assert until(lambda: setup.worker.log.count(MESSAGE) == 2, 60)
        lines = [json.loads(line) for line in setup.worker.log.splitlines() if '"logger"' in line]

        assert {"job_id", "level", "logger", "message", "time"} <= lines[0].keys()
        records = {line["job_id"]: line["job"] for line in lines if line["message"] == MESSAGE}
        assert [(key, each["state"], each["code"]) for key, each in records.items()] == [
            (job.id, "COMPLETED", None),
            (failed.id, "FAILED", "invalid_input"),
        ]
        assert records[job.id]["timings"] == job.output["timings"]
        assert "secret castle" not in setup.worker.log
        assert "iVBOR" not in setup.worker.log


def test_a_worker_without_graphs_rejects_a_graph() -> None:
    """With WORKER_ALLOW_GRAPHS=false a graph is rejected, the error lists the templates, and a template runs."""
    with running_worker(environment={"WORKER_ALLOW_GRAPHS": "false"}) as setup:
        job = setup.platform.wait_for(
            setup.platform.submit({"workflow": {"1": {"class_type": "EmptyImage", "inputs": {}}}}), 30
        )

        assert code_of(job) == "invalid_input"
        assert "flux-dev-txt2img" in str(job.error)
        assert setup.run().state == QueueJobState.COMPLETED


def test_the_sdk_s_own_checks_do_not_run() -> None:
    """A worker without a network takes jobs: the SDK's system checks are off by default."""
    with running_worker(environment={"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": ""}) as setup:
        assert setup.run().state == QueueJobState.COMPLETED
        assert "Running 1 fitness check" in setup.worker.log


def test_a_missing_model_keeps_the_worker_from_taking_jobs(tmp_path: Path) -> None:
    """The worker reports itself unhealthy with the missing file, takes no job, and exits without leaving a ComfyUI."""
    for file in default_directory().glob("flux-dev-txt2img*"):
        text = file.read_text().replace("vae/ae.safetensors", "vae/other.safetensors")
        (tmp_path / file.name).write_text(text)

    environment = {"WORKER_WORKFLOWS": str(tmp_path), "WORKER_SHIPPED_WORKFLOWS": "false"}
    with running_worker(own_comfyui=True, environment=environment) as setup:
        assert setup.worker.wait(60) == 1
        assert not setup.platform.takes
        [ping] = [ping for ping in setup.platform.pings if ping.is_unhealthy]
        assert "vae/other.safetensors" in str(ping.reason)
        assert setup.comfyui_processes() == []
