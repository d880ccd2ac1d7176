"""ComfyUI as a child process: started, watched, started again once, stopped. What it says is kept for errors.

It runs in a process group of its own, so that nothing it started outlives it, and without this process's secrets. A
thread reads its output; another waits for its end. It is ready when /system_stats answers and the models that the
workflows load are listed.

A death that was not asked for fails the jobs that run at that moment. Then ComfyUI is started once more; where that
fails, or it dies again before a job has succeeded, `is_lost` becomes true for good, and the worker is to retire.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from comfy_client.comfyui.answers import without_paths
from comfy_client.comfyui.server import CALL_TIMEOUT_S, ComfyServer
from comfy_client.contract import ErrorCode
from comfy_client.errors import JobError, RequestError

LOG_LINES = 100
"""Lines of ComfyUI's output that are kept."""
STUCK_S = 30.0
"""How long ComfyUI may go on with a prompt that was interrupted: it may load a model meanwhile, which heeds nothing."""
_TOLD_LINES = 20
_STUCK_POLL_S = 0.5
_POLL_S = 0.05
_LAST_WORDS_S = 1.0
"""How long the output of a ComfyUI that died is read on, so that an error has its last lines."""
_SECRETS = ("RUNPOD_", "BUCKET_", "AWS_", "HF_TOKEN")
"""What a graph's nodes have no business with: variables that begin so are not handed on."""

log = logging.getLogger(__name__)
comfyui_log = logging.getLogger("comfyui")


class ModelsMissing(Exception):  # noqa: N818 - a state of the machine, reported at boot
    """The files that the workflows load are not there, or ComfyUI does not list them."""


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what ComfyUI and its nodes may see of this process's environment."""
    return {name: value for name, value in environment.items() if not name.startswith(_SECRETS)}


def missing_models(server: ComfyServer, models: Sequence[str], left_s: Callable[[], float]) -> list[str]:
    """Return which of `models` (`folder/file`) ComfyUI does not list. Raises RequestError where it does not answer."""
    folders = sorted({model.partition("/")[0] for model in models})
    listed = {f"{folder}/{file}" for folder in folders for file in server.models(folder, timeout_s=left_s())}
    return [model for model in models if model not in listed]


def await_ready(
    server: ComfyServer, models: Sequence[str], timeout_s: float, failed: Callable[[], JobError | None]
) -> None:
    """Return once ComfyUI answers and has `models`.

    Raises JobError (comfyui_unavailable) after `timeout_s` and with what `failed` returns, ModelsMissing at once.
    """
    deadline = time.monotonic() + timeout_s

    def left_s() -> float:
        return min(CALL_TIMEOUT_S, max(_POLL_S, deadline - time.monotonic()))

    while True:
        error = failed()
        if error is not None:
            raise error
        with contextlib.suppress(RequestError):
            server.ask_version(timeout_s=left_s())
            missing = missing_models(server, models, left_s)
            if missing:
                raise ModelsMissing(
                    f"ComfyUI does not have {', '.join(missing)}. Put each into that folder of its models, or take the "
                    "workflow away that loads it"
                )
            return
        if time.monotonic() > deadline:
            raise JobError.because(
                ErrorCode.COMFYUI_UNAVAILABLE, f"ComfyUI was not ready after {timeout_s:.0f} s. Read the worker's log."
            )
        time.sleep(_POLL_S)


