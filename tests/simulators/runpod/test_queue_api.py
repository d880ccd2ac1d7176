"""The simulated RunPod platform: with the real SDK in production mode, and route by route."""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from simulators.runpod.queue_api import QueueJobState, RunPodPlatform, WorkerProcess

pytestmark = pytest.mark.slow
WORKER_SCRIPT = """
import asyncio, contextlib, os, runpod

cancelled = asyncio.Event()


@runpod.serverless.register_fitness_check
def models_are_there():
    if "UNFIT" in os.environ:
        raise RuntimeError("no models")


async def handler(job):
    match job["input"]:
        case {"return": value}:
            return value
        case {"raise": text}:
            raise ValueError(text)
        case {"progress": value, "gate": port}:
            runpod.serverless.progress_update(job, value)
            with contextlib.suppress(ConnectionError):
                reader, _ = await asyncio.open_connection("127.0.0.1", port)
                await reader.read()
            return "through the gate"
        case {"bytes": count}:
            return "x" * count
        case "hang":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
        case "await cancelled":
            await cancelled.wait()
            cancelled.clear()
            return "cancelled"


if __name__ == "__main__":
    runpod.serverless.start({
        "handler": handler,
        "concurrency_modifier": lambda _: int(os.environ.get("CONCURRENCY", "1")),
    })
"""
PINGS_EVERY_S = 1


@dataclass(frozen=True)
class HttpResponse:
    """A response of the platform."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - any JSON value
        """Return the parsed body."""
        return json.loads(self.text)


@dataclass(frozen=True)
class Caller:
    """Sends requests with a key to a platform, in place of a client or a worker."""

    platform: RunPodPlatform
    session: requests.Session
    authorization: str

    def get(self, path: str, **headers: str) -> HttpResponse:
        """GET a route of the endpoint; return the response."""
        return self.call("GET", f"{self.platform.endpoint_url}/{path}", headers=headers)

    def post(self, path: str, body: object = None) -> HttpResponse:
        """POST to a route of the endpoint; return the response."""
        return self.call("POST", f"{self.platform.endpoint_url}/{path}", data=json.dumps(body))

    def call(self, method: str, url: str, headers: Mapping[str, str] | None = None, **arguments: Any) -> HttpResponse:  # noqa: ANN401 - arguments of requests
        """Send a request to any URL; return the response."""
        headers = {"Authorization": self.authorization, **(headers or {})}
        response = self.session.request(method, url, headers=headers, timeout=60, **arguments)
        return HttpResponse(response.status_code, response.headers, response.text)

    def run(self, job_input: object, **envelope: object) -> str:
        """Submit a job; return its id."""
        return str(self.post("run", {"input": job_input, **envelope}).json["id"])

    def take(self) -> Any:  # noqa: ANN401 - any JSON value
        """Take the next job, as worker `w`; return the job."""
        return self.get("job-take/w?gpu=FAKE&job_in_progress=0").json

    def post_result(self, job_id: str, body: object) -> HttpResponse:
        """Post a result or progress, as worker `w`; return the response."""
        return self.post(f"job-done/w/{job_id}?gpu=FAKE&isStream=false", body)


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """Yield an HTTP session that ignores the environment's proxies."""
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture
def platform() -> Iterator[RunPodPlatform]:
    """Yield a platform without a worker."""
    with RunPodPlatform(long_poll_s=0.05, api_key="key") as platform:
        yield platform


@pytest.fixture
def client(platform: RunPodPlatform, session: requests.Session) -> Caller:
    """Return a client of that platform."""
    return Caller(platform, session, "Bearer key")


