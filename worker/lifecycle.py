"""The worker's end: on SIGTERM, and when its ComfyUI is lost. No job in hand is left without its answer.

The SDK answers SIGTERM by taking no more jobs, and leaves once its long polls have returned, up to 90 s later; it knows
nothing of ComfyUI (docs/reference/runpod.md#concurrency-and-shutdown). Here a thread waits until the tasks of all
jobs in hand are done, which is after the SDK has posted their results, stops ComfyUI, and ends the process; where
the SDK leaves first, it waits for that.
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

from comfy_core.contract import ErrorCode
from comfy_core.errors import JobError

INTERRUPTED_S = 15.0
"""How long jobs in hand may take to end and be posted once they are interrupted."""
STOP_S = 15.0
"""How long ComfyUI may take to stop, and the platform to be told."""
SETTLE_S = 0.5
"""Without a job for so long, none is in hand: the SDK starts one that it has taken within 0.1 s."""
_POLL_S = 0.05

log = logging.getLogger(__name__)


def end_process(status: int) -> None:
    """End this process and the SDK's ping process, now; nothing else would end it while a long poll is open."""
    for child in multiprocessing.active_children():
        child.kill()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


class Lifecycle:
    """Counts the jobs in hand and ends the process when it is time.

    Args:
        stop_comfyui: ends ComfyUI, where it is a child.
        report_unhealthy: tells the platform why the worker retires.
        grace_s: how long a job may run on after SIGTERM before it is interrupted.
        end: ends the process with a status.
    """

    def __init__(
        self,
        *,
        stop_comfyui: Callable[[], None],
        report_unhealthy: Callable[[str], None],
        grace_s: float,
        end: Callable[[int], None] = end_process,
    ) -> None:
        self._stop_comfyui = stop_comfyui
        self._report_unhealthy = report_unhealthy
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
        """Whether the worker was told to end, or retires."""
        return self._ending.locked()

    def note_job(self) -> None:
        """Note the job of the current task: it is in hand until the SDK has posted its result and the task is done."""
        task = asyncio.current_task()
        if task is not None and task not in self._tasks:
            self._tasks.add(task)
            task.add_done_callback(self._note_done)

    def _note_done(self, task: asyncio.Task[object]) -> None:
        self._last_job_at = time.monotonic()
        self._tasks.discard(task)

    def stop_error(self) -> JobError | None:
        """Return the error for a job that has to end because the worker does."""
        if not self._interrupting:
            return None
        return JobError.because(ErrorCode.INTERRUPTED, "The worker was told to stop. Send the job again.")

    def handle_signals(self) -> None:
        """Have SIGTERM and SIGINT end the worker in order, beside what was to be done on them. In the main thread.

        To be called for the boot, and again once the SDK has put its own handlers in their place.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            if before is self._handlers.get(number):
                continue

            def on_signal(number: int, frame: FrameType | None, before: object = before) -> None:
                if callable(before):
                    before(number, frame)
                self._begin_end(0, "")

            self._handlers[number] = on_signal
            signal.signal(number, on_signal)

    def retire(self, reason: str) -> None:
        """End the worker as unhealthy once its jobs in hand have been answered. Returns at once."""
        self._begin_end(1, reason)
        if self._handlers:
            os.kill(os.getpid(), signal.SIGTERM)  # the SDK's word for taking no more jobs

    def await_end(self) -> None:
        """End the process in order where the SDK has left before that was done. Returns only where `end` does.

        It leaves once its long polls have returned, which may be at once: the thread that stops ComfyUI and tells the
        platform would die with the main thread, and the status would be 0 (seen in scripts/soak).
        """
        self._begin_end(0, "")
        self._ended.wait(self._grace_s + INTERRUPTED_S + STOP_S)

    def _begin_end(self, status: int, reason: str) -> None:
        if self._ending.acquire(blocking=False):
            threading.Thread(target=self._end_in_order, args=(status, reason), name="worker-end", daemon=True).start()

    def _end_in_order(self, status: int, reason: str) -> None:
        log.warning("the worker ends: %s", reason or "it was told to stop")
        self._last_job_at = time.monotonic()
        if not self._await_idle(self._grace_s):
            self._interrupting = True
            self._await_idle(INTERRUPTED_S)
        self._stop_comfyui()
        if reason:
            self._report_unhealthy(reason)
        self._end(status)
        self._ended.set()

    def _await_idle(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self._tasks or time.monotonic() - self._last_job_at < SETTLE_S:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True
