"""Deficiencies of RunPod's own client that this client does not have, unless another test shows it.

The row numbers in the names of the tests are those of the table in docs/reference/runpod.md#what-the-sdks-client-lacks.
The tests without a number are about secrets in logs, the import, and lost polls.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import comfy_client
from bench.worker_setup import ROOT
from comfy_client.aio import async_client_from_env
from comfy_client.client import Client, client_from_env
from comfy_client.job import ProviderUnavailable, Queued, Running
from comfy_client.providers.interface import JobOptions, JobState
from comfy_core.errors import JobCancelled, RequestError, Unauthorized, WaitTimeout
from simulators.http_server import HttpHandler, HttpServer
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import ScriptedWorker, image_result
from tests.fakes.certificate import write_certificate

pytestmark = pytest.mark.slow


class FailingTwice(HttpHandler):
    """Responds with 502, with 500, and then with the health of an endpoint."""

    statuses = (502, 500, 200)
    requests = 0

    def do_GET(self) -> None:
        """Count the request, and send the next response."""
        status = self.statuses[type(self).requests]
        type(self).requests += 1
        self.respond(status, json.dumps({"jobs": {}, "workers": {"idle": 1}}).encode())


@pytest.fixture
def secure_url(tmp_path: Path) -> Iterator[str]:
    """The base URL of an https server whose first two responses are 502 and 500."""
    certificate = write_certificate(tmp_path / "server.pem", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    failing_server = HttpServer(FailingTwice)
    failing_server.socket = context.wrap_socket(failing_server.socket, server_side=True)
    with failing_server:
        yield f"https://127.0.0.1:{failing_server.server_port}/v2"


def test_row_3_polls_are_repeated_over_https_too(
    secure_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a 502 and a 500 over TLS, the third request for the health succeeds."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "server.pem"))
    environment = {"RUNPOD_API_KEY": "k", "RUNPOD_ENDPOINT_ID": "ep", "RUNPOD_ENDPOINT_BASE_URL": secure_url}
    with client_from_env(environment) as client:
        assert client.health().why == "idle"

    assert FailingTwice.requests == 3


def test_row_4_a_slow_platform_is_given_time(platform: RunPodPlatform, client: Client) -> None:
    """Submit and health accept a response after 10.5 s. RunPod's client waits only 10 s and 3 s."""
    platform.round_trip_s = 10.5
    with ThreadPoolExecutor() as pool:
        job, health = pool.submit(client.submit, prompt="x"), pool.submit(client.health)

        assert job.result(60).id in platform.jobs
        assert health.result(60).jobs


def test_row_7_the_events_of_a_cancelled_job_end(platform: RunPodPlatform, client: Client) -> None:
    """The events of a job that another handle has cancelled end with JobCancelled."""
    job = client.submit(prompt="x")
    events = job.events()

    assert next(events) == Queued(job.id)
    client.job(job.id).cancel()
    with pytest.raises(JobCancelled):
        list(events)
    assert platform.submissions == 1


def test_row_9_policy_is_typed_in_the_async_client_too(platform: RunPodPlatform) -> None:
    """JobOptions of the async client are sent as RunPod's policy; other tests show it for the synchronous client."""

    async def submit() -> None:
        async with async_client_from_env(platform.client_env()) as client:
            await client.submit(prompt="x", options=JobOptions(execution_timeout_s=30, low_priority=True))

    asyncio.run(submit())
    [job] = platform.jobs.values()
    assert job.body["policy"] == {"executionTimeout": 30_000, "lowPriority": True}


