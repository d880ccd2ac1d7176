"""Starts, monitors, restarts and stops the worker's own ComfyUI, a child process.

ComfyUI runs in a separate process group, so that its children are killed with it. Its environment is restricted
(`comfyui_environment`). One thread reads ComfyUI's output, one waits for its exit, and one checks that it responds
(`watchdog`) and kills it if it hangs. ComfyUI is ready when it responds to /system_stats and lists the models of the
workflows.

An unexpected exit is an error for the job whose prompt was running; other jobs are retried. ComfyUI is restarted once.
If the restart fails, or ComfyUI dies again before a job has succeeded, ComfyUI is lost: `is_lost` becomes true, and
`ProcessHooks.on_lost` retires the worker.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comfy_core.comfyui.responses import SHOWN_LINES
from comfy_core.comfyui.server import CALL_TIMEOUT_S, ComfyServer
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, RequestError
from worker.leases import Lease
from worker.supervision import Cause, ComfyUISupervisor, Death
from worker.watchdog import HUNG_S, LOADING_FACTOR, Watchdog, is_reading

_LOG_WAIT_AFTER_S = 5.0
"""Seconds without a response after which the wait is logged."""
_STUCK_POLL_S = 0.5
_POLL_S = 0.05
_OUTPUT_DRAIN_S = 1.0
"""Maximum seconds for reading the rest of a dead ComfyUI's output, so that an error contains the last lines."""

log = logging.getLogger(__name__)


class ModelsMissing(Exception):  # noqa: N818 - a state of the installation, not a bug
    """Model files of the workflows do not exist, or ComfyUI does not list them."""


@dataclass(frozen=True)
class KillTimeouts:
    """When an unresponsive ComfyUI is killed.

    Attributes:
        stuck_s: seconds that a prompt may keep running after an interrupt. Model loading cannot be interrupted: while
            ComfyUI reads files, the limit is LOADING_FACTOR times as long.
        hung_s: seconds without any response after which ComfyUI counts as hung.
    """

    stuck_s: float = 30.0
    hung_s: float = HUNG_S


@dataclass(frozen=True)
class ProcessHooks:
    """What to call after an unexpected exit of ComfyUI.

    Attributes:
        on_lost: called if ComfyUI could not be restarted.
        on_restarted: called when a restarted ComfyUI is ready.
    """

    on_lost: Callable[[], None] = lambda: None
    on_restarted: Callable[[], None] = lambda: None


def missing_models(server: ComfyServer, models: Sequence[str], left_s: Callable[[], float]) -> list[str]:
    """Return which of `models` (`folder/file`) ComfyUI does not list. Raises RequestError if it does not respond."""
    folders = sorted({model.partition("/")[0] for model in models})
    listed = {f"{folder}/{file}" for folder in folders for file in server.models(folder, timeout_s=left_s())}
    return [model for model in models if model not in listed]


def await_ready(
    server: ComfyServer, models: Sequence[str], timeout_s: float, find_error: Callable[[], JobError | None]
) -> None:
    """Return once ComfyUI responds and lists `models`.

    Raises JobError (comfyui_unavailable) after `timeout_s`, the error that `find_error` returns, or ModelsMissing as
    soon as ComfyUI responds but does not list a model.
    """
    deadline = time.monotonic() + timeout_s
    log_at = time.monotonic() + _LOG_WAIT_AFTER_S

    def left_s() -> float:
        return min(CALL_TIMEOUT_S, max(_POLL_S, deadline - time.monotonic()))

    while True:
        error = find_error()
        if error is not None:
            raise error
        with contextlib.suppress(RequestError):
            server.fetch_system(timeout_s=left_s())
            missing = missing_models(server, models, left_s)
            if missing:
                raise ModelsMissing(
                    f"ComfyUI does not list {', '.join(missing)}. Put each file into that folder of its models, or "
                    "remove the workflow that loads it"
                )
            return
        if time.monotonic() > deadline:
            raise JobError.because(
                ErrorCode.COMFYUI_UNAVAILABLE,
                f"ComfyUI at {server.url} was not ready after {timeout_s:.0f} s. If COMFYUI_URL is set, start it there",
            )
        if time.monotonic() > log_at:
            log.warning("ComfyUI at %s does not respond yet; waiting up to %.0f s", server.url, timeout_s)
            log_at = math.inf
        time.sleep(_POLL_S)


