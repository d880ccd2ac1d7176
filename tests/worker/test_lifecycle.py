"""Graceful shutdown of the worker: after its active jobs, once; and the report to RunPod that it is unhealthy."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest

from comfy_core.environment import read
from comfy_core.error_codes import ErrorCode
from handler import report_unhealthy
from simulators.http_server import HttpHandler, HttpServer
from simulators.waiting import until
from worker.lifecycle import IDLE_AFTER_S, Lifecycle
from worker.settings import RunPodVariables

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent


class LifecycleFakes:
    """Fakes of the functions that a lifecycle calls.

    Attributes:
        events: the calls, in order.
        ended_at: the time at which the process would have exited.
    """

    def __init__(self) -> None:
        self.events: list[str] = []
        self.ended_at = 0.0
        self._ended = threading.Event()

    def lifecycle(self, grace_s: float = 10) -> Lifecycle:
        """Return a lifecycle that calls these fakes."""
        return Lifecycle(
            stop_comfyui=lambda: self.events.append("ComfyUI stopped"),
            report_unhealthy=lambda reason: self.events.append(f"unhealthy: {reason}"),
            grace_s=grace_s,
            end=self._end,
        )

    def _end(self, status: int) -> None:
        self.ended_at = time.monotonic()
        self.events.append(f"ended with {status}")
        self._ended.set()

    def wait(self) -> None:
        """Return when the process would have exited."""
        assert self._ended.wait(60)


@pytest.fixture
def _restored_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class LifecycleJob:
    """An active job: `run` returns once the job is `done` or interrupted, and its result is `posted`."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self.begun = asyncio.Event()
        self.done = threading.Event()
        self.posted = asyncio.Event()

    async def run(self) -> None:
        """Record the job in the lifecycle, and wait for its end and for the post of its result."""
        self._lifecycle.note_job()
        self._lifecycle.note_job()  # the job is counted once, even if it is recorded twice
        self.begun.set()
        await asyncio.to_thread(until, lambda: self.done.is_set() or self._lifecycle.stop_error())
        await self.posted.wait()


def run_story(story: Callable[[], Coroutine[object, object, None]]) -> None:
    """Run the coroutine of `story` in a new event loop."""

    async def bounded() -> None:
        await asyncio.wait_for(story(), 60)

    asyncio.run(bounded())


@pytest.mark.usefixtures("_restored_signals")
def test_an_idle_worker_exits_at_once() -> None:
    """After SIGTERM a worker without jobs exits with 0 when no job has arrived for IDLE_AFTER_S."""
    end = LifecycleFakes()
    lifecycle = end.lifecycle()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not a function, so the lifecycle must not call it
    lifecycle.handle_signals()
    begun_at = time.monotonic()
    signal.raise_signal(signal.SIGTERM)
    end.wait()

    assert end.events == ["ComfyUI stopped", "ended with 0"]
    assert IDLE_AFTER_S <= end.ended_at - begun_at < IDLE_AFTER_S + 1
    assert lifecycle.stop_error() is None


def test_a_busy_worker_exits_after_its_job() -> None:
    """A retiring worker waits for the task of its active job, which ends after the result was posted.

    The end of another job changes nothing. The exit is IDLE_AFTER_S after the last task has ended.
    """
    end = LifecycleFakes()
    lifecycle = end.lifecycle()

    async def story() -> None:
        job, short = LifecycleJob(lifecycle), LifecycleJob(lifecycle)
        task = asyncio.ensure_future(job.run())
        short.done.set()
        short.posted.set()
        await asyncio.ensure_future(short.run())
        lifecycle.retire("a reason")
        assert not await asyncio.to_thread(until, lambda: end.events, IDLE_AFTER_S + 0.5)
        assert lifecycle.stop_error() is None
        job.done.set()
        assert not await asyncio.to_thread(until, lambda: end.events, IDLE_AFTER_S + 0.2)
        job.posted.set()
        await task
        done_at = time.monotonic()
        await asyncio.to_thread(end.wait)
        assert end.ended_at - done_at >= IDLE_AFTER_S - 0.05

    run_story(story)