def test_row_12_async_calls_raise_typed_errors(platform: RunPodPlatform) -> None:
    """The async client's calls raise typed errors, return an ended job, and need no session from the caller."""

    async def story() -> None:
        async with async_client_from_env(platform.client_env()) as client:
            platform.faults.respond("run", 401)
            with pytest.raises(Unauthorized):
                await client.submit(prompt="x")
            job = await client.submit(prompt="x")
            with pytest.raises(WaitTimeout):
                await job.wait(0.1)
            with ScriptedWorker(platform, image_result):
                await asyncio.to_thread(platform.wait_for, job.id)
            assert (await job.result()).images
            assert (await job.status()).state is JobState.SUCCEEDED
            failed = await client.submit(prompt="x")
            await failed.cancel()
            with pytest.raises(JobCancelled):
                await failed.wait()
            assert await client.purge_queue() == 0
            assert (await client.health()).jobs["completed"] == 1

    asyncio.run(story())


def test_row_13_nothing_is_global(platform: RunPodPlatform) -> None:
    """Two clients in one process send to their own endpoints, each with its own key."""
    with RunPodPlatform(api_key="rpa_other", endpoint_id="other", long_poll_s=0.5) as other_platform:
        with client_from_env(platform.client_env()) as first, client_from_env(other_platform.client_env()) as second:
            first.submit(prompt="x")
            second.submit(prompt="x")
            second.submit(prompt="x")
        assert (platform.submissions, other_platform.submissions) == (1, 2)


def test_row_14_the_client_is_light() -> None:
    """The client has five direct dependencies.

    `import comfy_client` loads none of them, and takes less than 200 ms of CPU time.
    """
    text = (ROOT / "pyproject.toml").read_text()
    dependencies = text.partition("dependencies = [")[2].partition("]")[0]
    program = (
        "import sys, time; t = time.process_time(); import comfy_client; print(time.process_time() - t, *sys.modules)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
        )
        for _ in range(3)
    ]
    cpu_times_s, modules = zip(*(run.stdout.split(maxsplit=1) for run in runs), strict=True)

    names = [line.strip().strip('",').partition(">")[0] for line in dependencies.strip().splitlines()]
    assert names == ["argcomplete", "jsonschema", "pillow", "requests", "rich", "tomlkit", "websocket-client"]
    assert min(map(float, cpu_times_s)) < 0.2
    assert not {"argcomplete", "requests", "PIL", "jsonschema", "websocket", "rich", "tomlkit", "runpod"} & set(
        modules[0].split()
    )
    assert set(comfy_client.__all__) <= set(dir(comfy_client))
    assert all(getattr(comfy_client, name) for name in comfy_client.__all__)


def test_nothing_secret_is_logged(platform: RunPodPlatform, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the key nor a prompt nor an image is logged, even at DEBUG."""
    caplog.set_level("DEBUG")
    with ScriptedWorker(platform, image_result):
        client.txt2img("a very secret castle")
    platform.faults.respond("run", 500)
    with pytest.raises(RequestError):
        client.submit(prompt="a very secret castle")

    for secret in (platform.api_key, "secret castle", "iVBOR"):
        assert secret not in caplog.text


def test_importing_reads_nothing() -> None:
    """`import comfy_client` opens only Python modules, and reads no environment variable."""
    program = """
import os, sys
import importlib, typing, __future__
opened = []
class ForbiddenEnvironment(dict):
    def __getitem__(self, name): raise AssertionError(name)
    get = __contains__ = __iter__ = __getitem__
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
os.environ = ForbiddenEnvironment()
import comfy_client
print([path for path in opened if not path.endswith((".py", ".pyc"))])
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )

    assert ended.stdout.strip() == "[]"


def test_a_failed_poll_is_reported_and_tolerated(platform: RunPodPlatform, client: Client) -> None:
    """Each failed poll is an event ProviderUnavailable; the job continues."""
    job = client.submit(prompt="x")
    platform.faults.respond("status", 503, times=2, headers={"Retry-After": "0"})
    with ScriptedWorker(platform, image_result):
        received = list(job.events())

    assert [type(each) for each in received[:3]] == [Queued, ProviderUnavailable, ProviderUnavailable]
    assert any(isinstance(each, Running) for each in received)
