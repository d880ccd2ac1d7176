"""Hostile calls and uploads: each is limited, and other calls are served meanwhile."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import http.client
import json
import select
import socket
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from bench.shim_process import KEY, NO_ENDPOINT, OTHER_KEY, OTHER_SECRET, SECRET, ShimProcess
from comfy_client.gateway.connections import HEAD_TIMEOUT_S
from comfy_client.gateway.scenario.bodies_reader import BODY_GRACE_S
from comfy_client.gateway.scenario.throttle import FAILURES_PER_MINUTE
from comfy_client.gateway.scenario.uploads import MAX_PENDING, MAX_PENDING_BYTES
from comfy_core.images.codec import MAX_BYTES
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import ScriptedWorker, image_result, incompressible_png, png
from simulators.waiting import until

pytestmark = pytest.mark.slow
AUTH = (KEY, SECRET)
OTHER = (OTHER_KEY, OTHER_SECRET)
PATH = "/generate/custom/model_bfl-flux-1-dev"
JSON = {"Content-Type": "application/json"}
BASIC = f"Basic {base64.b64encode(f'{KEY}:{SECRET}'.encode()).decode()}"
WAIT_S = 60.0


@pytest.fixture
def shim(shared_shim: ShimProcess) -> ShimProcess:
    """The shim that all tests of this module share."""
    return shared_shim


def unknown_keys(count: int) -> bytes:
    """Return the body of a call with `count` unknown keys."""
    return json.dumps({"prompt": "a knight", **{f"key{number}": 1 for number in range(count)}}).encode()


@pytest.mark.parametrize("query", ["", "?dryRun=true"])
@pytest.mark.parametrize(
    "body",
    [
        unknown_keys(900),
        unknown_keys(1_100),
        unknown_keys(20_000),
        unknown_keys(500_000),
        b'{"prompt": "a", "x": [' + b"{}," * 3_000_000 + b"1]}",
    ],
    ids=["900 keys", "1,100 keys", "20,000 keys", "500,000 keys", "3,000,000 objects"],
)
def test_a_body_of_many_values_is_rejected_at_once(shim: ShimProcess, body: bytes, query: str) -> None:
    """A body of many values gets a short response, for which the shim needs less than 3 s of the processor."""
    process = psutil.Process(shim.process_id)
    begun_at_s = process.cpu_times().user
    response = requests.post(f"{shim.base_url}{PATH}{query}", data=body, auth=AUTH, headers=JSON, timeout=WAIT_S)
    used_s = process.cpu_times().user - begun_at_s

    assert response.status_code in {200, 269, 400, 413}
    assert (response.status_code in {200, 269}) == (len(body) < 13_000)
    assert len(response.content) < 5_000
    assert used_s < 3


def test_a_job_keeps_a_bounded_part_of_its_call(shim: ShimProcess) -> None:
    """Of 900 unknown keys 880 are only counted, and the job's record has less than 5 kB."""
    body = {"prompt": "a knight", **{f"key{number}": "x" * 100 for number in range(900)}}
    job = requests.post(shim.base_url + PATH, json=body, auth=AUTH, timeout=WAIT_S).json()["job"]

    assert "880 more keys are unknown" in job["metadata"]["hint"]
    assert len(json.dumps(job)) < 5_000


def test_a_large_image_blocks_no_other_caller(shim: ShimProcess) -> None:
    """While the decoding of a large image hangs, other calls are served and another image is stored."""
    upload(shim, png())  # starts the process that decodes images
    [decoder] = psutil.Process(shim.process_id).children()
    image = incompressible_png(1400, 1400)
    body = json.dumps({"name": "noise.png", "image": base64.b64encode(image).decode()})

    decoder.suspend()
    try:
        with contextlib.closing(http.client.HTTPConnection(shim.url.removeprefix("http://"))) as connection:
            connection.request("POST", "/v1/assets", body, {**JSON, "Authorization": BASIC})
            assert until(lambda: has_input(decoder))
            assert requests.get(f"{shim.url}/health", timeout=WAIT_S).status_code == 200
            assert upload(shim, image) == 200
            assert not select.select([connection.sock], [], [], 0)[0], "the first image was not decoded yet"
            decoder.resume()
            assert connection.getresponse().status == 200
    finally:
        decoder.resume()


def has_input(process: psutil.Process) -> bool:
    """Return whether the standard input of a process has bytes that it has not read."""
    with Path(f"/proc/{process.pid}/fd/0").open("rb", buffering=0) as pipe:
        unread = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
    return any(unread)