@pytest.fixture
def worker(platform: RunPodPlatform, session: requests.Session) -> Caller:
    """Return a worker of that platform. The test makes its calls."""
    return Caller(platform, session, "key")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a worker script that uses the real SDK."""
    path = tmp_path_factory.mktemp("worker") / "worker.py"
    path.write_text(WORKER_SCRIPT)
    return path


@pytest.fixture(scope="module")
def module_platform(script: Path) -> Iterator[RunPodPlatform]:
    """Yield the platform of one real worker, for the whole module."""
    env = {"CONCURRENCY": "3", "RUNPOD_PING_INTERVAL": str(PINGS_EVERY_S * 1000), "RUNPOD_LOG_LEVEL": "INFO"}
    with (
        RunPodPlatform(long_poll_s=0.5, result_limit_bytes=100_000) as platform,
        WorkerProcess(platform, script, env=env),
    ):
        yield platform


@pytest.fixture
def sdk_platform(module_platform: RunPodPlatform) -> Iterator[RunPodPlatform]:
    """Yield the platform with one real worker of the SDK, which may have three active jobs; clear faults at the end."""
    yield module_platform
    module_platform.faults.clear()


@pytest.fixture
def sdk_client(sdk_platform: RunPodPlatform, session: requests.Session) -> Caller:
    """Return a client of the platform with the real worker."""
    return Caller(sdk_platform, session, f"Bearer {sdk_platform.api_key}")


class HandlerGate:
    """A port at which handlers wait: a handler continues when its connection is closed or refused."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def open(self) -> None:
        """Release waiting handlers and later ones."""
        self._listener.close()


@pytest.fixture
def gate() -> Iterator[HandlerGate]:
    """Yield a closed gate, and open it at the end."""
    gate = HandlerGate()
    yield gate
    gate.open()


def test_job_runs_on_real_worker(sdk_platform: RunPodPlatform) -> None:
    """A submitted job is taken once, and ends with the handler's result."""
    job = sdk_platform.wait_for(sdk_platform.submit({"return": {"picture": "ä"}}))

    assert job.states == [QueueJobState.IN_QUEUE, QueueJobState.IN_PROGRESS, QueueJobState.COMPLETED]
    assert (job.output, job.error) == ({"picture": "ä"}, None)
    assert (job.worker_id, job.hand_outs, job.final_posts) == ("worker-1", 1, 1)
    assert [(post.kind, post.worker_id) for post in sdk_platform.posts if post.job_id == job.id] == [
        ("final", "worker-1")
    ]


def test_error_string_fails_job(sdk_platform: RunPodPlatform, sdk_client: Caller) -> None:
    """A job whose result has an error text is FAILED, and the other keys of the result are the job's output."""
    job = sdk_platform.wait_for(sdk_platform.submit({"return": {"error": "bad", "extra": 1}}))

    body = sdk_client.get(f"status/{job.id}").json
    assert (body["status"], body["error"], body["output"]) == ("FAILED", "bad", {"extra": 1})


@pytest.mark.parametrize("value", [None, {}, {"error": {"code": "x"}}])
def test_nothing_returned_is_completed_without_output(sdk_platform: RunPodPlatform, value: object) -> None:
    """None, an empty dict and an error that is not a string all end as COMPLETED without output."""
    job = sdk_platform.wait_for(sdk_platform.submit({"return": value}))

    assert (job.state, job.output, job.error) == (QueueJobState.COMPLETED, None, None)


def test_exception_fails_job_with_traceback(sdk_platform: RunPodPlatform) -> None:
    """The caller gets a handler's complete exception, as the SDK posts it."""
    job = sdk_platform.wait_for(sdk_platform.submit({"raise": "boom"}))

    assert job.state is QueueJobState.FAILED
    report = json.loads(job.error or "")
    assert (report["error_message"], report["hostname"]) == ("boom", "worker-1-host")
    assert "Traceback" in report["error_traceback"]


def test_progress_is_seen_while_job_runs(sdk_platform: RunPodPlatform, sdk_client: Caller, gate: HandlerGate) -> None:
    """The latest progress is the output of a running job until the result replaces it, and pings name the job."""
    job_id = sdk_platform.submit({"progress": {"step": 3}, "gate": gate.port})
    sdk_platform.wait_until(lambda: sdk_platform.jobs[job_id].progress)

    body = sdk_client.get(f"status/{job_id}").json
    assert (body["status"], body["output"], body["workerId"]) == ("IN_PROGRESS", {"step": 3}, "worker-1")

    sdk_platform.wait_until(lambda: any(job_id in ping.job_ids for ping in sdk_platform.pings))
    gate.open()

    assert sdk_platform.wait_for(job_id).output == "through the gate"
    assert [post.kind for post in sdk_platform.posts if post.job_id == job_id] == ["progress", "final"]


def test_cancel_reaches_running_handler(sdk_platform: RunPodPlatform, sdk_client: Caller) -> None:
    """A cancelled job is stopped in the worker, which posts nothing for it and continues."""
    job_id = sdk_platform.submit("hang")
    sdk_platform.wait_until(lambda: sdk_platform.jobs[job_id].state is QueueJobState.IN_PROGRESS)

    response = sdk_client.post(f"cancel/{job_id}")

    assert response.json == {"id": job_id, "status": "CANCELLED"}
    assert sdk_platform.wait_for(sdk_platform.submit("await cancelled")).output == "cancelled"
    assert [post for post in sdk_platform.posts if post.job_id == job_id] == []


