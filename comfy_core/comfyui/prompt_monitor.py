"""Waits for queued prompts to finish.

Websocket frames give the timing; /history gives the result. The wait for a prompt ends

- after the prompt's last frame, once /history has the prompt's entry (which may be delayed);
- without the last frame, when /history has the entry: it is polled while no frames arrive, and after a reconnect;
- when two polls find that ComfyUI does not have the prompt, or when ComfyUI does not respond for too long;
- at a timeout, or when `stop_reason` returns an error (the job was cancelled, or ComfyUI exited).
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from comfy_core.comfyui.events import AttributedEvent, Finished, Image, PixelImage, Started, StepProgress
from comfy_core.comfyui.graph_rewrite import websocket_savers
from comfy_core.comfyui.responses import Outcome, Succeeded, read_history
from comfy_core.comfyui.server import POLL_TIMEOUT_S, ComfyServer
from comfy_core.comfyui.websocket_listener import Notice, SocketLost, SocketReopened
from comfy_core.contract import JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, RequestError
from comfy_core.graphs import Graph
from comfy_core.images.pixels import EncodePixels
from comfy_core.progress import Progress

_TICK_S = 0.1
"""Maximum interval between checks of the timeouts and `stop_reason`."""


@dataclass(frozen=True)
class WaitLimits:
    """Timeouts and a polling interval of a run, in seconds."""

    timeout_s: float
    """Maximum time from the start of the first prompt to the end of the last."""
    queue_timeout_s: float
    """Maximum time from queueing to the start of the first prompt, while ComfyUI executes other prompts."""
    silence_s: float = 1.0
    """Polling interval of /history while no frames arrive."""
    history_delay_s: float = 5.0
    """Maximum delay of a prompt's history entry after its last frame."""
    unreachable_s: float = 10.0
    """Maximum time without a response of ComfyUI."""


Observe: TypeAlias = Callable[[Progress], None]
"""Called with the progress when a prompt starts, and for each step and preview."""


@dataclass
class Prompt:
    """A prompt and its state.

    Attributes:
        graph: the graph as queued. Some nodes have another class than in `original`.
        prompt_id: ComfyUI's id of the prompt, which this package chooses.
        original: the graph from which `graph` was made: the caller's, with the names of the uploads.
        extra_data: what /queue and /history return with the prompt, in addition to the run's `extra_data`.
        outcome: the outcome of a prompt that has succeeded, else None.
        images: the images received as frames, by the node that sent them and by their index. An image that was sent as
            raw pixels is the result of a future.
        image_counts: the number of images that a node sends, by node. Only frames of raw pixels contain it.
        frames_missing: whether frames were lost with the websocket.
        finished_at: monotonic time of the last frame, or None before it.
        unknown_before: whether the previous poll found the prompt neither in the queue nor in the history.
        ended_before: whether the previous poll found the prompt in the history.
    """

    graph: Graph
    prompt_id: str
    original: Graph = field(default_factory=dict)
    extra_data: JsonObject = field(default_factory=dict)
    outcome: Outcome | None = None
    images: dict[str, dict[int, bytes | Future[bytes]]] = field(default_factory=dict)
    image_counts: dict[str, int] = field(default_factory=dict)
    frames_missing: bool = False
    finished_at: float | None = None
    unknown_before: bool = False
    ended_before: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether all frames have been received, so that `images` holds every saved image.

        Every node that sends images sends at least one. If a node has fewer than it sends, frames were lost unnoticed.
        """
        has_all_images = all(
            len(self.images.get(node, ())) >= self.image_counts.get(node, 1) for node in websocket_savers(self.graph)
        )
        return self.finished_at is not None and not self.frames_missing and has_all_images

    def images_of(self, node: str) -> list[bytes]:
        """Return the PNG files of the images that a node sent, in order. Waits until they are encoded."""
        sent = [image for _, image in sorted(self.images.get(node, {}).items())]
        return [image if isinstance(image, bytes) else image.result() for image in sent]

    def class_of(self, node_id: str, node_type: str) -> str:
        """Return the node's class in the caller's graph, or `node_type` if the caller's graph lacks the node."""
        return str(self.original[node_id]["class_type"]) if node_id in self.original else node_type


