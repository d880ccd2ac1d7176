"""The faults of the simulated ComfyUI, as methods. Any thread may call them, before or while prompts run.

Steps are counted from 1 in each sampler. The faults of websockets and connections happen after the progress of their
step was sent, or at once if the step is `None`. `hang_sampling` and `block_server` happen at the start of their step.

| fault | what a client sees |
|---|---|
| drop_socket(at_step=1) | its websocket is closed cleanly at that step; the run continues |
| reset_socket(at_step=1) | its websocket ends with a TCP RST at that step; the run continues |
| stall_socket(at_step=1) | its websocket stays open and is silent from that step on, pings included; a new one works |
| refuse_connections(seconds) | all connections are closed, and new ones are refused for `seconds` |
| run_out_of_memory(times=1) | samplers end in execution_error, torch.OutOfMemoryError |
| fail_node(class_type, exception_type, message, times=1) | nodes of that class end in execution_error |
| lose_image(times=1) | an image of SendPixelsWebsocket is not sent |
| die(at_step=1) | all connections are closed and refused from that step on, as after SIGKILL; a process exits 137 |
| respond_slowly(path, seconds, times=1) | a response is delayed by `seconds` |
| respond_500(path, times=1) | status 500 instead of the response; the request has no effect |
| cut_response(path, times=1) | the connection is closed without a response; the request has no effect |
| write_history_late(seconds) | every entry in /history appears `seconds` after execution_success (or _error) |
| lack_cancel() | 405 for /api/jobs/{id}/cancel, as before ComfyUI 0.26 |
| lack_experiments() | 404 for /experiment/…, as in a version that does not have these requests |
| forget_everything() | as after a restart: sockets closed; queue, history, cache and the running prompt are lost |
| hang_sampling(at_step=1, ignores_interrupt=False, times=1) | that step hangs until it is interrupted |
| block_server(at_step=1, times=1) | the server stops responding, as when a node blocks the interpreter |
| release() | ends every hang, block and stall, and the delay of history entries |
| clear() | removes the faults that have not happened yet, but not `write_history_late` and `lack_…` |

A path is `/history`, which includes the paths below it, or `POST /history`. The prefix /api is ignored.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

if TYPE_CHECKING:
    from simulators.comfyui.core import Core

Cut = Literal["drop", "reset", "stall", "die"]
Call: TypeAlias = "Callable[[Callable[[Core], Coroutine[Any, Any, None]]], None]"
"""Runs a coroutine on the running server, from any thread."""
SAMPLERS = ("KSampler", "SamplerCustomAdvanced")
OUT_OF_MEMORY = (
    "Allocation of 2.25 GiB on device 0 failed: 23.52 GiB in all, 1.11 GiB free, 21.98 GiB held by this process"
)
OUT_OF_MEMORY_TIP = (
    "This error means you ran out of memory on your GPU.\n\n"
    "TIPS: If the workflow worked before you might have accidentally set the batch_size to a large number."
)


@dataclass(frozen=True)
class NodeFault:
    """How nodes of some classes fail."""

    class_types: tuple[str, ...]
    type_name: str
    message: str
    tip: str = ""


@dataclass(frozen=True)
class ResponseFault:
    """How requests to a path fail: a late response, status 500, or a closed connection."""

    path: str
    seconds: float = 0.0
    is_500: bool = False
    is_cut: bool = False

    def fits(self, method: str, path: str) -> bool:
        """Return whether the fault applies to a request."""
        path = path.removeprefix("/api")
        return any(name == self.path or name.startswith(f"{self.path}/") for name in (path, f"{method} {path}"))


@dataclass(frozen=True)
class Hang:
    """A sampling step that hangs, until it is interrupted unless `ignores_interrupt`."""

    at_step: int
    ignores_interrupt: bool


@dataclass(frozen=True)
class ServerBlock:
    """A sampling step that blocks the whole server."""

    at_step: int


@dataclass(frozen=True)
class CutFault:
    """A connection fault at a step."""

    how: Cut
    at_step: int


@dataclass(frozen=True)
class ImageLoss:
    """An image of SendPixelsWebsocket that is not sent."""


Fault = ImageLoss | NodeFault | ResponseFault | Hang | ServerBlock | CutFault
_Kind = TypeVar("_Kind", ImageLoss, NodeFault, ResponseFault, Hang, ServerBlock, CutFault)


class ComfyUIFaults:
    """The methods that inject faults, and the faults that have not happened yet."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._armed: list[Fault] = []
        self._history_delay_s = 0.0
        self._lacks_cancel = False
        self.lacks_experiments = False
        self.released = threading.Event()
        """Set when a blocked server may continue."""

    @property
    def armed(self) -> list[Fault]:
        """The faults that have not happened yet."""
        with self._lock:
            return list(self._armed)

    @property
    def history_delay_s(self) -> float:
        """The delay of history entries."""
        return self._history_delay_s

    @property
    def lacks_cancel(self) -> bool:
        """Whether /api/jobs/{id}/cancel does not exist."""
        return self._lacks_cancel

    def drop_socket(self, at_step: int | None = 1) -> None:
        """Close the client's websocket cleanly, or the websockets of all clients if `at_step` is None."""
        self._cut("drop", at_step)

    def reset_socket(self, at_step: int | None = 1) -> None:
        """End the client's websocket with a TCP RST, or those of all clients if `at_step` is None."""
        self._cut("reset", at_step)

    def stall_socket(self, at_step: int | None = 1) -> None:
        """Send no more frames to the client's websocket, or to any websocket if `at_step` is None."""
        self._cut("stall", at_step)

    def die(self, at_step: int | None = 1) -> None:
        """Stop as if killed."""
        self._cut("die", at_step)

    def lose_image(self, times: int = 1) -> None:
        """Send no frame for an image of SendPixelsWebsocket."""
        self._arm(ImageLoss(), times)

    def refuse_connections(self, seconds: float) -> None:
        """Close all connections and refuse new ones for `seconds`."""
        self._call(lambda core: core.refuse(seconds))

    def run_out_of_memory(self, times: int = 1) -> None:
        """Make samplers run out of memory."""
        self._arm(NodeFault(SAMPLERS, "torch.OutOfMemoryError", OUT_OF_MEMORY, OUT_OF_MEMORY_TIP), times)

    def fail_node(self, class_type: str, exception_type: str, message: str, times: int = 1) -> None:
        """Make nodes of a class fail."""
        self._arm(NodeFault((class_type,), exception_type, message), times)

    def respond_slowly(self, path: str, seconds: float, times: int = 1) -> None:
        """Delay the responses of a path."""
        self._arm(ResponseFault(path, seconds=seconds), times)

    def respond_500(self, path: str, times: int = 1) -> None:
        """Respond to requests to a path with status 500."""
        self._arm(ResponseFault(path, is_500=True), times)

    def cut_response(self, path: str, times: int = 1) -> None:
        """Close the connection of requests to a path."""
        self._arm(ResponseFault(path, is_cut=True), times)

    def write_history_late(self, seconds: float) -> None:
        """Delay history entries by `seconds`."""
        self._history_delay_s = seconds

    def lack_cancel(self) -> None:
        """Respond to /api/jobs/{id}/cancel with status 405, as ComfyUI before 0.26."""
        self._lacks_cancel = True

    def lack_experiments(self) -> None:
        """Respond to /experiment/… with status 404."""
        self.lacks_experiments = True

    def forget_everything(self) -> None:
        """Reset all state, as a restarted ComfyUI would."""
        self._call(lambda core: core.forget())

    def hang_sampling(self, at_step: int = 1, ignores_interrupt: bool = False, times: int = 1) -> None:
        """Make a step hang."""
        self._arm(Hang(at_step, ignores_interrupt), times)

    def block_server(self, at_step: int = 1, times: int = 1) -> None:
        """Make a step block the whole server."""
        self.released.clear()
        self._arm(ServerBlock(at_step), times)

    def release(self) -> None:
        """End every hang, block and stall, and the delay of history entries."""
        self._history_delay_s = 0.0
        self.released.set()
        self._call(lambda core: core.release())

    def clear(self) -> None:
        """Remove the faults that have not happened yet, but not `write_history_late` and `lack_…`."""
        with self._lock:
            self._armed = []

    def take_node_fault(self, class_type: str) -> NodeFault | None:
        """Remove and return the next fault of a node class, or None."""
        return self._take(NodeFault, lambda fault: class_type in fault.class_types)

    def take_image_loss(self) -> bool:
        """Remove the next lost image; return whether there was one."""
        return self._take(ImageLoss, lambda _: True) is not None

    def take_response_fault(self, method: str, path: str) -> ResponseFault | None:
        """Remove and return the next fault of a request, or None."""
        return self._take(ResponseFault, lambda fault: fault.fits(method, path))

    def take_hang(self, step: int) -> Hang | None:
        """Remove and return the next hang of a step that starts, or None."""
        return self._take(Hang, lambda fault: fault.at_step == step)

    def take_server_block(self, step: int) -> threading.Event | None:
        """Remove the next block of the server at a step that starts; return the event that ends it, or None."""
        return self.released if self._take(ServerBlock, lambda fault: fault.at_step == step) else None

    def take_cut(self, step: int) -> CutFault | None:
        """Remove and return the next connection fault of a step whose progress was sent, or None."""
        return self._take(CutFault, lambda fault: fault.at_step == step)

    def _cut(self, how: Cut, at_step: int | None) -> None:
        if at_step is None:
            self._call(lambda core: core.cut(how))
        else:
            self._arm(CutFault(how, at_step), 1)

    def _arm(self, fault: Fault, times: int) -> None:
        with self._lock:
            self._armed += [fault] * times

    def _take(self, kind: type[_Kind], fits: Callable[[_Kind], bool]) -> _Kind | None:
        with self._lock:
            for index, fault in enumerate(self._armed):
                if isinstance(fault, kind) and fits(fault):
                    del self._armed[index]
                    return fault
        return None


