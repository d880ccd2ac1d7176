"""Following prompts to their end: every wait here ends, and nothing that ComfyUI did while we were away is missed.

Frames tell when, history tells what. The wait for a prompt ends

- with its last frame, once /history has its entry (which may come late);
- with an entry of /history found after a silence, or as soon as a lost socket is back;
- with ComfyUI knowing nothing of the prompt, or not answering, for longer than `Limits` allows;
- with a deadline, or with what `stop` says (a cancel, the death of the process).
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from comfy_core.comfyui.events import Addressed, Finished, Image, Progress, Started
from comfy_core.comfyui.graph_rewrite import save_nodes
from comfy_core.comfyui.responses import Outcome, Succeeded, read_history
from comfy_core.comfyui.server import ASK_TIMEOUT_S, ComfyServer
from comfy_core.comfyui.websocket_listener import Notice, SocketBack, SocketLost
from comfy_core.contract import ErrorCode
from comfy_core.errors import JobError, RequestError
from comfy_core.workflows import Graph

_TICK_S = 0.1
"""How long one wait for a frame lasts before deadlines and `stop` are looked at again."""


@dataclass(frozen=True)
class Limits:
    """What ends the waits of a run, in seconds."""

    timeout_s: float
    """From the start of the first prompt to the end of the last."""
    queue_timeout_s: float
    """From queueing to the start of the first, while ComfyUI runs something else."""
    silence_s: float = 1.0
    """Without a frame for so long, /history is asked, and asked again as often."""
    late_s: float = 5.0
    """How long after a prompt's last frame its history entry may take."""
    unreachable_s: float = 10.0
    """How long ComfyUI may not answer."""


@dataclass(frozen=True)
class Sampling:
    """How far a run is: prompt `picture` of `pictures`, at `step` of `steps`; a preview (JPEG) where one came."""

    picture: int
    pictures: int
    step: int
    steps: int
    preview: bytes | None = None

    @property
    def percent(self) -> int:
        """How much of all pictures is done."""
        done = self.picture - 1 + (self.step / self.steps if self.steps else 0)
        return int(100 * done / self.pictures)


Observe: TypeAlias = Callable[[Sampling], None]


@dataclass
class Prompt:
    """One prompt and what is known of it.

    `images` are the pictures that came as frames, by the node that saved. `asked` is the graph as the caller knows it:
    in `graph` some nodes have another class.
    """

    graph: Graph
    prompt_id: str
    asked: Graph = field(default_factory=dict)
    outcome: Outcome | None = None
    images: dict[str, list[bytes]] = field(default_factory=dict)
    frames_missing: bool = False
    finished_at: float | None = None
    unknown_before: bool = False
    ended_before: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether every frame of the prompt has come, so that `images` are all that it saved.

        A node that saves sends one picture at least; where none came, they were lost without notice.
        """
        is_whole = all(self.images.get(node) for node in save_nodes(self.graph))
        return self.finished_at is not None and not self.frames_missing and is_whole

    def class_of(self, node_id: str, node_type: str) -> str:
        """Return the class that a node has in the caller's graph; `node_type` if it is not there."""
        return str(self.asked[node_id]["class_type"]) if node_id in self.asked else node_type


