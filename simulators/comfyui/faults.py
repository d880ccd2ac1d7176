"""What can be made to go wrong, as verbs. They may be called from any thread, before or while prompts run.

A step is counted within one sampling: step 1 is reached when its progress was sent. `None` means at once.

| verb | what a client sees |
|---|---|
| drop_socket(at_step=1) | its websocket is closed in order at that step; the run goes on |
| reset_socket(at_step=1) | its websocket ends with a TCP RST at that step; the run goes on |
| stall_socket(at_step=1) | its websocket stays open and is silent from that step on, pings included; a new one works |
| refuse_connections(seconds) | everything is cut, and new connections are refused for so long |
| run_out_of_memory(times=1) | samplers end in execution_error, torch.OutOfMemoryError |
| fail_node(class_type, exception_type, message, times=1) | nodes of that class end in execution_error |
| die(at_step=1) | everything is cut and refused from that step on, as after SIGKILL; a process of its own exits 137 |
| answer_slowly(path, seconds, times=1) | an answer comes so much later |
| answer_500(path, times=1) | 500 in place of an answer; the request has no effect |
| cut_answer(path, times=1) | the connection ends in place of an answer; the request has no effect |
| write_history_late(seconds) | so long between execution_success (or _error) and the entry in /history, every time |
| forget_everything() | as after a restart: sockets closed; queue, history, cache and what runs are gone |
| hang_sampling(at_step=1, deaf=False, times=1) | that step never ends until interrupted; if deaf, not even then |
| hold_server(at_step=1, times=1) | it answers nothing any more, as when a node holds the interpreter |
| go_on() | what hangs, stalls or comes late does so no more |
| clear() | no fault is to come any more |

A path is `/history`, which also means what lies below it, or `POST /history`; the prefix /api makes no difference.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

Cut = Literal["drop", "reset", "stall", "die"]
SAMPLERS = ("KSampler", "SamplerCustomAdvanced")
OUT_OF_MEMORY = (
    "Allocation of 2.25 GiB on device 0 failed: 23.52 GiB in all, 1.11 GiB free, 21.98 GiB held by this process"
)
OUT_OF_MEMORY_TIP = "The graphics card has too little memory for this. A smaller picture or batch may do."


class Server(Protocol):
    """What the verbs do to the server at once. All are called from the thread that calls the verb."""

    def cut(self, how: Cut) -> None:
        """Treat every socket that way now."""

    def refuse(self, seconds: float) -> None:
        """Cut everything and refuse connections."""

    def forget(self) -> None:
        """Be as after a restart."""

    def go_on(self) -> None:
        """Let what hangs or stalls go on."""


@dataclass(frozen=True)
class NodeFault:
    """How nodes of some classes fail."""

    class_types: tuple[str, ...]
    type_name: str
    message: str
    tip: str = ""


@dataclass(frozen=True)
class AnswerFault:
    """How a path answers: late, with a 500, or not at all."""

    path: str
    seconds: float = 0.0
    is_500: bool = False
    is_cut: bool = False

    def fits(self, method: str, path: str) -> bool:
        """Return whether a request is meant."""
        path = path.removeprefix("/api")
        return any(asked == self.path or asked.startswith(f"{self.path}/") for asked in (path, f"{method} {path}"))


@dataclass(frozen=True)
class Hang:
    """A step that does not end."""

    at_step: int
    is_deaf: bool


@dataclass(frozen=True)
class Hold:
    """A step that holds the whole server."""

    at_step: int


@dataclass(frozen=True)
class CutFault:
    """What happens to the websocket, or to the server, at a step."""

    how: Cut
    at_step: int


Fault = NodeFault | AnswerFault | Hang | Hold | CutFault
_Kind = TypeVar("_Kind", NodeFault, AnswerFault, Hang, Hold, CutFault)


class Faults:
    """The verbs, and what of them is still to come."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._armed: list[Fault] = []
        self._history_delay_s = 0.0
        self.released = threading.Event()
        """Ends a hold."""

    @property
    def armed(self) -> list[Fault]:
        """Return the faults that are still to come."""
        with self._lock:
            return list(self._armed)

    @property
    def history_delay_s(self) -> float:
        """Return how late history entries are written."""
        return self._history_delay_s

    def drop_socket(self, at_step: int | None = 1) -> None:
        """Close the client's websocket in order."""
        self._cut("drop", at_step)

    def reset_socket(self, at_step: int | None = 1) -> None:
        """Cut the client's websocket with an RST."""
        self._cut("reset", at_step)

    def stall_socket(self, at_step: int | None = 1) -> None:
        """Send no frame to the client's websocket any more."""
        self._cut("stall", at_step)

    def die(self, at_step: int | None = 1) -> None:
        """End as if killed."""
        self._cut("die", at_step)

    def refuse_connections(self, seconds: float) -> None:
        """Cut everything and refuse connections for so long."""
        self._server.refuse(seconds)

    def run_out_of_memory(self, times: int = 1) -> None:
        """Let samplers run out of memory."""
        self._arm(NodeFault(SAMPLERS, "torch.OutOfMemoryError", OUT_OF_MEMORY, OUT_OF_MEMORY_TIP), times)

    def fail_node(self, class_type: str, exception_type: str, message: str, times: int = 1) -> None:
        """Let nodes of a class fail."""
        self._arm(NodeFault((class_type,), exception_type, message), times)

    def answer_slowly(self, path: str, seconds: float, times: int = 1) -> None:
        """Answer requests to a path late."""
        self._arm(AnswerFault(path, seconds=seconds), times)

    def answer_500(self, path: str, times: int = 1) -> None:
        """Answer requests to a path with 500."""
        self._arm(AnswerFault(path, is_500=True), times)

    def cut_answer(self, path: str, times: int = 1) -> None:
        """Cut the connection of requests to a path."""
        self._arm(AnswerFault(path, is_cut=True), times)

    def write_history_late(self, seconds: float) -> None:
        """Write history entries so much later."""
        self._history_delay_s = seconds

    def forget_everything(self) -> None:
        """Be as after a restart."""
        self._server.forget()

    def hang_sampling(self, at_step: int = 1, deaf: bool = False, times: int = 1) -> None:
        """Let a step never end."""
        self._arm(Hang(at_step, deaf), times)

    def hold_server(self, at_step: int = 1, times: int = 1) -> None:
        """Let a step hold the whole server."""
        self.released.clear()
        self._arm(Hold(at_step), times)

    def go_on(self) -> None:
        """Undo what hangs, stalls or is late."""
        self._history_delay_s = 0.0
        self.released.set()
        self._server.go_on()

    def clear(self) -> None:
        """Undo every fault that is still to come."""
        with self._lock:
            self._armed = []

    def node_fault(self, class_type: str) -> NodeFault | None:
        """Take the next fault of a class of nodes."""
        return self._take(NodeFault, lambda fault: class_type in fault.class_types)

    def answer_fault(self, method: str, path: str) -> AnswerFault | None:
        """Take the next fault of a request."""
        return self._take(AnswerFault, lambda fault: fault.fits(method, path))

    def hang(self, step: int) -> Hang | None:
        """Take the next hang of a step that begins."""
        return self._take(Hang, lambda fault: fault.at_step == step)

    def hold(self, step: int) -> threading.Event | None:
        """Take the next hold of a step that begins; return what ends it."""
        return self.released if self._take(Hold, lambda fault: fault.at_step == step) else None

    def cut(self, step: int) -> CutFault | None:
        """Take the next cut of a step that is reached."""
        return self._take(CutFault, lambda fault: fault.at_step == step)

    def _cut(self, how: Cut, at_step: int | None) -> None:
        if at_step is None:
            self._server.cut(how)
        else:
            self._arm(CutFault(how, at_step), 1)

    def _arm(self, fault: Fault, times: int) -> None:
        with self._lock:
            self._armed += [fault] * times

    def _take(self, kind: type[_Kind], fits: Callable[[_Kind], bool]) -> _Kind | None:
        with self._lock:
            for place, fault in enumerate(self._armed):
                if isinstance(fault, kind) and fits(fault):
                    del self._armed[place]
                    return fault
        return None