def test_a_job_that_starts_during_shutdown_is_waited_for() -> None:
    """A job that the SDK starts within IDLE_AFTER_S after the last one has ended is waited for."""
    end = LifecycleFakes()
    lifecycle = end.lifecycle()

    async def story() -> None:
        first, second = LifecycleJob(lifecycle), LifecycleJob(lifecycle)
        for job in (first, second):
            job.posted.set()
        first.done.set()
        lifecycle.retire("a reason")
        await asyncio.ensure_future(first.run())
        task = asyncio.ensure_future(second.run())
        assert not await asyncio.to_thread(until, lambda: end.events, IDLE_AFTER_S + 0.3)
        second.done.set()
        await task
        await asyncio.to_thread(end.wait)

    run_story(story)


def test_a_job_is_interrupted_after_the_grace_period() -> None:
    """After `grace_s` an active job gets `interrupted`, which is retryable. The exit waits until it was posted."""
    end = LifecycleFakes()
    lifecycle = end.lifecycle(grace_s=0.2)

    async def story() -> None:
        job = LifecycleJob(lifecycle)
        task = asyncio.ensure_future(job.run())
        await job.begun.wait()
        lifecycle.retire("a reason")
        assert await asyncio.to_thread(until, lifecycle.stop_error)
        assert not await asyncio.to_thread(until, lambda: end.events, 0.3)
        job.posted.set()
        await task
        error = lifecycle.stop_error()
        assert error is not None
        assert error.code is ErrorCode.INTERRUPTED
        assert error.report.retryable
        await asyncio.to_thread(end.wait)

    run_story(story)


def test_a_retiring_worker_stops_comfyui_then_reports_then_exits() -> None:
    """ComfyUI is stopped, the reason is reported to the platform, and the worker exits with 1, in this order."""
    end = LifecycleFakes()
    end.lifecycle().retire("ComfyUI died and could not be restarted")
    end.wait()

    assert end.events == ["ComfyUI stopped", "unhealthy: ComfyUI died and could not be restarted", "ended with 1"]


def test_the_worker_exits_only_once() -> None:
    """Only the first reason for the exit counts."""
    end = LifecycleFakes()
    lifecycle = end.lifecycle()
    for _ in range(5):
        lifecycle.retire("first")
    lifecycle.retire("second")
    end.wait()

    assert not until(lambda: len(end.events) > 3, 0.3)
    assert end.events == ["ComfyUI stopped", "unhealthy: first", "ended with 1"]


def test_the_shutdown_completes_after_the_sdk_has_returned() -> None:
    """`await_end` completes the shutdown when the SDK has returned: with 0, or with 1 if the worker retires."""
    idle, retiring = LifecycleFakes(), LifecycleFakes()
    idle.lifecycle().await_end()
    lifecycle = retiring.lifecycle()
    lifecycle.retire("a reason")
    lifecycle.await_end()

    assert idle.events == ["ComfyUI stopped", "ended with 0"]
    assert retiring.events == ["ComfyUI stopped", "unhealthy: a reason", "ended with 1"]


def test_a_job_outside_a_task_is_ignored() -> None:
    """A job that is recorded outside an asyncio task is not waited for."""
    end = LifecycleFakes()
    lifecycle = end.lifecycle()

    async def story() -> None:
        noted = asyncio.Event()

        def note() -> None:
            lifecycle.note_job()
            noted.set()

        asyncio.get_running_loop().call_soon(note)
        await noted.wait()
        lifecycle.retire("a reason")
        await asyncio.to_thread(end.wait)

    run_story(story)
    assert lifecycle.stop_error() is None


