"""Waiting for a ready worker after a deployment: progress messages, timeouts, workers with old settings, and output."""

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
    """Return 0, the number of workers with old settings."""
    return 0


def test_a_cold_start_is_waited_for(empty_queue: RunPodPlatform) -> None:
    """The cold start is reported, then the idle worker; not every poll is reported."""
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
    """Without a worker the wait ends after `without_job_s`, because a worker may start only for a job."""
    messages: list[str] = []
    with client_from_env(empty_queue.client_env()) as client:
        await_worker(client.health, no_stale_workers, ReadyTimeouts(30, without_job_s=0.1), messages.append)

    assert "no worker yet" in messages[0]


def test_no_gpu_in_time_is_not_ready(empty_queue: RunPodPlatform) -> None:
    """If no GPU is available in time, NotReady has the reason and the exit status 5."""
    empty_queue.faults.throttle_workers()
    with (
        client_from_env(empty_queue.client_env()) as client,
        pytest.raises(NotReady, match="no free GPU of the allowed types") as info,
    ):
        await_worker(client.health, no_stale_workers, ReadyTimeouts(0.5), lambda _: None)

    assert info.value.exit_status == 5


def test_a_new_endpoint_may_be_unknown_for_a_while(empty_queue: RunPodPlatform) -> None:
    """A 404 for a new endpoint is reported and polled again, until a worker is ready."""
    messages: list[str] = []
    empty_queue.faults.respond("health", 404, times=2)
    with client_from_env(empty_queue.client_env()) as client, ScriptedWorker(empty_queue, image_result):
        await_worker(client.health, no_stale_workers, ReadyTimeouts(30), messages.append)

    assert "does not know the endpoint yet" in messages[0]


def test_a_rejected_key_is_an_error(empty_queue: RunPodPlatform) -> None:
    """A wrong key raises RequestError."""
    with (
        client_from_env({**empty_queue.client_env(), "RUNPOD_API_KEY": "wrong"}) as client,
        pytest.raises(RequestError),
    ):
        await_worker(client.health, no_stale_workers, ReadyTimeouts(30), lambda _: None)


def test_workers_with_old_settings_do_not_count(empty_queue: RunPodPlatform) -> None:
    """The wait lasts while there are workers with old settings, and their number is reported."""
    counts = [2, 1, 0]
    messages: list[str] = []
    with client_from_env(empty_queue.client_env()) as client, ScriptedWorker(empty_queue, image_result):
        empty_queue.wait_until(lambda: empty_queue.takes)
        await_worker(client.health, lambda: counts.pop(0), ReadyTimeouts(30), messages.append)

    assert [line.split("  ")[-1] for line in messages[:2]] == [
        "workers with the old settings: 2; RunPod replaces them",
        "workers with the old settings: 1; RunPod replaces them",
    ]


def test_the_wait_for_workers_with_old_settings_is_limited(empty_queue: RunPodPlatform) -> None:
    """If a worker with old settings remains, the wait ends after `stale_s` without an error."""
    with client_from_env(empty_queue.client_env()) as client, ScriptedWorker(empty_queue, image_result):
        empty_queue.wait_until(lambda: empty_queue.takes)
        await_worker(client.health, lambda: 1, ReadyTimeouts(30, stale_s=0.5), lambda _: None)


def test_a_deployment_reads_the_workers(deploy_setup: DeploySetup) -> None:
    """A deployment asks for workers with old settings, and succeeds even if RunPod responds with 404."""
    deploy_setup.account.workers = [{"id": "w", "status": "IDLE", "isStale": False}]
    assert deploy_setup.deploy("--image").status == 0
    deploy_setup.account.faults.respond("GET /serverless/ep/workers", 404)
    ended = deploy_setup.deploy("--image")

    assert ended.status == 0
    assert "Nothing to do" in ended.err
    assert "GET /serverless/ep/workers" in [each.line for each in deploy_setup.account.received]


def test_no_worker_in_time_leaves_the_endpoint(deploy_setup: DeploySetup, platform: RunPodPlatform) -> None:
    """The command exits with 5 and says how to continue; the next run generates the test image."""
    platform.faults.throttle_workers()
    try:
        ended = deploy_setup.deploy("--image", "--wait-timeout", "0.5")
    finally:
        platform.faults.clear()
    again = deploy_setup.shell("deploy", "--image")

    assert ended.status == 5
    assert "--image" in ended.err
    assert again.status == 0, again.err
    assert Path("flux.png").exists()


def test_the_output_path_is_checked_first(deploy_setup: DeploySetup) -> None:
    """An invalid path of -o is an error before RunPod is called; into an existing folder the image is written."""
    Path("file").write_text("")
    rejected = deploy_setup.deploy("--image", "-o", "file/x.png")
    assert deploy_setup.account.received == []
    Path("y").mkdir()
    in_folder = deploy_setup.deploy("--image", "-o", "y")

    assert (rejected.status, "-o file/x.png" in rejected.err) == (2, True)
    assert in_folder.status == 0
    assert list(Path("y").iterdir())


def test_the_queue_s_url_is_returned_by_runpod() -> None:
    """The queue's URL is a variable if it differs from the default, and empty if RunPod does not return it."""
    usual = "https://api.runpod.ai/v2"
    endpoint = {"id": "ep", "requestUrls": {"run": f"{usual}/ep/run"}}
    other = {"id": "ep", "requestUrls": {"run": "https://eu.example/v2/ep/run"}}

    assert "RUNPOD_ENDPOINT_BASE_URL" not in client_variables(endpoint, usual)
    assert client_variables(other, usual)["RUNPOD_ENDPOINT_BASE_URL"] == "https://eu.example/v2"
    assert queue_url({"id": "ep"}) == queue_url({"id": "ep", "requestUrls": {"run": "x"}}) == ""