def test_eight_large_images_at_once_are_stored(shim: ShimProcess) -> None:
    """Eight large images that are uploaded at once as base64 are all stored."""
    image = incompressible_png(1400, 1400)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(partial(upload, shim), [image] * 8)) == [200] * 8


def upload(shim: ShimProcess, image: bytes) -> int:
    """Upload an image as base64; return the status of the response."""
    body = {"name": "noise.png", "image": base64.b64encode(image).decode()}
    return requests.post(f"{shim.base_url}/assets", json=body, auth=AUTH, timeout=120).status_code


def test_half_open_connections_are_closed(shim: ShimProcess) -> None:
    """3,000 connections with no or half a request are closed, not before the timeout; other calls are served before."""
    host, port = shim.url.removeprefix("http://").split(":")
    begun_at = time.monotonic()
    connections = [socket.create_connection((host, int(port))) for _ in range(3_000)]
    for connection in connections[::2]:
        connection.send(b"GET /health HTTP/1.1\r\nHost: x\r\n")
    open_connections = {connection.fileno(): connection for connection in connections}

    def all_are_closed() -> bool:
        poll = select.poll()
        for number in open_connections:
            poll.register(number, select.POLLIN | select.POLLHUP)
        for number, _ in poll.poll(100):
            open_connections.pop(number).close()
        return not open_connections

    for _ in range(5):
        assert requests.get(f"{shim.url}/health", timeout=WAIT_S).status_code == 200
    assert not all_are_closed()
    assert until(all_are_closed, HEAD_TIMEOUT_S + WAIT_S)
    assert time.monotonic() - begun_at >= HEAD_TIMEOUT_S - 1


def test_a_slow_body_times_out(shim: ShimProcess) -> None:
    """A caller that sends single bytes gets 408, and its connection is closed."""
    host, port = shim.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=BODY_GRACE_S + WAIT_S) as connection:
        head = f"POST /assets HTTP/1.1\r\nHost: x\r\nAuthorization: {BASIC}\r\nContent-Length: 9999\r\n\r\n"
        connection.sendall(head.encode())
        received = b""

        def is_closed() -> bool:
            nonlocal received
            if not select.select([connection], [], [], 0.5)[0]:
                connection.send(b" ")
                return False
            data = connection.recv(65_536)
            received += data
            return not data

        assert until(is_closed, BODY_GRACE_S + WAIT_S)
    assert received.startswith(b"HTTP/1.1 408")
    assert b"arrived too slowly" in received


def test_guesses_are_limited_by_the_caller_s_address(shim: ShimProcess) -> None:
    """Guesses are counted and logged by the address in a trusted proxy's header; a valid key is still accepted."""

    def call(key: str, address: str) -> requests.Response:
        headers = {"X-Forwarded-For": address}
        return requests.get(f"{shim.base_url}/jobs", auth=(KEY, key), headers=headers, timeout=WAIT_S)

    guesses = [call("guess 0", "192.0.2.7")]
    while guesses[-1].status_code == 401 and len(guesses) < 3 * FAILURES_PER_MINUTE:
        guesses.append(call(f"guess {len(guesses)}", "192.0.2.7"))

    # A minute may end between two guesses, and then one or two more are possible.
    assert guesses[-1].status_code == 429
    assert len(guesses) > FAILURES_PER_MINUTE
    assert int(guesses[-1].headers["retry-after"]) >= 1
    assert {"reason", "message", "trace_id", "remainingSeconds"} <= guesses[-1].json().keys()
    assert call(SECRET, "192.0.2.7").status_code == 200
    assert call("guess", "192.0.2.8").status_code == 401
    assert "wrong key from 192.0.2.7" in shim.log
    assert "192.0.2.7: GET '/v1/jobs': 429" in shim.log


def test_only_a_trusted_proxy_s_headers_are_used(tmp_path: Path, shim: ShimProcess) -> None:
    """An image's URL has the scheme in a trusted proxy's header; without trust it has the connection's scheme."""
    asset = {"name": "a.png", "image": base64.b64encode(png()).decode()}
    headers = {"X-Forwarded-Proto": "https"}
    with ShimProcess(NO_ENDPOINT, tmp_path) as untrusting_shim:
        urls = [
            requests.post(f"{each.base_url}/assets", json=asset, auth=AUTH, headers=headers, timeout=WAIT_S).json()
            for each in (shim, untrusting_shim)
        ]

    assert [url["asset"]["url"].partition(":")[0] for url in urls] == ["https", "http"]