class ComfyProcess:
    """The ComfyUI of this worker. `start` it before use, `stop` it at the end."""

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        await_ready: Callable[[Callable[[], JobError | None]], None],
        on_lost: Callable[[], None],
        stuck_s: float = STUCK_S,
    ) -> None:
        self._command = list(command)
        self._directory = directory
        self._environment = without_secrets(environment)
        self._await_ready = await_ready
        self._on_lost = on_lost
        self._stuck_s = stuck_s
        self._lines: collections.deque[str] = collections.deque(maxlen=LOG_LINES)
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._reader = threading.Thread()
        self._stopping = threading.Event()
        self._restarted = False
        self._ready = threading.Event()
        self.deaths = 0
        self.is_lost = False

    def start(self) -> None:
        """Start ComfyUI and return at once."""
        self._spawn()

    def await_start(self) -> None:
        """Return when the ComfyUI that was started is ready, and watch it from then on.

        Raises JobError (comfyui_unavailable) or ModelsMissing, and has stopped it then.
        """
        child = self._child
        assert child is not None  # noqa: S101 - it was started
        try:
            self._await_ready(self.start_error)
        except (JobError, ModelsMissing):
            self.stop()
            raise
        self._ready.set()
        threading.Thread(target=self._watch, args=(child,), name="comfyui-watch", daemon=True).start()

    def start_error(self) -> JobError | None:
        """Return the error of the ComfyUI that was started, if it has ended before it was ready."""
        return self._death_of(self._child) if self._child is not None else None

    def await_use(self, stop: Callable[[], JobError | None]) -> None:
        """Return when ComfyUI can be used: at once, or after its restart. Raises JobError where it cannot any more."""
        while not self._ready.wait(_POLL_S):
            error = stop() or self._lost_error()
            if error is not None:
                raise error

    def failure_since(self, deaths: int) -> JobError | None:
        """Return the error for a job that began when ComfyUI had died `deaths` times, if it died since."""
        return None if self.deaths == deaths else self._error("ComfyUI died while it ran the job")

    def note_success(self) -> None:
        """A job has succeeded: a later death is a new one, and ComfyUI is started again once more."""
        self._restarted = False

    def end_if_stuck(self, server: ComfyServer) -> None:
        """Where a prompt goes on although it was interrupted, kill ComfyUI after `stuck_s`: the next job waits for it.

        Returns at once. ComfyUI is then started again, as after any death.
        """
        if lingering := server.lingering:
            arguments = (server, lingering, self.deaths)
            threading.Thread(target=self._kill_stuck, args=arguments, name="comfyui-stuck", daemon=True).start()

    def _kill_stuck(self, server: ComfyServer, lingering: frozenset[str], deaths: int) -> None:
        deadline = time.monotonic() + self._stuck_s
        while self.deaths == deaths and time.monotonic() < deadline:
            with contextlib.suppress(RequestError):
                if not lingering & server.queue_state()[0]:
                    return
            time.sleep(_STUCK_POLL_S)
        child = self._child
        if self.deaths == deaths and child is not None:
            log.error("ComfyUI does not heed an interrupt; killing it")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    def log_tail(self) -> list[str]:
        """Return ComfyUI's last lines, without the folders of this machine."""
        return [without_paths(line) for line in list(self._lines)]

    def stop(self, grace_s: float = 5.0) -> None:
        """End ComfyUI and everything it started."""
        with self._lock:
            self._stopping.set()
            child = self._child
        if child is not None:
            _end_group(child, grace_s)

    def _spawn(self) -> subprocess.Popen[str]:
        with self._lock:
            if self._stopping.is_set():
                raise self._error("The worker is stopping")
            child = subprocess.Popen(  # noqa: S603 - the command is the worker's own
                [*_dies_with_us(), *self._command],
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._child = child
        assert child.stdout is not None  # noqa: S101 - a pipe was asked for
        self._reader = threading.Thread(target=self._read, args=(child.stdout,), name="comfyui-log", daemon=True)
        self._reader.start()
        return child

    def _read(self, output: IO[str]) -> None:
        with output:
            for line in output:
                text = line.rstrip()
                if text:
                    self._lines.append(text)
                    comfyui_log.debug(text)

    def _watch(self, child: subprocess.Popen[str]) -> None:
        """Wait for the death of `child`, start it anew once, and wait again, until it is lost or was stopped."""
        while True:
            status = child.wait()
            self._ready.clear()
            _end_group(child, 0)
            self._reader.join(_LAST_WORDS_S)
            self.deaths += 1
            if self._stopping.is_set():
                return
            log.error("ComfyUI died with status %d", status)
            if self._restarted:
                self._lose()
                return
            self._restarted = True
            try:
                child = self._spawn()
                self._await_ready(lambda child=child: self._death_of(child))  # type: ignore[misc] # bound at once
            except (JobError, ModelsMissing, OSError) as error:
                if self._stopping.is_set():
                    return
                log.error("ComfyUI could not be started again: %s", error)  # noqa: TRY400 - foreseen
                self.stop()
                self._lose()
                return
            log.warning("ComfyUI was started again")
            self._ready.set()

    def _lose(self) -> None:
        self.is_lost = True
        self._on_lost()

    def _death_of(self, child: subprocess.Popen[str]) -> JobError | None:
        status = child.poll()
        if status is None:
            return None
        self._reader.join(_LAST_WORDS_S)
        return self._error(f"ComfyUI ended with status {status} before it was ready")

    def _lost_error(self) -> JobError | None:
        return self._error("ComfyUI died and could not be started again") if self.is_lost else None

    def _error(self, problem: str) -> JobError:
        message = f"{problem}. Send the job again."
        return JobError.because(ErrorCode.COMFYUI_UNAVAILABLE, message, log_tail=self.log_tail()[-_TOLD_LINES:])


def _dies_with_us() -> list[str]:
    """Return the command in front of another that has it killed when this process dies, where the machine has it."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _end_group(child: subprocess.Popen[str], grace_s: float) -> None:
    """End the process group of `child`: SIGTERM, and after `grace_s` at the latest SIGKILL for what is left of it."""
    for signal_number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal_number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(wait_s)
