"""A job's progress on stderr: the texts for its events, and the display for logs.

The display for terminals is in progress_bar.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Self, TextIO

from comfy_client.cli.terminal import visible
from comfy_client.job import Done, Downloading, Event, ProviderUnavailable, Queued, Running, Sampling, Waiting
from comfy_core.contract import JsonObject

LINE_S = 10.0
"""Interval between log lines while the state does not change."""

EVENT_NAMES: Mapping[type, str] = {
    Queued: "queued",
    Waiting: "waiting",
    Running: "running",
    Downloading: "downloading",
    Sampling: "sampling",
    ProviderUnavailable: "provider_unavailable",
}
"""The events of `--stream`, besides `done` and `error`. Their fields are those of the classes (docs/command.md)."""


def describe_event(event: Event) -> tuple[str, str, int]:
    """Return an event's stage, its details, and the job's progress in percent."""
    match event:
        case Queued():
            return "queued", "", 0
        case Downloading(done_bytes, total_bytes):
            return "downloading models", f"{done_bytes / 1e6:.0f} of {total_bytes / 1e6:.0f} MB", 0
        case Sampling(image, images, step, steps, percent):
            which = f"image {image} of {images}, " if images > 1 else ""
            return "sampling", f"{which}step {step} of {steps}", percent
        case Done():
            return "saving", "", 100
    return "running", "", 0


class ProgressDisplay:
    """Shows a job's progress. This base class only shows the lines given to `say`."""

    def __init__(self, err: TextIO) -> None:
        self._err = err

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def say(self, line: str) -> None:
        """Write a permanent line."""
        self._err.write(f"{visible(line)}\n")
        self._err.flush()

    def follow(self, job_id: str) -> None:
        """Set the job whose events are shown. Only a stream of events shows it."""

    def show(self, event: Event) -> None:
        """Show an event of the job."""


class EventStream(ProgressDisplay):
    """Passes the name of each event and its fields as JSON to `emit`. Previews are left out."""

    def __init__(self, err: TextIO, emit: Callable[[str, JsonObject], None]) -> None:
        super().__init__(err)
        self._emit = emit
        self._job_id: str | None = None

    def follow(self, job_id: str) -> None:
        """Set the job whose events are shown."""
        self._job_id = job_id

    def show(self, event: Event) -> None:
        """Emit an event of the job."""
        if name := EVENT_NAMES.get(type(event)):
            self._emit(name, {"job_id": self._job_id, **asdict(event)})


class CountDisplay(ProgressDisplay):
    """Shows how many things are finished."""

    def count(self, line: str) -> None:
        """Count one more, which `line` describes."""
        raise NotImplementedError


class TickingDisplay(ProgressDisplay):
    """A display that is updated every `tick_s` seconds, even without events."""

    def __init__(self, err: TextIO, tick_s: float = LINE_S) -> None:
        super().__init__(err)
        self._tick_s = tick_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._tick_s):
            self.tick()

    def tick(self) -> None:
        """Update the display."""
        raise NotImplementedError


class ProgressLog(TickingDisplay):
    """ProgressDisplay for a log: a line for each change of the job's state, and another every `tick_s` seconds."""

    def __init__(self, err: TextIO, tick_s: float = LINE_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(err, tick_s)
        self._clock = clock
        self._lock = threading.Lock()
        self._begun_at = self._last_line_at = clock()
        self._stage = "sending"
        self._line = "sending"
        self._reason = ""

    def show(self, event: Event) -> None:
        """Write a line if the event changes the state. Steps are only shown by `tick`."""
        match event:
            case Waiting(_, sentence) | ProviderUnavailable(sentence):
                is_new, self._reason = sentence != self._reason, sentence
                self._line = f"{self._stage}: {sentence}"
            case Queued() | Running() | Downloading() | Sampling():
                stage, details, percent = describe_event(event)
                is_new, self._stage = stage != self._stage, stage
                self._line = f"{stage}, {details} ({percent}%)" if details else stage
            case _:
                return
        if is_new:
            self._write()

    def tick(self) -> None:
        """Write the progress, unless a line was just written."""
        if self._clock() - self._last_line_at >= self._tick_s / 2:
            self._write()

    def _write(self) -> None:
        with self._lock:
            self._last_line_at = self._clock()
            self.say(f"[{self._last_line_at - self._begun_at:4.0f} s] {self._line}")
