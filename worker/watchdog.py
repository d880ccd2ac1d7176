"""Checks every second whether ComfyUI still responds, independently of jobs.

A node that never releases the GIL blocks ComfyUI's web server: the process lives and the kernel accepts connections,
but no request gets a response. ComfyUI counts as hung if one request has no response for `hung_s`. Any response within
that time counts, whatever its status, except 502 to 504: a proxy sends those when ComfyUI does not respond.

A slow disk can have the same effect for a while, because a memory-mapped file is read on first access. A process that
keeps reading therefore gets LOADING_FACTOR times as long.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

PROBE_EVERY_S = 1.0
HUNG_S = 12.0
LOADING_FACTOR = 4
_CONNECT_S = 5.0
_POLL_S = 0.5
_READ_WINDOW_S = 2.0
_LOADING_BYTES = 1_000_000
"""A process that loads no model reads less in a window, such as files of /proc."""
_PROXY_ERRORS = frozenset({502, 503, 504})
_Waited = TypeVar("_Waited")


class Watchdog:
    """Watches the ComfyUI at `url`; `pid` is its process if it runs on this machine.

    Attributes:
        no_response_s: seconds spent waiting for a response since the last response. Only short waits are summed, so the
            time while a container is frozen (FlashBoot) does not count.
        is_connecting: whether the last connection was accepted, so that a process is listening.
    """

    def __init__(self, url: str, hung_s: float, pid: int | None = None) -> None:
        parts = urlsplit(url)
        self._connection_class = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._host, self._port = str(parts.hostname), parts.port
        self._path = f"{parts.path.rstrip('/')}/features"
        self._hung_s = hung_s
        self._pid = pid
        self.no_response_s = 0.0
        self.is_connecting = True

    def await_hang(self, is_over: Callable[[], bool]) -> bool:
        """Return True once ComfyUI has not responded for too long, or False once `is_over` returns true."""
        pause = threading.Event()
        while not is_over():
            if self.probe():
                pause.wait(PROBE_EVERY_S)
            elif self.no_response_s >= self._hung_s and not self._is_loading():
                return not is_over()
            else:
                self._count(lambda: pause.wait(_POLL_S), _POLL_S)
        return False

    def probe(self) -> bool:
        """Send one request; return whether ComfyUI responds within `hung_s`, and update the attributes."""
        connection = self._connection_class(self._host, self._port, timeout=_CONNECT_S)
        is_connected = False
        try:
            self._count(connection.connect, _CONNECT_S)
            is_connected = True
            connection.request("GET", self._path)
            has_responded = self._await_response(connection)
        except (OSError, HTTPException):
            has_responded = False
        finally:
            connection.close()
        self.is_connecting = is_connected
        if has_responded:
            self.no_response_s = 0.0
        return has_responded

    def _await_response(self, connection: HTTPConnection) -> bool:
        waited_s = 0.0
        while waited_s < self._hung_s:
            if self._count(lambda: select.select([connection.sock], [], [], _POLL_S)[0], _POLL_S):
                return connection.getresponse().status not in _PROXY_ERRORS
            waited_s += _POLL_S
        return False

    def _count(self, wait: Callable[[], _Waited], at_most_s: float) -> _Waited:
        """Return what `wait` returns, and add its duration, at most `at_most_s`, to `no_response_s`."""
        begun_at = time.monotonic()
        try:
            return wait()
        finally:
            self.no_response_s += min(time.monotonic() - begun_at, at_most_s)

    def _is_loading(self) -> bool:
        """Return whether the process is reading files and is still within the extended limit."""
        if self._pid is None or self.no_response_s >= LOADING_FACTOR * self._hung_s:
            return False
        pid, window_s = self._pid, min(_READ_WINDOW_S, self._hung_s / 4)
        return self._count(lambda: is_reading(pid, window_s), window_s)


def is_reading(pid: int, window_s: float) -> bool:
    """Return whether a process reads at least _LOADING_BYTES in the next `window_s` seconds, which this call takes."""
    before = _bytes_read(pid)
    time.sleep(window_s)
    return _bytes_read(pid) >= before + _LOADING_BYTES


def _bytes_read(pid: int) -> int:
    """Return how many bytes a process has read, from system calls and from disk. 0 if the kernel does not report it."""
    counted = 0
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            name, _, number = line.partition(": ")
            if name in {"rchar", "read_bytes"}:
                counted += int(number)
    return counted