# --- multipart uploads


def create_upload(shim: ShimProcess, parts: int, auth: tuple[str, str] = AUTH) -> Any:  # noqa: ANN401 - JSON
    """Send a call that creates an upload; return the response."""
    body = {"fileName": "a.png", "contentType": "image/png", "kind": "image", "parts": parts}
    return requests.post(f"{shim.base_url}/uploads", json=body, auth=auth, timeout=WAIT_S)


def put_part(part: Any, size: int) -> requests.Response:  # noqa: ANN401 - JSON
    """Put a part of `size` zero bytes; return the response."""
    return requests.put(part["url"], data=bytes(size), timeout=WAIT_S)


def test_the_parts_of_an_upload_are_limited_together(shim: ShimProcess) -> None:
    """A part that makes the parts larger than the limit of an image is rejected, until another part is smaller."""
    first, second = create_upload(shim, 2).json()["upload"]["parts"]

    assert put_part(first, MAX_BYTES - 10).status_code == 200
    rejected = put_part(second, 11)
    assert rejected.status_code == 413
    assert "The maximum for all parts of an image is" in rejected.json()["reason"]
    assert "in parts" not in rejected.json()["reason"]
    assert put_part(first, MAX_BYTES - 20).status_code == 200
    assert put_part(second, 11).status_code == 200


def test_the_uploads_of_a_key_are_limited_together(tmp_path: Path) -> None:
    """For each key the number and the total bytes of incomplete uploads are limited; another key is not affected."""
    with ShimProcess(NO_ENDPOINT, tmp_path) as shim:
        uploads = [create_upload(shim, 1).json()["upload"] for _ in range(MAX_PENDING)]
        rejected = create_upload(shim, 1)
        sizes = [put_part(upload["parts"][0], MAX_BYTES).status_code for upload in uploads[:5]]

        assert rejected.status_code == 429
        assert rejected.headers["retry-after"]
        assert sizes == [200] * (MAX_PENDING_BYTES // MAX_BYTES) + [413]
        assert create_upload(shim, 1, OTHER).status_code == 200
        stored_bytes = sum(file.stat().st_size for file in (tmp_path / "uploads").rglob("*") if file.is_file())
        assert stored_bytes == MAX_PENDING_BYTES


def test_a_failed_upload_accepts_no_parts(shim: ShimProcess) -> None:
    """If the file of an upload is not an image, the upload is `failed` with the reason, and accepts no more parts."""
    upload = create_upload(shim, 1).json()["upload"]
    put_part(upload["parts"][0], 1000)
    url = f"{shim.base_url}/uploads/{upload['id']}"
    done = requests.post(f"{url}/action", json={"action": "complete"}, auth=AUTH, timeout=WAIT_S).json()["upload"]

    assert done["status"] == "failed"
    assert "not an image" in done["errorMessage"]
    assert put_part(upload["parts"][0], 1000).status_code == 400


def test_parts_count_as_calls(tmp_path: Path) -> None:
    """A part counts as a call: when the calls of a key are used up, a part gets 429."""
    with ShimProcess({**NO_ENDPOINT, "SCENARIO_SHIM_REQUESTS_PER_MINUTE": "3"}, tmp_path) as shim:
        part = create_upload(shim, 1).json()["upload"]["parts"][0]

        assert [put_part(part, 10).status_code for _ in range(3)] == [200, 200, 429]


def test_forty_five_jobs_may_be_polled_every_three_seconds(tmp_path: Path) -> None:
    """The default limit of polls allows the 900 polls of 45 jobs in a minute."""
    with RunPodPlatform(long_poll_s=0.5) as platform, ScriptedWorker(platform, image_result, threads=4):
        limits = {"SCENARIO_SHIM_REQUESTS_PER_MINUTE": "600", "SCENARIO_SHIM_POLLS_PER_MINUTE": ""}
        with ShimProcess({**platform.client_env(), **limits}, tmp_path) as shim, requests.Session() as session:
            session.auth = AUTH
            body = {"prompt": "a knight", "width": 64, "height": 64}
            started = [session.post(shim.base_url + PATH, json=body, timeout=WAIT_S) for _ in range(45)]
            ids = [each.json()["job"]["jobId"] for each in started]
            polls = [session.get(f"{shim.base_url}/jobs/{job_id}", timeout=WAIT_S) for _ in range(20) for job_id in ids]

    assert {each.status_code for each in [*started, *polls]} == {200}
    assert len(polls) == 900
