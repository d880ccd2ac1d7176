"""The watchdog: which ComfyUI hangs (silent, refusing, behind a proxy), and which does not (slow, frozen, ended)."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.worker_setup import ROOT
from simulators.comfyui import Simulator
from simulators.http_server import HttpHandler, HttpServer
from simulators.waiting import until
from tests.processes import killed_at_end
from worker.watchdog import LOADING_FACTOR, Watchdog

pytestmark = pytest.mark.slow
HUNG_S = 0.6
WAIT_S = 60.0


class _ResponseHandler(HttpHandler):
    """Waits `pause_s` of the server, or until it is resumed, and responds with the server's status."""

    server: ResponseServer

    def do_GET(self) -> None:
        """Respond after the pause."""
        if (pause_s := self.server.pause_s) > 0:
            self.server.is_pausing.set()
        self.server.resumed.wait(pause_s)
        self.respond(self.server.status)


class ResponseServer(HttpServer):
    """A server whose status and delay can be set."""

    def __init__(self) -> None:
        super().__init__(_ResponseHandler)
        self.status = 200
        self.pause_s = 0.0
        self.is_pausing = threading.Event()
        self.resumed = threading.Event()

    def __exit__(self, *_: object) -> None:
        self.resumed.set()
        super().__exit__()


@pytest.fixture
def server() -> Iterator[ResponseServer]:
    """A server that responds with 200 at once."""
    with ResponseServer() as server:
        yield server


def hang_verdict(watchdog: Watchdog, within_s: float) -> bool | None:
    """Return what `await_hang` returns: True for a hang. Return None if it does not return within `within_s`."""
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        hang_future = threads.submit(watchdog.await_hang, stopped.is_set)
        if not until(hang_future.done, within_s):
            stopped.set()
            return None
        return hang_future.result()


def test_a_comfyui_that_does_not_respond_hangs() -> None:
    """A server that accepts connections and sends nothing hangs after `HUNG_S`, as with a node that holds the GIL."""
    with Simulator() as simulator:
        watchdog = Watchdog(simulator.url, HUNG_S)
        assert watchdog.probe()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            begun_at = time.monotonic()
            assert hang_verdict(Watchdog(f"http://127.0.0.1:{port}", HUNG_S), WAIT_S) is True
            assert time.monotonic() - begun_at >= HUNG_S


@pytest.mark.parametrize("status", [200, 401, 404, 500])
def test_any_response_in_time_counts(server: ResponseServer, status: int) -> None:
    """A slow server whose responses arrive in time does not hang, whatever their status."""
    server.status, server.pause_s = status, 0.5

    assert hang_verdict(Watchdog(server.url, 2.0), 2.5) is None


def test_a_proxy_s_502_does_not_count(server: ResponseServer) -> None:
    """A 502 from a proxy does not count as a response of ComfyUI."""
    server.status = 502

    assert hang_verdict(Watchdog(server.url, HUNG_S), WAIT_S) is True


def test_refused_connections_count_as_a_hang(server: ResponseServer) -> None:
    """Refused connections count as a hang too. Then `is_connecting` is False; after a response it is True."""
    unreachable, reachable = Watchdog("http://127.0.0.1:1", HUNG_S), Watchdog(server.url, HUNG_S)

    assert hang_verdict(unreachable, WAIT_S) is True
    assert not unreachable.is_connecting
    assert reachable.probe()
    assert reachable.is_connecting


def test_an_ended_process_does_not_hang() -> None:
    """If the process has ended, `await_hang` returns False: it reports only hangs."""
    assert Watchdog("http://127.0.0.1:1", 60).await_hang(lambda: True) is False


WATCHING_SCRIPT = """\
import sys
from worker.watchdog import Watchdog
watchdog = Watchdog(sys.argv[1], 3.0)
print(watchdog.probe(), flush=True)
print(watchdog.await_hang(lambda: False), flush=True)
"""


def test_a_frozen_container_is_not_a_hang(server: ResponseServer) -> None:
    """In a container that was frozen and resumed (FlashBoot), the time in between does not count as a hang."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WATCHING_SCRIPT, server.url]
    with killed_at_end(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "True\n"
        server.pause_s = WAIT_S
        assert server.is_pausing.wait(WAIT_S)
        watching.send_signal(signal.SIGSTOP)
        assert not until(lambda: False, 3.5)
        watching.send_signal(signal.SIGCONT)
        assert not until(lambda: False, 0.8)  # the response comes after the watchdog has looked at the clock
        server.resumed.set()

        output = watching.stdout
        assert not until(lambda: select.select([output], [], [], 0)[0], 1.5)
        watching.kill()


READING_SCRIPT = """\
import threading
while True:
    open("/dev/zero", "rb").read(1_000_000)
    threading.Event().wait(0.01)
"""


def test_a_process_that_reads_from_disk_gets_more_time() -> None:
    """While its process reads from disk, ComfyUI may be silent for LOADING_FACTOR times as long."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with killed_at_end(subprocess.Popen([sys.executable, "-c", READING_SCRIPT])) as loading:
            watchdog = Watchdog(url, 1.2, loading.pid)
            assert hang_verdict(watchdog, WAIT_S) is True
            assert watchdog.no_response_s >= 1.2 * LOADING_FACTOR
            os.kill(loading.pid, signal.SIGSTOP)
            watchdog = Watchdog(url, 1.2, loading.pid)
            assert hang_verdict(watchdog, WAIT_S) is True
            assert watchdog.no_response_s < 1.2 * LOADING_FACTOR
            loading.kill()