def parameters_of(name: str) -> list[inspect.Parameter]:
    """Return the parameters of a fault, without `self`."""
    return list(inspect.signature(FAULTS[name]).parameters.values())[1:]


def parse_fault(text: str) -> Callable[[ComfyUIFaults], None]:
    """Parse `fault:argument:argument`; return a function that injects the fault.

    Raises:
        ValueError: the fault does not exist, or does not take these arguments.
    """
    name, *texts = text.split(":")
    if name not in FAULTS:
        raise ValueError(f"{name!r} is not a fault; the faults are {', '.join(FAULTS)}")
    declared = parameters_of(name)
    required = sum(parameter.default is parameter.empty for parameter in declared)
    if not required <= len(texts) <= len(declared):
        parameters = ":".join(parameter.name for parameter in declared)
        raise ValueError(f"{text!r} has {len(texts)} arguments; it is {name}:{parameters}")
    values = [_PARSERS[parameter.annotation](argument) for parameter, argument in zip(declared, texts, strict=False)]
    return lambda faults: FAULTS[name](faults, *values)


_PARSERS: dict[str, Callable[[str], object]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": lambda word: word.lower() in {"1", "true", "yes"},
    "int | None": lambda word: None if word.lower() == "none" else int(word),
}
FAULTS: dict[str, Callable[..., None]] = {
    name: method
    for name, method in vars(ComfyUIFaults).items()
    if inspect.isfunction(method) and not name.startswith("_") and inspect.signature(method).return_annotation == "None"
}