def test_two_jobs_in_one_batch(sdk_platform: RunPodPlatform, gate: HandlerGate) -> None:
    """A worker with free slots takes two at once, and runs both."""
    sdk_platform.faults.throttle_workers()
    job_ids = [sdk_platform.submit({"progress": number, "gate": gate.port}) for number in range(2)]
    takes = len(sdk_platform.takes)
    sdk_platform.wait_until(lambda: any(take.batch_size > 1 for take in sdk_platform.takes[takes:]))
    sdk_platform.faults.clear()

    sdk_platform.wait_until(lambda: all(sdk_platform.jobs[job_id].progress for job_id in job_ids))
    gate.open()

    assert [sdk_platform.wait_for(job_id).state for job_id in job_ids] == [QueueJobState.COMPLETED] * 2


def test_result_arrives_at_third_attempt(sdk_platform: RunPodPlatform) -> None:
    """The SDK posts a result again after a 500, and the third post completes the job."""
    sdk_platform.faults.respond("final", 500, times=2)

    job = sdk_platform.wait_for(sdk_platform.submit({"return": "late"}))

    assert (job.output, job.final_posts) == ("late", 1)
    assert [post.kind for post in sdk_platform.posts if post.job_id == job.id] == ["final"] * 3


def test_rejected_result_is_lost(sdk_platform: RunPodPlatform) -> None:
    """The SDK does not post a rejected result again, and the job is COMPLETED without output."""
    sdk_platform.faults.respond("job-done", 400)

    job = sdk_platform.wait_for(sdk_platform.submit({"return": "lost"}))

    assert (job.state, job.output) == (QueueJobState.COMPLETED, None)
    assert len([post for post in sdk_platform.posts if post.job_id == job.id]) == 1


def test_result_over_the_limit_is_lost(sdk_platform: RunPodPlatform) -> None:
    """A job whose result is over the limit is COMPLETED without output."""
    job = sdk_platform.wait_for(sdk_platform.submit({"bytes": 100_001}))

    assert (job.state, job.output, job.final_posts) == (QueueJobState.COMPLETED, None, 1)
    assert next(post.size for post in sdk_platform.posts if post.job_id == job.id) > 100_000


def test_lost_result_is_completed_without_output(sdk_platform: RunPodPlatform) -> None:
    """A job whose result the platform lost is COMPLETED without output; the next job has its output."""
    sdk_platform.faults.lose_result()

    jobs = [sdk_platform.wait_for(sdk_platform.submit({"return": number})) for number in range(2)]

    assert [(job.state, job.output) for job in jobs] == [(QueueJobState.COMPLETED, None), (QueueJobState.COMPLETED, 1)]


def test_dropped_result_is_not_posted_again(sdk_platform: RunPodPlatform) -> None:
    """The SDK drops a result whose post lost its connection, and the job stays IN_PROGRESS."""
    sdk_platform.faults.drop_connection("final")
    job_id = sdk_platform.submit({"return": "cut off"})
    sdk_platform.wait_until(lambda: any(post.job_id == job_id for post in sdk_platform.posts))
    posted_at = time.monotonic()

    sdk_platform.wait_until(
        lambda: any(ping.at > posted_at and job_id not in ping.job_ids for ping in sdk_platform.pings)
    )

    assert sdk_platform.jobs[job_id].state is QueueJobState.IN_PROGRESS
    assert len([post for post in sdk_platform.posts if post.job_id == job_id]) == 1


def test_workers_exit_on_sigterm(script: Path, gate: HandlerGate) -> None:
    """An idle worker and a busy one exit with 0, the busy one after it has posted its result."""
    with (
        RunPodPlatform(long_poll_s=0.1) as idle_platform,
        RunPodPlatform(long_poll_s=0.1) as busy_platform,
        WorkerProcess(idle_platform, script) as idle,
        WorkerProcess(busy_platform, script) as busy,
    ):
        job_id = busy_platform.submit({"progress": 1, "gate": gate.port})
        busy_platform.wait_until(lambda: busy_platform.jobs[job_id].progress)
        idle_platform.wait_until(lambda: idle_platform.takes)

        idle.terminate()
        busy.terminate()
        gate.open()

        assert busy_platform.wait_for(job_id).output == "through the gate"
        assert [idle.wait(), busy.wait()] == [0, 0]
        assert [idle.leftovers(), busy.leftovers()] == [[], []]
        assert busy_platform.jobs[job_id].hand_outs == 1