class PromptMonitor:
    """Waits for queued prompts, which ComfyUI runs in order. `started_at` is the start time of the first prompt.

    `encode` encodes images that nodes send as raw pixels. Without it they are ignored.
    """

    def __init__(
        self,
        server: ComfyServer,
        limits: WaitLimits,
        stop_reason: Callable[[], JobError | None],
        observe: Observe,
        encode: EncodePixels | None = None,
    ) -> None:
        self._server = server
        self._limits = limits
        self._stop_reason = stop_reason
        self._observe = observe
        self._encode = encode
        self._progress = Progress()
        self._queued_at = self._polled_at = time.monotonic()
        self._unreachable_since: float | None = None
        self.started_at: float | None = None

    def wait(self, prompts: Sequence[Prompt], notices: queue.SimpleQueue[Notice]) -> None:
        """Wait until every prompt has succeeded.

        Raises JobError if a prompt failed, at a timeout, if ComfyUI does not respond or has lost a prompt, or if
        `stop_reason` returned one.
        """
        numbered = {prompt.prompt_id: (number, prompt) for number, prompt in enumerate(prompts, 1)}
        self._progress = Progress(pictures=len(prompts))
        while waiting := [prompt for prompt in prompts if prompt.outcome is None]:
            self._raise_if_over()
            try:
                notice = notices.get(timeout=_TICK_S)
            except queue.Empty:
                if self._is_poll_due(waiting):
                    self._poll(waiting)
                continue
            self._handle(notice, numbered, waiting)

    def _raise_if_over(self) -> None:
        error = self._stop_reason()
        if error is not None:
            raise error
        if self.started_at is None:
            waited_s = time.monotonic() - self._queued_at
            if waited_s > self._limits.queue_timeout_s:
                raise _timed_out(waited_s, "had not started: ComfyUI was executing other prompts")
        else:
            ran_s = time.monotonic() - self.started_at
            if ran_s > self._limits.timeout_s:
                raise _timed_out(ran_s, "had not finished, and its prompts were interrupted")

    def _is_poll_due(self, waiting: Sequence[Prompt]) -> bool:
        """Return whether to poll: no frame arrived for `silence_s`, or a history entry is delayed."""
        pause_s = _TICK_S if waiting[0].finished_at is not None else self._limits.silence_s
        return time.monotonic() - self._polled_at >= pause_s

    def _handle(self, notice: Notice, numbered: dict[str, tuple[int, Prompt]], waiting: Sequence[Prompt]) -> None:
        match notice:
            case SocketLost():
                for prompt in waiting:
                    prompt.frames_missing = True
            case SocketReopened():
                self._poll(waiting)
            case AttributedEvent(str(prompt_id), node, event):
                self._polled_at = time.monotonic()
                number, prompt = numbered[prompt_id]
                self._handle_event(prompt, node, event)
                self._report_progress(number, node in websocket_savers(prompt.graph), event)

    def _handle_event(self, prompt: Prompt, node: str | None, event: object) -> None:
        self._note_start()
        match event:
            case Started():
                prompt.frames_missing = False
            case Image(data, is_png=True) if node in websocket_savers(prompt.graph):
                images = prompt.images.setdefault(str(node), {})
                images[len(images)] = data
            case PixelImage(node=sender, index=index, count=count, pixels=pixels) if self._encode is not None:
                prompt.images.setdefault(sender, {})[index] = self._encode(pixels)
                prompt.image_counts[sender] = count
            case Finished():
                prompt.finished_at = time.monotonic()
                self._poll([prompt])

    def _report_progress(self, number: int, is_saving: bool, event: object) -> None:
        """Call `observe` if a prompt started, or if there is a new step or preview."""
        match event:
            case Started():
                self._progress = Progress.at(number, self._progress.pictures)
            case StepProgress(value=step, maximum=steps) if not is_saving:
                self._progress = Progress.at(number, self._progress.pictures, step, steps)
            case Image(data, is_png=False):
                self._progress = replace(self._progress, preview=data)
            case _:
                return
        self._observe(self._progress)

    def _note_start(self) -> None:
        if self.started_at is None:
            self.started_at = time.monotonic()

    def _poll(self, waiting: Sequence[Prompt]) -> None:
        """Poll the prompts' state, and store the outcome of those that have succeeded. Raises JobError like `wait`."""
        self._polled_at = time.monotonic()
        try:
            self._poll_each(waiting)
            self._unreachable_since = None
        except RequestError as error:
            self._unreachable_since = self._unreachable_since or time.monotonic()
            unreachable_s = time.monotonic() - self._unreachable_since
            if unreachable_s > self._limits.unreachable_s:
                raise unavailable(f"{error}, for {unreachable_s:.0f} s") from error

    def _poll_each(self, waiting: Sequence[Prompt]) -> None:
        ended_by_frame = waiting[0].finished_at is not None
        running, pending = (set(), set()) if ended_by_frame else self._server.queue_state(timeout_s=POLL_TIMEOUT_S)
        for prompt in waiting:
            if prompt.prompt_id in pending:
                return
            outcome = read_history(self._server.history(prompt.prompt_id, timeout_s=POLL_TIMEOUT_S), prompt.prompt_id)
            if outcome is not None:
                self._note_outcome(prompt, outcome)
            elif prompt.prompt_id in running:
                self._note_start()
                return
            else:
                self._note_unknown(prompt)
                return

    def _note_outcome(self, prompt: Prompt, outcome: Outcome) -> None:
        """Store a success, once all frames have arrived or no more can arrive. Raise the error of any other outcome."""
        self._note_start()
        if not isinstance(outcome, Succeeded):
            raise replace(outcome, node_type=prompt.class_of(outcome.node_id, outcome.node_type)).error()
        if prompt.is_complete or prompt.frames_missing or prompt.ended_before or not websocket_savers(prompt.graph):
            prompt.outcome = outcome
        prompt.ended_before = True

    def _note_unknown(self, prompt: Prompt) -> None:
        """Handle a prompt that is neither queued, running nor in the history. Raise JobError if it is lost."""
        if prompt.finished_at is not None:
            if time.monotonic() - prompt.finished_at > self._limits.history_delay_s:
                raise unavailable("ComfyUI finished the job but has no history entry for it")
        elif prompt.unknown_before:
            raise unavailable("ComfyUI has lost the job; it was restarted, or its queue was cleared")
        prompt.unknown_before = True


def unavailable(problem: str) -> JobError:
    """Return the error for a ComfyUI that does not respond or has lost a prompt."""
    return JobError.because(ErrorCode.COMFYUI_UNAVAILABLE, problem)


def _timed_out(after_s: float, what: str) -> JobError:
    problem = f"After {after_s:.1f} s the job {what}"
    return JobError.because(ErrorCode.DEADLINE_EXCEEDED, problem, after_s=round(after_s, 1))
