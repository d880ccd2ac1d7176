"""Waiting for a ready endpoint: progress messages, and that every wait ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from comfy_client.client import client_from_env
from comfy_client.deploy.apply import NotReady, ReadyTimeouts, await_worker, client_variables, queue_url
from comfy_core.errors import RequestError
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import ScriptedWorker, pictured
from tests.deploy.conftest import Desk


@pytest.fixture
def empty() -> Iterator[RunPodPlatform]:
    """An endpoint's queue without workers."""
    with RunPodPlatform(long_poll_s=0.1) as platform:
        yield platform


def none_stale() -> int:
    """Return that no worker has old settings."""
    return 0


def test_a_cold_start_is_waited_for(empty: RunPodPlatform) -> None:
    """Each state of the workers is reported once, until one is ready."""
    told: list[str] = []

    def tell(sentence: str) -> None:
        told.append(sentence)
        empty.faults.clear()

    empty.faults.cold_start(60)
    with client_from_env(empty.client_env()) as client, ScriptedWorker(empty, pictured):
        await_worker(client.health, none_stale, ReadyTimeouts(30), tell)

    assert "a cold start" in told[0]
    assert "1 worker is idle" in told[-1]
    assert len(told) <= 3


def test_an_endpoint_without_workers_gets_its_job_all_the_same(empty: RunPodPlatform) -> None:
    """With a minimum of 0 a worker may start only for a job, so the wait without a job is short."""
    told: list[str] = []
    with client_from_env(empty.client_env()) as client:
        await_worker(client.health, none_stale, ReadyTimeouts(30, unasked=0.1), told.append)

    assert "no worker yet" in told[0]


def test_no_gpu_in_time_is_an_outcome_of_its_own(empty: RunPodPlatform) -> None:
    """It ends with the reason, and with the exit status of an expired wait."""
    empty.faults.throttle_workers()
    with (
        client_from_env(empty.client_env()) as client,
        pytest.raises(NotReady, match="no free GPU of the allowed types") as caught,
    ):
        await_worker(client.health, none_stale, ReadyTimeouts(0.5), lambda _: None)

    assert caught.value.exit_status == 5


def test_a_new_endpoint_may_be_unknown_for_a_while(empty: RunPodPlatform) -> None:
    """A new endpoint may be unknown at first; a failed poll is reported and retried."""
    told: list[str] = []
    empty.faults.respond("health", 404, times=2)
    with client_from_env(empty.client_env()) as client, ScriptedWorker(empty, pictured):
        await_worker(client.health, none_stale, ReadyTimeouts(30), told.append)

    assert "does not know the endpoint yet" in told[0]


def test_a_queue_that_refuses_is_an_error_at_once(empty: RunPodPlatform) -> None:
    """A key without permission fails at once."""
    with client_from_env({**empty.client_env(), "RUNPOD_API_KEY": "wrong"}) as client, pytest.raises(RequestError):
        await_worker(client.health, none_stale, ReadyTimeouts(30), lambda _: None)


def test_workers_of_the_old_settings_do_not_count(empty: RunPodPlatform) -> None:
    """After an update the wait lasts until RunPod has replaced the workers with old settings."""
    counts = [2, 1, 0]
    told: list[str] = []
    with client_from_env(empty.client_env()) as client, ScriptedWorker(empty, pictured):
        empty.wait_until(lambda: empty.takes, 10)
        await_worker(client.health, lambda: counts.pop(0), ReadyTimeouts(30), told.append)

    assert [line.split("  ")[-1] for line in told[:2]] == [
        "workers with the old settings: 2; RunPod replaces them",
        "workers with the old settings: 1; RunPod replaces them",
    ]


def test_but_they_are_not_waited_for_for_ever(empty: RunPodPlatform) -> None:
    """A worker that stays busy does not fail the deployment."""
    with client_from_env(empty.client_env()) as client, ScriptedWorker(empty, pictured):
        empty.wait_until(lambda: empty.takes, 10)
        await_worker(client.health, lambda: 1, ReadyTimeouts(30, stale=0.5), lambda _: None)


def test_a_deployment_looks_at_runpod_s_workers(desk: Desk) -> None:
    """Stale workers are counted; without the information the count is 0."""
    desk.account.workers = [{"id": "w", "status": "IDLE", "isStale": False}]
    assert desk.deploy("--picture").status == 0
    desk.account.faults.respond("GET /serverless/ep/workers", 404)
    ended = desk.deploy("--picture")

    assert ended.status == 0
    assert "Nothing to do" in ended.err
    assert "GET /serverless/ep/workers" in [each.line for each in desk.account.received]


def test_no_worker_in_time_leaves_the_endpoint(desk: Desk, platform: RunPodPlatform) -> None:
    """The command exits with 5 and says how to continue; created resources are kept."""
    platform.faults.throttle_workers()
    try:
        ended = desk.deploy("--picture", "--wait-timeout", "0.5")
    finally:
        platform.faults.clear()
    again = desk.shell("deploy", "--picture")

    assert ended.status == 5
    assert "--picture" in ended.err
    assert again.status == 0, again.err
    assert Path("flux.png").exists()


def test_a_picture_goes_to_a_folder_that_is_there(desk: Desk) -> None:
    """An invalid output folder is rejected before RunPod is called; a valid one receives the image."""
    Path("file").write_text("")
    nowhere = desk.deploy("--picture", "-o", "file/x.png")
    assert desk.account.received == []
    Path("y").mkdir()
    in_folder = desk.deploy("--picture", "-o", "y")

    assert (nowhere.status, "-o file/x.png" in nowhere.err) == (2, True)
    assert in_folder.status == 0
    assert list(Path("y").iterdir())


def test_the_queue_s_address_is_what_runpod_says() -> None:
    """It is printed if it differs from the default, and not guessed if RunPod does not return it."""
    usual = "https://api.runpod.ai/v2"
    endpoint = {"id": "ep", "requestUrls": {"run": f"{usual}/ep/run"}}
    other = {"id": "ep", "requestUrls": {"run": "https://eu.example/v2/ep/run"}}

    assert "RUNPOD_ENDPOINT_BASE_URL" not in client_variables(endpoint, usual)
    assert client_variables(other, usual)["RUNPOD_ENDPOINT_BASE_URL"] == "https://eu.example/v2"
    assert queue_url({"id": "ep"}) == queue_url({"id": "ep", "requestUrls": {"run": "x"}}) == ""