def arguments(verb: str) -> list[inspect.Parameter]:
    """Return the arguments that a verb takes."""
    return list(inspect.signature(VERBS[verb]).parameters.values())[1:]


def parsed(words: str) -> Callable[[Faults], None]:
    """Return what `verb:argument:argument` does.

    Raises:
        ValueError: there is no such verb, or it does not take these arguments.
    """
    verb, *given = words.split(":")
    if verb not in VERBS:
        raise ValueError(f"{verb!r} is no fault; the faults are {', '.join(VERBS)}")
    declared = arguments(verb)
    least = sum(parameter.default is parameter.empty for parameter in declared)
    if not least <= len(given) <= len(declared):
        names = ":".join(parameter.name for parameter in declared)
        raise ValueError(f"{words!r} has {len(given)} arguments; it is {verb}:{names}")
    values = [_WORDS[parameter.annotation](word) for parameter, word in zip(declared, given, strict=False)]
    return lambda faults: VERBS[verb](faults, *values)


_WORDS: dict[str, Callable[[str], object]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": lambda word: word.lower() in {"1", "true", "yes"},
    "int | None": lambda word: None if word.lower() == "none" else int(word),
}
VERBS: dict[str, Callable[..., None]] = {
    name: verb
    for name, verb in vars(Faults).items()
    if inspect.isfunction(verb) and not name.startswith("_") and inspect.signature(verb).return_annotation == "None"
}
