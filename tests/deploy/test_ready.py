"""Waiting for a ready endpoint: progress messages, and that every wait ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from comfy_client.client import client_from_env
from comfy_client.deploy.apply import NotReady, ReadyTimeouts, await_worker, client_variables, queue_url
from comfy_core.errors import RequestError
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import ScriptedWorker, image_result
from tests.deploy.conftest import DeploySetup


@pytest.fixture
def empty_queue() -> Iterator[RunPodPlatform]:
    """An endpoint's queue without workers."""
    with RunPodPlatform(long_poll_s=0.1) as platform:
        yield platform


def no_stale_workers() -> int:
    """Return that no worker has old settings."""
    return 0


def test_a_cold_start_is_waited_for(empty_queue: RunPodPlatform) -> None:
    """Each state of the workers is reported once, until one is ready."""
    messages: list[str] = []

    def report(sentence: str) -> None:
        messages.append(sentence)
        empty_queue.faults.clear()

    empty_queue.faults.cold_start(60)
    with client_from_env(empty_queue.client_env()) as client, ScriptedWorker(empty_queue, image_result):
        await_worker(client.health, no_stale_workers, ReadyTimeouts(30), report)

    assert "a cold start" in messages[0]
    assert "1 worker is idle" in messages[-1]
    assert len(messages) <= 3


def test_an_endpoint_without_workers_gets_its_job(empty_queue: RunPodPlatform) -> None:
    """With a minimum of 0 a worker may start only for a job, so the wait before the job is short."""
    messages: list[str] = []
    with client_from_env(empty_queue.client_env()) as client:
        await_worker(client.health, no_stale_workers, ReadyTimeouts(30, without_job_s=0.1), messages.append)

    assert "no worker yet" in messages[0]


def test_no_gpu_in_time_has_its_own_outcome(empty_queue: RunPodPlatform) -> None:
    """If no GPU is available in time, the command reports it and exits with the status of an expired wait."""
    empty_queue.faults.throttle_workers()
    with (
        client_from_env(empty_queue.client_env()) as client,
        pytest.raises(NotReady, match="no free GPU of the allowed types") as caught,
    ):
        await_worker(client.health, no_stale_workers, ReadyTimeouts(0.5), lambda _: None)

    assert caught.value.exit_status == 5


def test_a_new_endpoint_may_be_unknown_for_a_while(empty_queue: RunPodPlatform) -> None:
    """A new endpoint may be unknown at first; a failed poll is reported and retried."""
    messages: list[str] = []
    empty_queue.faults.respond("health", 404, times=2)
    with client_from_env(empty_queue.client_env()) as client, ScriptedWorker(empty_queue, image_result):
        await_worker(client.health, no_stale_workers, ReadyTimeouts(30), messages.append)

    assert "does not know the endpoint yet" in messages[0]


def test_a_rejected_key_is_an_error_at_once(empty_queue: RunPodPlatform) -> None:
    """A key without permission fails at once."""
    with (
        client_from_env({**empty_queue.client_env(), "RUNPOD_API_KEY": "wrong"}) as client,
        pytest.raises(RequestError),
    ):
        await_worker(client.health, no_stale_workers, ReadyTimeouts(30), lambda _: None)


def test_workers_with_old_settings_do_not_count(empty_queue: RunPodPlatform) -> None:
    """After an update the wait lasts until RunPod has replaced the workers with old settings."""
    counts = [2, 1, 0]
    messages: list[str] = []
    with client_from_env(empty_queue.client_env()) as client, ScriptedWorker(empty_queue, image_result):
        empty_queue.wait_until(lambda: empty_queue.takes, 10)
        await_worker(client.health, lambda: counts.pop(0), ReadyTimeouts(30), messages.append)

    assert [line.split("  ")[-1] for line in messages[:2]] == [
        "workers with the old settings: 2; RunPod replaces them",
        "workers with the old settings: 1; RunPod replaces them",
    ]


def test_the_wait_for_workers_with_old_settings_is_limited(empty_queue: RunPodPlatform) -> None:
    """A worker that stays busy does not fail the deployment."""
    with client_from_env(empty_queue.client_env()) as client, ScriptedWorker(empty_queue, image_result):
        empty_queue.wait_until(lambda: empty_queue.takes, 10)
        await_worker(client.health, lambda: 1, ReadyTimeouts(30, stale_s=0.5), lambda _: None)


def test_a_deployment_counts_stale_workers(deploy_setup: DeploySetup) -> None:
    """Stale workers are counted; the count is 0 if RunPod does not report them."""
    deploy_setup.account.workers = [{"id": "w", "status": "IDLE", "isStale": False}]
    assert deploy_setup.deploy("--picture").status == 0
    deploy_setup.account.faults.respond("GET /serverless/ep/workers", 404)
    ended = deploy_setup.deploy("--picture")

    assert ended.status == 0
    assert "Nothing to do" in ended.err
    assert "GET /serverless/ep/workers" in [each.line for each in deploy_setup.account.received]


def test_no_worker_in_time_leaves_the_endpoint(deploy_setup: DeploySetup, platform: RunPodPlatform) -> None:
    """The command exits with 5 and says how to continue; created resources are kept."""
    platform.faults.throttle_workers()
    try:
        ended = deploy_setup.deploy("--picture", "--wait-timeout", "0.5")
    finally:
        platform.faults.clear()
    again = deploy_setup.shell("deploy", "--picture")

    assert ended.status == 5
    assert "--picture" in ended.err
    assert again.status == 0, again.err
    assert Path("flux.png").exists()


def test_the_output_folder_must_exist(deploy_setup: DeploySetup) -> None:
    """An invalid output folder is rejected before RunPod is called; a valid one receives the image."""
    Path("file").write_text("")
    nowhere = deploy_setup.deploy("--picture", "-o", "file/x.png")
    assert deploy_setup.account.received == []
    Path("y").mkdir()
    in_folder = deploy_setup.deploy("--picture", "-o", "y")

    assert (nowhere.status, "-o file/x.png" in nowhere.err) == (2, True)
    assert in_folder.status == 0
    assert list(Path("y").iterdir())


def test_the_queue_s_url_is_returned_by_runpod() -> None:
    """The queue's URL is printed if it differs from the default, and not guessed if RunPod does not return it."""
    usual = "https://api.runpod.ai/v2"
    endpoint = {"id": "ep", "requestUrls": {"run": f"{usual}/ep/run"}}
    other = {"id": "ep", "requestUrls": {"run": "https://eu.example/v2/ep/run"}}

    assert "RUNPOD_ENDPOINT_BASE_URL" not in client_variables(endpoint, usual)
    assert client_variables(other, usual)["RUNPOD_ENDPOINT_BASE_URL"] == "https://eu.example/v2"
    assert queue_url({"id": "ep"}) == queue_url({"id": "ep", "requestUrls": {"run": "x"}}) == ""