class Follower:
    """Follows queued prompts, which ComfyUI runs in their order. `started_at` is when the first one began."""

    def __init__(
        self,
        server: ComfyServer,
        limits: Limits,
        stop: Callable[[], JobError | None],
        observe: Observe,
    ) -> None:
        self._server = server
        self._limits = limits
        self._stop = stop
        self._observe = observe
        self._clock: Callable[[], float] = time.monotonic
        self._sampling = Sampling(1, 1, 0, 0)
        self._queued_at = self._asked_at = self._clock()
        self._unanswered_since: float | None = None
        self.started_at: float | None = None

    def follow(self, prompts: Sequence[Prompt], notices: queue.SimpleQueue[Notice]) -> None:
        """Return once every prompt has succeeded.

        Raises JobError for the first that has not, and for what ended the wait.
        """
        numbered = {prompt.prompt_id: (number, prompt) for number, prompt in enumerate(prompts, 1)}
        self._sampling = Sampling(1, len(prompts), 0, 0)
        while waiting := [prompt for prompt in prompts if prompt.outcome is None]:
            self._check_ends()
            try:
                notice = notices.get(timeout=_TICK_S)
            except queue.Empty:
                if self._is_time_to_ask(waiting):
                    self._ask(waiting)
                continue
            self._take(notice, numbered, waiting)

    def _check_ends(self) -> None:
        error = self._stop()
        if error is not None:
            raise error
        if self.started_at is None:
            waited_s = self._clock() - self._queued_at
            if waited_s > self._limits.queue_timeout_s:
                raise _deadline(waited_s, "did not begin: ComfyUI was busy with other prompts")
        else:
            ran_s = self._clock() - self.started_at
            if ran_s > self._limits.timeout_s:
                raise _deadline(ran_s, "did not end; its prompts were interrupted")

    def _is_time_to_ask(self, waiting: Sequence[Prompt]) -> bool:
        """Whether it was silent for long, or a prompt has sent its last frame and history was late."""
        pause_s = _TICK_S if waiting[0].finished_at is not None else self._limits.silence_s
        return self._clock() - self._asked_at >= pause_s

    def _take(self, notice: Notice, numbered: dict[str, tuple[int, Prompt]], waiting: Sequence[Prompt]) -> None:
        match notice:
            case SocketLost():
                for prompt in waiting:
                    prompt.frames_missing = True
            case SocketBack():
                self._ask(waiting)
            case Addressed(str(prompt_id), node, event):
                self._asked_at = self._clock()
                number, prompt = numbered[prompt_id]
                self._take_event(prompt, node, event)
                self._tell(number, node in save_nodes(prompt.graph), event)

    def _take_event(self, prompt: Prompt, node: str | None, event: object) -> None:
        self._note_start()
        match event:
            case Started():
                prompt.frames_missing = False
            case Image(data, is_png=True) if node in save_nodes(prompt.graph):
                prompt.images.setdefault(str(node), []).append(data)
            case Finished():
                prompt.finished_at = self._clock()
                self._ask([prompt])

    def _tell(self, number: int, is_saving: bool, event: object) -> None:
        """Tell the observer of what has changed for it: a prompt's start, a step, a preview."""
        match event:
            case Started():
                self._sampling = replace(self._sampling, picture=number, step=0, steps=0, preview=None)
            case Progress(value=step, maximum=steps) if not is_saving:
                self._sampling = replace(self._sampling, picture=number, step=step, steps=steps, preview=None)
            case Image(data, is_png=False):
                self._sampling = replace(self._sampling, preview=data)
            case _:
                return
        self._observe(self._sampling)

    def _note_start(self) -> None:
        if self.started_at is None:
            self.started_at = self._clock()

    def _ask(self, waiting: Sequence[Prompt]) -> None:
        """Ask ComfyUI how the prompts are, and note what has ended."""
        self._asked_at = self._clock()
        try:
            self._ask_each(waiting)
            self._unanswered_since = None
        except RequestError as error:
            self._unanswered_since = self._unanswered_since or self._clock()
            unanswered_s = self._clock() - self._unanswered_since
            if unanswered_s > self._limits.unreachable_s:
                raise unavailable(f"{error}, for {unanswered_s:.0f} s") from error

    def _ask_each(self, waiting: Sequence[Prompt]) -> None:
        ended_by_frame = waiting[0].finished_at is not None
        running, pending = (set(), set()) if ended_by_frame else self._server.queue_state(timeout_s=ASK_TIMEOUT_S)
        for prompt in waiting:
            if prompt.prompt_id in pending:
                return
            outcome = read_history(self._server.history(prompt.prompt_id, timeout_s=ASK_TIMEOUT_S), prompt.prompt_id)
            if outcome is not None:
                self._note_outcome(prompt, outcome)
            elif prompt.prompt_id in running:
                self._note_start()
                return
            else:
                self._note_unknown(prompt)
                return

    def _note_outcome(self, prompt: Prompt, outcome: Outcome) -> None:
        """Take the outcome; a good one only when all frames have come, or will not come any more."""
        self._note_start()
        if not isinstance(outcome, Succeeded):
            raise replace(outcome, node_type=prompt.class_of(outcome.node_id, outcome.node_type)).error()
        if prompt.is_complete or prompt.frames_missing or prompt.ended_before or not save_nodes(prompt.graph):
            prompt.outcome = outcome
        prompt.ended_before = True

    def _note_unknown(self, prompt: Prompt) -> None:
        """A prompt that neither waits, runs nor has ended: its entry is late, or ComfyUI has lost it."""
        if prompt.finished_at is not None:
            if self._clock() - prompt.finished_at > self._limits.late_s:
                raise unavailable("ComfyUI ended the job and has no record of it")
        elif prompt.unknown_before:
            raise unavailable("ComfyUI has lost the job; it was started anew, or someone cleared its queue")
        prompt.unknown_before = True


def unavailable(problem: str) -> JobError:
    """Return the error for a ComfyUI that does not answer, or has lost what it was given."""
    message = f"{problem}. Send the job again; if it stays so, read the worker's log."
    return JobError.because(ErrorCode.COMFYUI_UNAVAILABLE, message)


def _deadline(after_s: float, what: str) -> JobError:
    return JobError.because(
        ErrorCode.DEADLINE_EXCEEDED,
        f"After {after_s:.1f} s the job {what}. Ask for fewer steps, pictures or pixels, or allow more time.",
        after_s=round(after_s, 1),
    )