def test_unfit_worker_reports_itself(script: Path) -> None:
    """A failed fitness check sends one unhealthy ping, takes no job and ends the process."""
    with (
        RunPodPlatform(long_poll_s=0.1) as platform,
        WorkerProcess(platform, script, env={"UNFIT": "1"}) as worker,
    ):
        assert worker.wait() == 1
        assert "no models" in worker.log
        (ping,) = platform.pings
        assert (ping.is_unhealthy, ping.check, ping.reason) == (True, "models_are_there", "RuntimeError: no models")
        assert platform.takes == ()


def test_worker_process_kills_its_children(platform: RunPodPlatform, tmp_path: Path) -> None:
    """Child processes that a worker leaves are killed after the `with` block."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, subprocess, sys\n"
        "idle = 'import threading; threading.Event().wait()'\n"
        "subprocess.Popen([sys.executable, '-c', idle], preexec_fn=os.setpgrp)\n"
    )
    with WorkerProcess(platform, script) as worker:
        assert worker.wait() == 0
        assert len(worker.leftovers()) == 1

    assert worker.leftovers() == []


def test_disconnected_worker_gets_no_job(platform: RunPodPlatform, worker: Caller) -> None:
    """A job is not given to a long poll whose worker has disconnected."""
    platform.long_poll_s = 5.0
    with pytest.raises(requests.ReadTimeout):
        worker.session.get(f"{platform.endpoint_url}/job-take/w", headers={"Authorization": "key"}, timeout=0.1)

    job_id = platform.submit("x")

    assert worker.take()["id"] == job_id
    assert platform.jobs[job_id].hand_outs == 1


def test_with_a_dispatch_jitter_any_of_the_waiting_workers_gets_a_job(session: requests.Session) -> None:
    """Two workers poll while 20 jobs are submitted one after another: each gets some of them."""
    takers: list[str] = []
    with ThreadPoolExecutor(2) as threads, RunPodPlatform(dispatch_jitter_s=0.005, long_poll_s=10) as platform:

        def poll(worker_id: str) -> Future[requests.Response]:
            url, polls_before = f"{platform.endpoint_url}/job-take/{worker_id}", len(platform.takes)
            response = threads.submit(session.get, url, headers={"Authorization": platform.api_key})
            platform.wait_until(lambda: len(platform.takes) > polls_before)
            # The platform responds to this request only after the recorded poll has begun to wait.
            requests.get(f"{platform.endpoint_url}/health", headers={"Authorization": platform.api_key}, timeout=60)
            return response

        polls = {worker_id: poll(worker_id) for worker_id in "ab"}
        for _ in range(20):
            platform.submit("x")
            done, _ = wait(polls.values(), return_when=FIRST_COMPLETED)
            [taker] = (worker_id for worker_id, each in polls.items() if each in done)
            takers.append(taker)
            polls[taker] = poll(taker)

    assert set(takers) == {"a", "b"}


def test_late_progress_puts_job_back(platform: RunPodPlatform, client: Caller, worker: Caller) -> None:
    """Progress after the result makes the job IN_PROGRESS again, with the progress as its output."""
    job_id = client.run("x")
    worker.take()
    worker.post_result(job_id, {"output": "result"})
    worker.post_result(job_id, {"status": "IN_PROGRESS", "output": "late"})

    body = client.get(f"status/{job_id}").json
    assert (body["status"], body["output"]) == ("IN_PROGRESS", "late")
    assert [post.kind for post in platform.posts] == ["final", "progress"]


def test_second_result_is_counted_and_ignored(platform: RunPodPlatform, client: Caller, worker: Caller) -> None:
    """The first result is kept."""
    job_id = client.run("x")
    worker.take()
    for number in range(2):
        assert worker.post_result(job_id, {"output": number}).status == 200

    assert (platform.jobs[job_id].output, platform.jobs[job_id].final_posts) == (0, 2)


def test_result_that_is_not_json_is_rejected(client: Caller, worker: Caller) -> None:
    """NaN is not JSON: the result is rejected, and the job is COMPLETED without output."""
    job_id = client.run("x")
    worker.take()

    assert worker.post_result(job_id, {"output": float("nan")}).status == 400
    assert "output" not in client.get(f"status/{job_id}").json


def test_abandoned_job_is_retried_once(platform: RunPodPlatform, client: Caller, worker: Caller) -> None:
    """An empty input is stripped. A job without pings is given to a worker twice, and then fails."""
    platform.lost_job_s, platform.long_poll_s = 0.05, 5.0
    job_id = client.run({})

    assert [worker.take() for _ in range(2)] == [{"id": job_id}] * 2

    job = platform.wait_for(job_id)
    body = client.get(f"status/{job_id}").json
    assert (body["status"], body["error"], body["retries"]) == ("FAILED", "job timed out after 1 retries", 1)
    assert job.hand_outs == 2


def test_run_and_status(platform: RunPodPlatform, client: Caller, worker: Caller) -> None:
    """A job is queued, running and completed, and each key appears only in its state."""
    response = client.post("run", {"input": {"prompt": "x"}})
    job_id = response.json["id"]
    assert (response.status, response.json) == (200, {"id": job_id, "status": "IN_QUEUE"})
    assert uuid.UUID(job_id.removesuffix("-u1")).version == 4
    assert client.get(f"status/{job_id}").json == {"id": job_id, "status": "IN_QUEUE"}

    worker.take()
    running = client.get(f"status/{job_id}").json
    assert set(running) == {"delayTime", "id", "status", "workerId"}

    worker.post_result(job_id, {"output": {"images": []}})
    completed = client.get(f"status/{job_id}").json
    assert set(completed) == {"delayTime", "executionTime", "id", "output", "status", "workerId"}
    assert (completed["status"], completed["output"], completed["workerId"]) == ("COMPLETED", {"images": []}, "w")
    assert type(completed["delayTime"]) is type(completed["executionTime"]) is int
    assert platform.submissions == 1


def test_execution_timeout(platform: RunPodPlatform, client: Caller, worker: Caller) -> None:
    """A job over its execution timeout is TIMED_OUT without an error text, and its worker gets a stop signal."""
    job_id = client.run("x", policy={"executionTimeout": 50})
    worker.take()
    platform.wait_for(job_id)

    body = client.get(f"status/{job_id}").json
    assert (body["status"], "error" in body, body["executionTime"] >= 50) == ("TIMED_OUT", False, True)
    assert worker.get("job-stop/w?gpu=FAKE").json == {"jobsToStop": [job_id]}


def test_health_counts(client: Caller, worker: Caller) -> None:
    """Jobs and workers are counted by state."""
    no_workers = {"idle": 0, "initializing": 0, "ready": 0, "running": 0, "throttled": 0, "unhealthy": 0}
    assert client.get("health").json["workers"] == no_workers

    job_ids = [client.run(number) for number in range(4)]
    for job_id, body in zip(job_ids, [{"output": 1}, {"error": "bad"}], strict=False):
        worker.take()
        worker.post_result(job_id, body)
    worker.take()
    worker.get("ping/idle?gpu=FAKE")
    worker.get("ping/broken?gpu=FAKE&status=unhealthy&check=c&reason=r")

    body = client.get("health").json
    assert body["jobs"] == {"completed": 1, "failed": 1, "inProgress": 1, "inQueue": 1, "retried": 0}
    assert body["workers"] == no_workers | {"idle": 1, "ready": 2, "running": 1, "unhealthy": 1}


def test_unknown_route_is_an_error(platform: RunPodPlatform) -> None:
    """A fault for a route that does not exist raises a ValueError."""
    with pytest.raises(ValueError, match="'stat' is not a route"):
        platform.faults.respond("stat", 500)  # type: ignore[arg-type] # the tested mistake


def test_round_trip(platform: RunPodPlatform, client: Caller, worker: Caller) -> None:
    """Every request of a client or a worker takes the round trip time, half before it takes effect and half after."""
    platform.round_trip_s = 0.1
    begun_at = time.monotonic()
    job_id = client.run("x")
    submitted_at = time.monotonic()
    worker.take()
    taken_at = time.monotonic()

    job = platform.jobs[job_id]
    assert job.submitted_at - begun_at >= 0.05
    assert submitted_at - job.submitted_at >= 0.05
    assert taken_at - submitted_at >= 0.1
