"""Graceful shutdown on SIGTERM or when ComfyUI is lost. Every accepted job still gets a response.

On SIGTERM the SDK takes no more jobs, and exits once its long polls have returned, up to 90 s later. The SDK does
not stop ComfyUI (docs/reference/runpod.md#concurrency-and-shutdown). Here a thread waits until the tasks of all active
jobs are done, which is after the SDK has posted their results. Then the thread stops ComfyUI and exits the process. If
the SDK exits first, `await_end` waits for that thread.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError

INTERRUPT_TIMEOUT_S = 15.0
"""Seconds that interrupted jobs may take to end and have their results posted."""
STOP_TIMEOUT_S = 20.0
"""Seconds that the last webhooks, stopping ComfyUI and reporting to the platform may take."""
IDLE_AFTER_S = 0.5
"""Seconds without a job after which the worker counts as idle: the SDK starts a received job within 0.1 s."""
_POLL_S = 0.05

log = logging.getLogger(__name__)


def shutdown_error() -> JobError:
    """Return the error for a job that ends, or is not started, because the worker shuts down."""
    return JobError.because(ErrorCode.INTERRUPTED, "The worker is shutting down")


def end_process(status: int) -> None:
    """Exit this process and the SDK's ping process immediately; an open long poll would delay a normal exit."""
    for child in multiprocessing.active_children():
        child.kill()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


class Lifecycle:
    """Counts the active jobs, and exits the process once none is active after a stop signal or `retire`.

    Args:
        stop_comfyui: stops ComfyUI, if it is a child process.
        report_unhealthy: reports to the platform why the worker retires.
        end_webhooks: attempts the last deliveries.
        grace_s: seconds that a job may continue after SIGTERM before it is interrupted.
        end: exits the process with a status.
    """

    def __init__(
        self,
        *,
        stop_comfyui: Callable[[], None],
        report_unhealthy: Callable[[str], None],
        end_webhooks: Callable[[], None] = lambda: None,
        grace_s: float,
        end: Callable[[int], None] = end_process,
    ) -> None:
        self._stop_comfyui = stop_comfyui
        self._report_unhealthy = report_unhealthy
        self._end_webhooks = end_webhooks
        self._grace_s = grace_s
        self._end = end
        self._tasks: set[asyncio.Task[object]] = set()
        self._last_job_at = 0.0
        self._ending = threading.Lock()
        self._ended = threading.Event()
        self._interrupting = False
        self._handlers: dict[int, Callable[[int, FrameType | None], None]] = {}

    @property
    def is_ending(self) -> bool:
        """Whether the worker is shutting down or retiring."""
        return self._ending.locked()

    @property
    def has_jobs(self) -> bool:
        """Whether a job is active."""
        return bool(self._tasks)

    def note_job(self) -> None:
        """Count the current task's job as active until the task is done.

        The task ends after the SDK has posted the job's result.
        """
        task = asyncio.current_task()
        if task is not None and task not in self._tasks:
            self._tasks.add(task)
            task.add_done_callback(self._note_done)

    def _note_done(self, task: asyncio.Task[object]) -> None:
        self._last_job_at = time.monotonic()
        self._tasks.discard(task)

    def stop_error(self) -> JobError | None:
        """Return the error for active jobs if they must end now because the worker shuts down."""
        return shutdown_error() if self._interrupting else None

    def handle_signals(self) -> None:
        """Shut down gracefully on SIGTERM and SIGINT, in addition to the existing handlers. Call it in the main thread.

        Call it before the boot, and again once the SDK has installed its own handlers.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            previous = signal.getsignal(number)
            if previous is self._handlers.get(number):
                continue

            def on_signal(number: int, frame: FrameType | None, previous: object = previous) -> None:
                if callable(previous):
                    previous(number, frame)
                self._begin_shutdown(0, "")

            self._handlers[number] = on_signal
            signal.signal(number, on_signal)

    def retire(self, reason: str) -> None:
        """Exit the worker as unhealthy once its active jobs have got their responses. Returns immediately."""
        self._begin_shutdown(1, reason)
        if self._handlers:
            os.kill(os.getpid(), signal.SIGTERM)  # makes the SDK take no more jobs

    def await_end(self) -> None:
        """Shut down gracefully after the SDK has exited. Returns only if `end` returns.

        The SDK exits once its long polls have returned, which may be immediate. Without this wait, the shutdown thread
        would die with the main thread, and the exit status would be 0 (seen in scripts/soak).
        """
        self._begin_shutdown(0, "")
        self._ended.wait(self._grace_s + INTERRUPT_TIMEOUT_S + STOP_TIMEOUT_S)

    def _begin_shutdown(self, status: int, reason: str) -> None:
        if self._ending.acquire(blocking=False):
            threading.Thread(target=self._shut_down, args=(status, reason), name="worker-end", daemon=True).start()

    def _shut_down(self, status: int, reason: str) -> None:
        log.warning("the worker is shutting down: %s", reason or "it received a stop signal")
        self._last_job_at = time.monotonic()
        if not self._await_idle(self._grace_s):
            self._interrupting = True
            self._await_idle(INTERRUPT_TIMEOUT_S)
        self._end_webhooks()
        self._stop_comfyui()
        if reason:
            self._report_unhealthy(reason)
        self._end(status)
        self._ended.set()

    def _await_idle(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self._tasks or time.monotonic() - self._last_job_at < IDLE_AFTER_S:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True
