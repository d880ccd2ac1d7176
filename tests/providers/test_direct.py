"""The direct provider, which calls a ComfyUI without RunPod: behaviour beyond the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comfy_client.client import Client, client_from_env
from comfy_client.job import Preview, Sampling
from comfy_client.providers.interface import JobOptions, JobState
from comfy_client.tasks import make_request
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, RequestError
from simulators.comfyui import Simulator
from simulators.waiting import until

SMALL: dict[str, Any] = {"prompt": "a knight", "width": 64, "height": 64, "steps": 3}


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """A simulated ComfyUI that sends previews."""
    with Simulator(step_s=0.1, previews=True) as simulator:
        yield simulator


@pytest.fixture
def client(simulator: Simulator) -> Iterator[Client]:
    """A client of the ComfyUI."""
    with client_from_env({"COMFYUI_ENDPOINT": simulator.url}, timeout_s=60) as client:
        yield client


def test_steps_and_previews_are_reported(simulator: Simulator, client: Client) -> None:
    """Each sampling step is reported at most once, in order; previews are JPEG."""
    simulator.faults.hang_sampling(at_step=2)
    simulator.faults.hang_sampling(at_step=3)
    steps, previews = [], []
    for event in client.submit(**SMALL).events():
        if isinstance(event, Sampling):
            steps.append(event.step)
        if isinstance(event, Preview):
            previews.append(event.jpeg)
            simulator.faults.release()

    assert steps == sorted(set(steps))
    assert steps[:2] == [1, 2]
    assert all(jpeg.startswith(b"\xff\xd8") for jpeg in previews)


def test_files_are_deleted_if_the_folder_is_accessible(tmp_path: Path) -> None:
    """With COMFYUI_DIR, all files of a txt2img and an img2img job are deleted."""
    with Simulator(base_directory=tmp_path) as simulator:
        environment = {"COMFYUI_ENDPOINT": simulator.url, "COMFYUI_DIR": str(tmp_path)}
        with client_from_env(environment) as client:
            assert client.img2img(client.run(**SMALL).image.bytes, "x", steps=1, width=64, height=64).images

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "options",
    [
        {"delivery": "s3"},
        {"options": JobOptions(webhook="https://me")},
        {"options": JobOptions(s3_config={"bucketName": "b"})},
        {"webhook": {"url": "https://me"}},
    ],
    ids=["delivery", "webhook", "s3_config", "signed webhook"],
)
def test_options_of_runpod_are_rejected(client: Client, simulator: Simulator, options: dict[str, Any]) -> None:
    """Options that only RunPod has are rejected, and the error names COMFYUI_ENDPOINT; no prompt is run."""
    with pytest.raises(JobError, match="COMFYUI_ENDPOINT") as info:
        client.run(**SMALL, **options)

    assert info.value.code is ErrorCode.INVALID_INPUT
    assert simulator.executed_prompts == []


def test_timeout_s_ends_a_job(client: Client, simulator: Simulator) -> None:
    """After `timeout_s` the job fails with deadline_exceeded, and is removed from ComfyUI."""
    simulator.faults.hang_sampling()
    with pytest.raises(JobError) as info:
        client.run(**SMALL, timeout_s=1)

    assert info.value.code is ErrorCode.DEADLINE_EXCEEDED
    assert until(lambda: not simulator.queue_ids)


def test_an_unreachable_comfyui_is_an_error_at_once() -> None:
    """If ComfyUI cannot be reached, health and submit raise RequestError."""
    with client_from_env({"COMFYUI_ENDPOINT": "http://127.0.0.1:1"}) as client:
        for call in (client.health, lambda: client.submit(**SMALL)):
            with pytest.raises(RequestError, match="ComfyUI did not respond"):
                call()


def test_queued_jobs_can_be_purged_and_none_is_retried(client: Client, simulator: Simulator) -> None:
    """purge_queue cancels the queued jobs and not the running one; a retry is an error with the alternative."""
    simulator.faults.hang_sampling()
    first = client.submit(**SMALL)
    assert until(lambda: simulator.hanging_step)
    waiting = [client.submit(**SMALL) for _ in range(2)]

    assert client.purge_queue() >= 2
    with pytest.raises(JobError):
        waiting[0].wait()
    with pytest.raises(RequestError, match="send the request"):
        first.retry()
    assert client.health().why == "busy"
    simulator.faults.release()


def test_closing_interrupts_a_followed_job(simulator: Simulator) -> None:
    """Closing the client cancels a job that its caller follows, as `run` does; ComfyUI's queue is empty afterwards."""
    simulator.faults.hang_sampling()
    client = client_from_env({"COMFYUI_ENDPOINT": simulator.url})
    job = client.submit_request(make_request(**SMALL), is_followed=True)
    assert until(lambda: simulator.hanging_step)
    client.close()

    assert job.status().state is JobState.CANCELLED
    assert until(lambda: not simulator.queue_ids)


def test_old_results_are_dropped(simulator: Simulator) -> None:
    """Of 40 jobs of `map` the last one still has its status, but the first one raises job_expired."""
    with Simulator() as quick_simulator, client_from_env({"COMFYUI_ENDPOINT": quick_simulator.url}) as client:
        jobs = [outcome.unwrap().job_id for outcome in client.map([SMALL] * 40, 4)]
        assert client.job(jobs[-1]).status().state is JobState.SUCCEEDED
        with pytest.raises(JobError) as info:
            client.job(jobs[0]).result()

    assert info.value.code is ErrorCode.JOB_EXPIRED
    assert simulator.executed_prompts == []
