"""Calls and their jobs: kills, stops, repeated calls, disconnected callers, failed and cancelled jobs, the web page."""

from __future__ import annotations

import base64
import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from openai.types import ImagesResponse

from bench.shim_process import KEY, SECRET, ShimProcess
from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from simulators.http_server import free_port
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_entry, image_result, png
from simulators.waiting import until
from tests.browser import browser
from tests.gateway.openai.conftest import caller

pytestmark = pytest.mark.slow
AUTH = (KEY, SECRET)
BEARER = {"Authorization": f"Bearer {KEY}:{SECRET}"}
CALL: Body = {"prompt": "a knight", "size": "64x64", "seed": 5}
CALLS = 50
RETRIES = 100
"""More than the SDK needs while the server starts again, on a machine of any speed."""


@pytest.fixture
def server(platform: RunPodPlatform, tmp_path: Path) -> Iterator[ShimProcess]:
    """A server in front of the endpoint whose worker holds its jobs. It has the same port at each start."""
    flags = (f"--port={free_port()}",)
    environment = {**platform.client_env(), "COMFY_CLIENT_GPU_USD_PER_S": "0.001"}
    with ShimProcess(environment, tmp_path / "serve", *flags, command=("serve",)) as server:
        yield server


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls that wait."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


def jobs(server: ShimProcess) -> list[Any]:
    """Return the records of the jobs from Scenario's API."""
    found: list[Any] = requests.get(f"{server.base_url}/jobs?pageSize=100", auth=AUTH, timeout=60).json()["jobs"]
    return found


def post(server: ShimProcess, body: Body = CALL, key: str = "") -> requests.Response:
    """Send a call without the SDK. `key` is its Idempotency-Key, if it has one."""
    url = f"{server.base_url}/images/generations"
    return requests.post(url, json=body, headers={**BEARER, "Idempotency-Key": key}, timeout=300)


def sdk_call(server: ShimProcess) -> ImagesResponse:
    """Send a call with the SDK, which repeats it by itself."""
    with caller(server, max_retries=RETRIES) as client:
        return client.images.generate(prompt="a knight", size="64x64")


def await_submission(server: ShimProcess) -> None:
    """Wait until the only job of the server has the endpoint's id."""
    assert until(lambda: [1 for each in jobs(server) if "endpointJobId" in each["metadata"]])


def test_a_kill_in_the_middle_is_not_paid_twice(
    server: ShimProcess, platform: RunPodPlatform, released: threading.Event
) -> None:
    """The server is killed while the SDK waits for 50 equal calls: each call gets the image of a job of its own.

    The SDK repeats the calls by itself. Each job is sent to the endpoint once.
    """
    with ThreadPoolExecutor(CALLS) as pool:
        waiting = [pool.submit(sdk_call, server) for _ in range(CALLS)]
        assert until(lambda: len([job for job in jobs(server) if "endpointJobId" in job["metadata"]]) == CALLS)
        server.kill()
        server.start()
        released.set()
        responses = [each.result(300) for each in waiting]

    seeds = {image.model_extra["seed"] for each in responses for image in each.data or [] if image.model_extra}
    assert len(seeds) == CALLS
    assert len(jobs(server)) == platform.submissions == CALLS


def test_repeated_equal_calls_get_different_jobs(
    server: ShimProcess, platform: RunPodPlatform, released: threading.Event
) -> None:
    """After a kill, two equal calls are repeated a different number of times: each gets one of the two jobs."""

    def stream(count: int) -> requests.Response:
        url = f"{server.base_url}/images/generations"
        headers = {**BEARER, "x-stainless-retry-count": str(count)}
        return requests.post(url, json={**CALL, "stream": True}, headers=headers, stream=True, timeout=300)

    first = [stream(0), stream(0)]
    assert until(lambda: len([job for job in jobs(server) if "endpointJobId" in job["metadata"]]) == 2)
    server.kill()
    server.start()
    again = [stream(3), stream(5)]
    released.set()

    assert len({json.loads(each.text.rpartition("data: ")[2])["job_id"] for each in again}) == 2
    assert platform.submissions == 2
    for each in first:
        each.close()


