"""The warm-up: one generation while the worker has no job, which loads the models and prepares the GPU.

A warm-up never delays a waiting job: the worker takes jobs as soon as ComfyUI responds, and the warm-up begins when it
had none for IDLE_BEFORE_S. A job that arrives later interrupts it. ComfyUI keeps the models that are loaded by then.

Each ComfyUI process gets one complete warm-up, unless a job succeeds first: a job has the same effect, and shows that
the models can be loaded. So a worker whose first jobs fail checks itself as soon as it is idle.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from comfy_core.comfyui.prompt_monitor import WaitLimits
from comfy_core.comfyui.run import Hooks, run_graphs
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, RequestError
from comfy_core.workflows import render
from worker.comfyui_process import ComfyProcess
from worker.jobs import Worker
from worker.leases import RetryJob
from worker.lifecycle import Lifecycle
from worker.png import start_encoding
from worker.supervision import RemoteComfyUI

WORKFLOW = "flux-dev-txt2img"
STEPS = 2
TIMEOUT_S = 300.0
IDLE_BEFORE_S = 1.0
"""Seconds without a job before the warm-up begins. RunPod delivers a waiting job after one round trip."""
_INTERRUPTED = frozenset({ErrorCode.CANCELLED, ErrorCode.INTERRUPTED})
_POLL_S = 0.05
_STOP_POLL_S = 0.5

log = logging.getLogger(__name__)


class WarmUp:
    """Starts the warm-ups of one worker.

    Args:
        worker: the server, the workflows and the settings.
        lifecycle: reports whether a job is active, and retires the worker if a warm-up fails.
        idle_before_s: seconds without a job before a warm-up begins.
        timeout_s: maximum seconds of a warm-up.
    """

    def __init__(
        self,
        worker: Worker,
        lifecycle: Lifecycle,
        idle_before_s: float = IDLE_BEFORE_S,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._worker = worker
        self._lifecycle = lifecycle
        self._idle_before_s = idle_before_s
        self._timeout_s = timeout_s
        self._begun_for = -1

    def begin(self, comfyui: ComfyProcess | RemoteComfyUI) -> None:
        """Warm up ComfyUI in a thread once the worker is idle. Returns immediately.

        Call it when the worker takes jobs, and after each restart of ComfyUI. A further call for the same ComfyUI
        process does nothing. Neither does any call if WORKER_WARMUP is false or the warm-up's workflow does not exist.
        """
        is_wanted = self._worker.settings.warmup and WORKFLOW in self._worker.workflows
        if is_wanted and self._begun_for != comfyui.deaths:
            self._begun_for = comfyui.deaths
            arguments = (comfyui, comfyui.deaths)
            threading.Thread(target=self._run, args=arguments, name="warm-up", daemon=True).start()

    def _run(self, comfyui: ComfyProcess | RemoteComfyUI, deaths: int) -> None:
        """Warm up when the worker is idle, until a warm-up was complete or failed, or a job has succeeded."""
        idle_since = time.monotonic()
        while not (self._lifecycle.is_ending or comfyui.has_succeeded or comfyui.deaths != deaths):
            if self._lifecycle.has_jobs:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= self._idle_before_s and self._is_over(comfyui):
                return
            time.sleep(_POLL_S)

    def _is_over(self, comfyui: ComfyProcess | RemoteComfyUI) -> bool:
        """Warm up once. Return False if the warm-up was interrupted.

        The cause may be a job, which may have ended since, the end of the worker, another client of ComfyUI, or the end
        of a ComfyUI that an earlier job's prompt blocked.
        """
        begun_at = time.monotonic()
        try:
            comfyui.await_available(self._end_error)
            begun_at = time.monotonic()
            log.info("warming up")
            self._generate(comfyui)
        except JobError as error:
            if self._must_end() or error.code in _INTERRUPTED or isinstance(error, RetryJob):
                log.info("the warm-up was interrupted after %.1f s", time.monotonic() - begun_at)
                return False
            self._report(error, comfyui)
        else:
            log.info("warmed up in %.1f s", time.monotonic() - begun_at)
        return True

    def _must_end(self) -> bool:
        return self._lifecycle.is_ending or self._lifecycle.has_jobs

    def _end_error(self) -> JobError | None:
        return JobError.because(ErrorCode.CANCELLED) if self._must_end() else None

    def _generate(self, comfyui: ComfyProcess | RemoteComfyUI) -> None:
        """Run the warm-up's prompt. Raises JobError if it fails or is interrupted.

        The lease lasts until ComfyUI no longer runs the prompt, so that a death of ComfyUI is not blamed on a job.
        """
        width, height = self._worker.settings.warmup_size
        values = {"prompt": "warm-up", "width": width, "height": height, "steps": STEPS, "seed": 0}
        graphs = render(self._worker.workflows[WORKFLOW], values)
        limits = WaitLimits(timeout_s=self._timeout_s, queue_timeout_s=self._timeout_s)
        lease = comfyui.begin_lease()
        comfyui.note_queued(lease)
        try:
            hooks = Hooks(encode=start_encoding)
            run_graphs(
                self._worker.server, graphs, [], limits, lambda: self._end_error() or comfyui.failure_of(lease), hooks
            )
        finally:
            self._await_stop(lambda: comfyui.was_ended(lease))
            comfyui.end_lease(lease)

    def _await_stop(self, has_ended: Callable[[], bool]) -> None:
        """Return when the interrupted prompt has stopped: a node that loads a model ignores the interrupt.

        Also returns when ComfyUI has ended, and after `timeout_s`.
        """
        cleanup = self._worker.server.cleanup
        deadline = time.monotonic() + self._timeout_s
        while cleanup.stuck_prompts and not has_ended() and time.monotonic() < deadline:
            time.sleep(_STOP_POLL_S)
            with contextlib.suppress(RequestError):
                cleanup.remove_prompts()

    def _report(self, error: JobError, comfyui: ComfyProcess | RemoteComfyUI) -> None:
        """Log why the warm-up failed, and retire the worker, because its jobs would fail too.

        A worker whose warm-up took too long continues: RunPod may have suspended it in the meantime (FlashBoot). If the
        prompt still runs, ComfyUI is killed and restarted.
        """
        log.error("the warm-up failed: %s", error)
        if lines := comfyui.log.lines():
            log.error("ComfyUI's last lines:\n%s", "\n".join(lines))
        if error.code is ErrorCode.DEADLINE_EXCEEDED:
            comfyui.end_if_stuck(self._worker.server)
        else:
            self._lifecycle.retire(f"the warm-up failed: {error.report.message}")
