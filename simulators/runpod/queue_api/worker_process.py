"""Runs a worker in its own process. At the end, kills the worker and all processes that the worker started."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from .platform import RunPodPlatform

KILL_TIMEOUT_S = 60.0
LOG_TAIL_CHARACTERS = 4000


class WorkerProcess:
    """Runs `python SCRIPT` as a worker of a platform, in a process group of its own. Linux only.

    The process inherits this process's environment variables except RUNPOD_*, and gets those of `platform.worker_env`
    and `env`. Its HOME is an empty folder, because the SDK would otherwise use the key in ~/.runpod/config.toml.
    """

    def __init__(
        self,
        platform: RunPodPlatform,
        script: Path | str,
        *,
        cwd: Path | str | None = None,
        worker_id: str = "worker-1",
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
    ) -> None:
        self._command = [sys.executable, str(Path(script).absolute()), *args]
        self._cwd = Path(script).absolute().parent if cwd is None else Path(cwd)
        self._env = platform.worker_env(worker_id) | dict(env or {})
        self._worker_id = worker_id
        self._home = tempfile.TemporaryDirectory(prefix="runpod-worker-")
        self._log_path = Path(self._home.name, "log")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        home = Path(self._home.name, "home")
        home.mkdir()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the command comes from the test
                self._command,
                cwd=self._cwd,
                env=inherited | {"HOME": str(home), "PYTHONUNBUFFERED": "1", "NO_PROXY": "127.0.0.1"} | self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.kill()
        finally:
            if error is not None:
                sys.stderr.write(f"--- end of the log of {self._worker_id} ---\n{self.log[-LOG_TAIL_CHARACTERS:]}\n")
            self._home.cleanup()

    @property
    def pid(self) -> int:
        """The id of the process, and of its group."""
        return self._running.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, or None while the worker runs."""
        return self._running.poll()

    @property
    def log(self) -> str:
        """The process's output to stdout and stderr so far."""
        return self._log_path.read_text(errors="replace")

    def terminate(self) -> None:
        """Send SIGTERM to the worker, but not to its children."""
        self._running.terminate()

    def wait(self, timeout_s: float = 10.0) -> int:
        """Wait until the worker exits, and return the exit code.

        Raises:
            AssertionError: the worker still runs after the timeout.
        """
        try:
            return self._running.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            tail = self.log[-LOG_TAIL_CHARACTERS:]
            raise AssertionError(f"{self._worker_id} still runs after {timeout_s} s; its log:\n{tail}") from error

    def leftovers(self) -> list[int]:
        """Return the ids of the running processes of the worker's session, in any process group."""
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        return [pid for pid in pids if _runs_in(pid, self.pid)]

    def kill(self) -> None:
        """Kill the worker and all processes that it started.

        Raises:
            AssertionError: a process does not die.
        """
        deadline = time.monotonic() + KILL_TIMEOUT_S
        while pids := self.leftovers():  # repeated, because a process may have started another one
            if time.monotonic() > deadline:
                raise AssertionError(f"{self._worker_id} left processes that do not die: {pids}")
            _kill_all(pids, deadline)
        self._running.wait()

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the worker was not started")
        return self._process


def _kill_all(pids: Sequence[int], deadline: float) -> None:
    """Kill processes; return when all have died, or at the deadline."""
    with contextlib.ExitStack() as stack:
        living = set()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                process = os.pidfd_open(pid)
                stack.callback(os.close, process)
                signal.pidfd_send_signal(process, signal.SIGKILL)
                living.add(process)
        while living and (left_s := deadline - time.monotonic()) > 0:
            living.difference_update(select.select(living, [], [], left_s)[0])


def _runs_in(pid: int, session: int) -> bool:
    """Return whether a process belongs to a session and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    state, _parent, _group, in_session, *_ = stat.rpartition(")")[2].split()
    return int(in_session) == session and state not in {"Z", "X"}