def test_a_stop_ends_the_call_and_not_the_job(
    server: ShimProcess, platform: RunPodPlatform, released: threading.Event, pool: ThreadPoolExecutor
) -> None:
    """A stop ends a waiting call with 503, which the SDK repeats; the same Idempotency-Key then gets the images."""
    waiting = pool.submit(post, server, key="order-7")
    await_submission(server)
    assert server.stop() == 0
    stopped = waiting.result(300)
    server.start()
    released.set()
    again = post(server, key="order-7")
    other = post(server, {**CALL, "seed": 6}, key="order-7")

    assert (stopped.status_code, stopped.headers["x-should-retry"]) == (503, "true")
    assert int(stopped.headers["Retry-After"]) > 0
    assert again.json()["job_id"] in stopped.json()["error"]["message"]
    assert base64.b64decode(again.json()["data"][0]["b64_json"]) == png(8, 5)
    assert other.status_code == 400
    assert "Idempotency-Key" in other.json()["error"]["message"]
    assert platform.submissions == 1


def test_a_repeated_call_gets_no_job_of_a_key(
    server: ShimProcess, platform: RunPodPlatform, released: threading.Event
) -> None:
    """A repeated call without an Idempotency-Key, whose first attempt has not arrived, is not that of a keyed call."""
    released.set()
    first = post(server, key="order-7").json()["job_id"]
    headers = {**BEARER, "x-stainless-retry-count": "1"}
    url = f"{server.base_url}/images/generations"
    other = requests.post(url, json=CALL, headers=headers, timeout=300).json()["job_id"]

    assert other != first
    assert platform.submissions == 2


def test_equal_calls_are_two_jobs(server: ShimProcess, platform: RunPodPlatform, released: threading.Event) -> None:
    """Without a retry count or an Idempotency-Key, a call with the same parameters is a new job."""
    released.set()
    ids = {post(server).json()["job_id"] for _ in range(2)}

    assert len(ids) == platform.submissions == 2