@pytest.mark.usefixtures("_restored_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_also_calls_the_sdk_s_handler(number: signal.Signals) -> None:
    """A signal also calls the SDK's own handler, once; the worker exits with 0."""
    end = LifecycleFakes()
    received: list[int] = []

    def sdk_handler(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    signal.signal(number, sdk_handler)
    lifecycle = end.lifecycle()
    lifecycle.handle_signals()
    lifecycle.handle_signals()  # it is called again whenever the SDK reads the concurrency
    signal.raise_signal(number)
    end.wait()

    assert received == [number]
    assert end.events == ["ComfyUI stopped", "ended with 0"]


@pytest.mark.usefixtures("_restored_signals")
def test_a_retiring_worker_stops_the_sdk_from_taking_jobs() -> None:
    """A retiring worker sends SIGTERM to itself, which stops the SDK; the exit status is still 1."""
    end = LifecycleFakes()
    was_signalled = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: was_signalled.set())
    lifecycle = end.lifecycle()
    lifecycle.handle_signals()
    lifecycle.retire("ComfyUI is broken")
    assert until(was_signalled.is_set)
    end.wait()

    assert end.events == ["ComfyUI stopped", "unhealthy: ComfyUI is broken", "ended with 1"]


ENDING_SCRIPT = """\
import multiprocessing, signal, threading
from worker.lifecycle import end_process

if __name__ == "__main__":
    ping = multiprocessing.get_context("fork").Process(target=signal.pause)
    ping.start()
    threading.Thread(target=threading.Event().wait).start()
    print(ping.pid)
    end_process(3)
"""


def test_end_process_leaves_no_process(tmp_path: Path) -> None:
    """end_process exits with its status although a thread runs; output is flushed, and no child process is left."""
    script = tmp_path / "ending.py"
    script.write_text(ENDING_SCRIPT)
    ended = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 3
    assert until(lambda: not psutil.pid_exists(int(ended.stdout)))


class _PingHandler(HttpHandler):
    """Records the pings that it receives, and responds with the server's status."""

    server: PingServer

    def do_GET(self) -> None:
        """Record the path and the key, and respond."""
        self.server.pings.append((self.path, self.headers["Authorization"]))
        self.respond(self.server.status)


class PingServer(HttpServer):
    """A server for RunPod's pings, which records them."""

    def __init__(self) -> None:
        super().__init__(_PingHandler)
        self.pings: list[tuple[str, str]] = []
        self.status = 200

    @property
    def variables(self) -> RunPodVariables:
        """The variables that RunPod sets for its workers."""
        url = f"{self.url}/ping/$RUNPOD_POD_ID?gpu=A5000"
        environment = {"RUNPOD_WEBHOOK_PING": url, "RUNPOD_POD_ID": "worker-1", "RUNPOD_AI_API_KEY": "the-key"}
        return read(RunPodVariables, environment)


@pytest.fixture
def platform() -> Iterator[PingServer]:
    """A server for pings that responds with 200."""
    with PingServer() as server:
        yield server


def test_the_reason_is_reported_to_the_platform(platform: PingServer) -> None:
    """The ping has the worker's id, its key, and the first 256 characters of the reason."""
    report_unhealthy(platform.variables, "ComfyUI died & stayed dead" + "!" * 500)
    [(path, key)] = platform.pings
    query = parse_qs(urlsplit(path).query)

    assert key == "the-key"
    assert urlsplit(path).path == "/ping/worker-1"
    assert (query["gpu"], query["status"], query["check"]) == (["A5000"], ["unhealthy"], ["comfyui"])
    assert query["reason"][0].startswith("ComfyUI died & stayed dead")
    assert len(query["reason"][0]) == 256


def test_a_failing_platform_is_logged(platform: PingServer, caplog: pytest.LogCaptureFixture) -> None:
    """If the platform returns 500 or is not reachable, the log says so without the key, and no error is raised."""
    platform.status = 500
    report_unhealthy(platform.variables, "a reason")
    report_unhealthy(replace(platform.variables, ping_url="http://127.0.0.1:1/x"), "a reason")

    assert caplog.text.count("could not be reported to RunPod") == 2
    assert "the-key" not in caplog.text


def test_outside_runpod_nothing_is_reported(platform: PingServer) -> None:
    """Without a ping URL, or without a key, nothing is sent."""
    report_unhealthy(RunPodVariables(), "a reason")
    report_unhealthy(replace(platform.variables, api_key=""), "a reason")

    assert platform.pings == []