class ComfyProcess(ComfyUISupervisor):
    """The worker's own ComfyUI. Call `start` before use and `stop` at the end.

    Args:
        command: the command line.
        directory: the working directory.
        environment: the complete environment.
        url: ComfyUI's HTTP address.
        await_ready: waits until ComfyUI is ready. Its argument returns the error if the process has exited.
        hooks: what to call after an unexpected exit.
        kill_timeouts: when an unresponsive ComfyUI is killed.
    """

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        url: str,
        await_ready: Callable[[Callable[[], JobError | None]], None],
        hooks: ProcessHooks,
        kill_timeouts: KillTimeouts = KillTimeouts(),
    ) -> None:
        super().__init__()
        self._command = list(command)
        self._directory = directory
        self._environment = dict(environment)
        self._url = url
        self._await_ready = await_ready
        self._hooks = hooks
        self._kill_timeouts = kill_timeouts
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._kill_reason: Death | None = None
        self._reader = threading.Thread()
        self._first_line = 0
        self._stopping = threading.Event()
        self._was_restarted = False
        self._ready = threading.Event()
        self.is_lost = False
        """Whether ComfyUI died and was not restarted."""

    def start(self) -> None:
        """Start ComfyUI and return immediately."""
        self._spawn()

    def await_start(self) -> None:
        """Wait until ComfyUI is ready, then start to monitor it.

        Raises JobError (comfyui_unavailable) or ModelsMissing, after stopping ComfyUI.
        """
        child = self._child
        assert child is not None  # noqa: S101 - it was started
        try:
            self._await_ready(self.start_error)
        except (JobError, ModelsMissing):
            self.stop()
            raise
        self._note_ready(child)
        threading.Thread(target=self._watch, args=(child,), name="comfyui-watch", daemon=True).start()

    def start_error(self) -> JobError | None:
        """Return the error if ComfyUI exited before it was ready."""
        return self._exit_error(self._child) if self._child is not None else None

    def rejection_error(self) -> JobError | None:
        """Return the error for every job once ComfyUI is lost."""
        return _error("ComfyUI died and could not be restarted") if self.is_lost else None

    def await_available(self, stop_error: Callable[[], JobError | None]) -> None:
        """Wait while ComfyUI restarts. Raises JobError if ComfyUI is lost, or the error that `stop_error` returns."""
        while not self._ready.wait(_POLL_S):
            error = stop_error() or self.rejection_error()
            if error is not None:
                raise error

    def was_ended(self, lease: Lease) -> bool:
        """Return whether ComfyUI has ended since the lease began. ComfyUI's queue is then lost."""
        return self.deaths != lease.deaths

    def abandon_error(self, _lease: Lease | None) -> None:
        """Return None. The job's thread can always be waited for: its calls end when a hung ComfyUI is killed."""

    def note_success(self) -> None:
        """Record that a job succeeded, and allow one more restart."""
        super().note_success()
        self._was_restarted = False

    def end_if_stuck(self, server: ComfyServer) -> None:
        """Watch interrupted prompts in a thread, and kill ComfyUI if one still runs after `stuck_s`.

        Such a prompt blocks the next job. ComfyUI is restarted, as after any death.
        """
        if stuck_prompts := server.cleanup.stuck_prompts:
            arguments = (server, stuck_prompts, self.deaths)
            threading.Thread(target=self._kill_stuck, args=arguments, name="comfyui-stuck", daemon=True).start()

    def _kill_stuck(self, server: ComfyServer, stuck_prompts: frozenset[str], deaths: int) -> None:
        begun_at, child = time.monotonic(), self._child
        assert child is not None  # noqa: S101 - it ran the prompts

        def has_time_left() -> bool:
            waited_s, limit_s = time.monotonic() - begun_at, self._kill_timeouts.stuck_s
            return waited_s < limit_s or (waited_s < LOADING_FACTOR * limit_s and is_reading(child.pid, _STUCK_POLL_S))

        while self.deaths == deaths and has_time_left():
            with contextlib.suppress(RequestError):
                if not stuck_prompts & server.queue_state()[0]:
                    return
            time.sleep(_STUCK_POLL_S)
        if self.deaths == deaths:
            log.error("ComfyUI keeps running an interrupted prompt; killing it")
            self._kill(child, Death(Cause.STUCK, None))

    def _kill(self, child: subprocess.Popen[str], death: Death) -> None:
        self._kill_reason = death
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)

    def stop(self, grace_s: float = 5.0) -> None:
        """Stop ComfyUI and all its child processes."""
        with self._lock:
            self._stopping.set()
            child = self._child
        if child is not None:
            _stop_group(child, grace_s)

    def _spawn(self) -> subprocess.Popen[str]:
        with self._lock:
            if self._stopping.is_set():
                raise _error("The worker is stopping")
            child = subprocess.Popen(  # noqa: S603 - the command is the worker's own
                [*_parent_death_prefix(), *self._command],
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
        assert child.stdout is not None  # noqa: S101 - PIPE was passed above
        self._first_line = self.log.next_line
        self._reader = threading.Thread(target=self.log.read, args=(child.stdout,), name="comfyui-log", daemon=True)
        self._reader.start()
        return child

    def _note_ready(self, child: subprocess.Popen[str]) -> None:
        watchdog = Watchdog(self._url, self._kill_timeouts.hung_s, child.pid)
        self._watchdog = watchdog
        threading.Thread(target=self._kill_hung, args=(child, watchdog), name="comfyui-watchdog", daemon=True).start()
        self._ready.set()

    def _kill_hung(self, child: subprocess.Popen[str], watchdog: Watchdog) -> None:
        if watchdog.await_hang(lambda: child.poll() is not None or self._stopping.is_set()):
            log.error("ComfyUI has not responded for %.0f s; killing it", watchdog.no_response_s)
            self._kill(child, Death(Cause.HUNG, self._leases.running()))

    def _watch(self, child: subprocess.Popen[str]) -> None:
        """Wait for ComfyUI's exit and restart it, until it is stopped or lost. `child` is the first process."""
        while True:
            status = child.wait()
            self._ready.clear()
            death = self._kill_reason or Death(Cause.DIED, self._leases.running())
            self._kill_reason = None
            _stop_group(child, 0)
            self._reader.join(_OUTPUT_DRAIN_S)
            self._deaths.append(death)
            self._leases.forget_ended()
            if self._stopping.is_set():
                return
            log.error("ComfyUI died with status %d", status)
            if self._was_restarted:
                self._give_up()
                return
            self._was_restarted = True
            try:
                child = self._spawn()
                self._await_ready(lambda child=child: self._exit_error(child))  # type: ignore[misc] # bound at once
            except (JobError, ModelsMissing, OSError) as error:
                if self._stopping.is_set():
                    return
                log.error("ComfyUI could not be restarted: %s", error)  # noqa: TRY400 - an expected error
                self.stop()
                self._give_up()
                return
            log.warning("ComfyUI was restarted")
            self._note_ready(child)
            self._hooks.on_restarted()

    def _give_up(self) -> None:
        self.is_lost = True
        self._hooks.on_lost()

    def _exit_error(self, child: subprocess.Popen[str]) -> JobError | None:
        status = child.poll()
        if status is None:
            return None
        self._reader.join(_OUTPUT_DRAIN_S)
        own_lines = self.log.lines(self._first_line)[-SHOWN_LINES:]  # safe to show: no job has used this process yet
        return _error(f"ComfyUI ended with status {status} before it was ready", log_tail=own_lines)


def _error(problem: str, **details: object) -> JobError:
    return JobError.because(ErrorCode.COMFYUI_UNAVAILABLE, problem, **details)


def _parent_death_prefix() -> list[str]:
    """Return a command prefix that kills the child when this process dies; empty if setpriv is not installed."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _stop_group(child: subprocess.Popen[str], grace_s: float) -> None:
    """Stop the process group of `child`: SIGTERM, then SIGKILL after `grace_s` for what is left."""
    for signal_number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal_number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(wait_s)