def test_a_job_continues_without_its_caller(
    server: ShimProcess, platform: RunPodPlatform, released: threading.Event
) -> None:
    """A job whose caller closes the connection succeeds, also that of a stream. The images are on the web page."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    headers = {**BEARER, "Content-Type": "application/json"}
    connection.request("POST", "/v1/images/generations", json.dumps(CALL), headers)
    assert until(lambda: len(jobs(server)) == 1)
    connection.close()
    with caller(server) as client, client.images.generate(prompt="a knight", stream=True):
        assert len(jobs(server)) == 2
    released.set()

    assert until(lambda: {each["status"] for each in jobs(server)} == {"success"})
    assert all(each["metadata"]["assetIds"] for each in jobs(server))
    assert platform.submissions == 2


def test_a_job_is_on_the_web_page_and_runs_again(
    server: ShimProcess, platform: RunPodPlatform, released: threading.Event
) -> None:
    """A job is a row of the web page with its prompt and costs. It runs again from there, with the same inputs."""
    released.set()
    response = post(server, {**CALL, "quality": "low", "user": "player-1"}).json()
    [row] = requests.get(f"{server.base_url}/shim/jobs", auth=AUTH, timeout=60).json()["jobs"]
    url = f"{server.base_url}/shim/jobs/{response['job_id']}/again"
    again = requests.post(url, json={"seed": "same"}, auth=AUTH, timeout=60).json()["job"]
    assert until(lambda: {each["status"] for each in jobs(server)} == {"success"})
    first, second = (sent.input for sent in platform.jobs.values())

    assert row["job"]["jobId"] == response["job_id"]
    assert (row["prompt"], row["side"], row["usd"]) == ("a knight", "own", response["cost_usd"])
    shown = row["job"]["metadata"]["input"]
    assert (shown["width"], shown["numInferenceSteps"], shown["openai"]["user"]) == (64, 12, "player-1")
    assert again["jobId"] != response["job_id"]
    assert first == second


def test_a_job_that_is_cancelled_on_the_page_is_a_conflict(
    server: ShimProcess, platform: RunPodPlatform, pool: ThreadPoolExecutor
) -> None:
    """The caller of a job that is cancelled gets a ConflictError, and the SDK does not repeat the call."""
    waiting = pool.submit(sdk_call, server)
    await_submission(server)
    [job] = jobs(server)
    url = f"{server.base_url}/jobs/{job['jobId']}/action"
    requests.post(url, json={"action": "cancel"}, auth=AUTH, timeout=60)

    with pytest.raises(openai.ConflictError, match="cancelled") as raised:
        waiting.result(300)
    assert raised.value.code == "cancelled"
    assert platform.submissions == 1


FAILURES = {
    ErrorCode.EXECUTION_FAILED: openai.InternalServerError,
    ErrorCode.OUT_OF_MEMORY: openai.InternalServerError,
    ErrorCode.MODEL_MISSING: openai.BadRequestError,
    ErrorCode.COMFYUI_UNAVAILABLE: openai.InternalServerError,
    ErrorCode.DEADLINE_EXCEEDED: openai.InternalServerError,
}
STATUSES = {ErrorCode.MODEL_MISSING: 400, ErrorCode.COMFYUI_UNAVAILABLE: 503, ErrorCode.DEADLINE_EXCEEDED: 504}


def test_a_failed_job_is_not_repeated(tmp_path: Path) -> None:
    """A job's failure has the class of its cause, with the code and the job's id. The SDK does not pay for it again.

    In a stream, the failure is an APIError.
    """
    results = iter([*FAILURES, ErrorCode.OUT_OF_MEMORY])

    def fail(_: Body) -> Body:
        return {"error": ErrorReport.because(next(results), "The worker says so").to_json()}

    with (
        RunPodPlatform(long_poll_s=0.5) as platform,
        ScriptedWorker(platform, fail),
        ShimProcess(platform.client_env(), tmp_path, command=("serve",)) as server,
        caller(server, max_retries=2) as client,
    ):
        for code, kind in FAILURES.items():
            with pytest.raises(kind, match="The worker says so") as raised:
                client.images.generate(prompt="a knight")
            assert raised.value.code == code.value
            assert raised.value.status_code == STATUSES.get(code, 500)
            assert "job_id" in str(raised.value.body)
        with pytest.raises(openai.APIError, match="The worker says so"):
            list(client.images.generate(prompt="a knight", stream=True))
        assert platform.submissions == len(FAILURES) + 1


def test_an_image_with_the_type_of_a_page_runs_no_script(tmp_path: Path) -> None:
    """A result that claims to be HTML is served in a sandbox, so its script cannot read the page's token."""
    page = b"<title>safe</title><script>document.title = 'script'</script>"

    def respond(_: Body) -> Body:
        return {"output": {"images": [image_entry(page, 1, mime_type="text/html")]}}

    with (
        RunPodPlatform(long_poll_s=0.5) as platform,
        ScriptedWorker(platform, respond),
        ShimProcess(platform.client_env(), tmp_path, command=("serve",)) as server,
        browser() as chromium,
    ):
        url = post(server, {**CALL, "response_format": "url"}).json()["data"][0]["url"]
        window = chromium.new_page()
        response = window.goto(url)
        assert response is not None
        assert response.body() == page
        assert window.title() == "safe"


def test_too_many_calls_wait(tmp_path: Path) -> None:
    """A call above the rate limit of its key is a RateLimitError with the seconds to wait."""
    environment = {"SCENARIO_SHIM_REQUESTS_PER_MINUTE": "1"}
    with (
        RunPodPlatform(long_poll_s=0.5) as platform,
        ScriptedWorker(platform, image_result),
        ShimProcess({**platform.client_env(), **environment}, tmp_path, command=("serve",)) as server,
        caller(server) as client,
    ):
        client.images.generate(prompt="a knight")
        with pytest.raises(openai.RateLimitError) as raised:
            client.images.generate(prompt="a knight")

    assert (raised.value.code, raised.value.type) == ("rate_limited", "rate_limit_error")
    assert int(raised.value.response.headers["Retry-After"]) > 0
