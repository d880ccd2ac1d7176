"""A job's progress on stderr: a bar on a terminal, lines in a log."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TextIO

from comfy_client.job import Done, Event, ProviderUnavailable, Queued, Running, Sampling, Waiting

_FORMAT = "{desc} |{bar}| {percentage:3.0f}% [{elapsed}]"
_NO_TERMINAL_COLUMNS = 100
TICK_S = 1.0
"""How often the clock of a bar moves while nothing happens."""
LINE_S = 10.0
"""How often a line is written to a log while nothing happens."""


def columns_of(err: TextIO) -> int:
    """Return the width of the terminal behind stderr. COLUMNS overrides it."""
    with suppress(KeyError, ValueError):
        return int(os.environ["COLUMNS"])
    with suppress(OSError, ValueError):
        return os.get_terminal_size(err.fileno()).columns or _NO_TERMINAL_COLUMNS
    return _NO_TERMINAL_COLUMNS


def words_of(event: Event) -> tuple[str, str, int]:
    """Return an event's stage, its details, and how many percent of the job are done."""
    match event:
        case Queued():
            return "queued", "", 0
        case Sampling(picture, pictures, step, steps, percent):
            which = f"picture {picture} of {pictures}, " if pictures > 1 else ""
            return "sampling", f"{which}step {step} of {steps}", percent
        case Done():
            return "done", "", 100
    return "running", "", 0


class Progress:
    """A job's progress. This one shows nothing but what `say` is given."""

    def __init__(self, err: TextIO) -> None:
        self._err = err

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def say(self, line: str) -> None:
        """Write a line that stays."""
        self._err.write(f"{line}\n")
        self._err.flush()

    def show(self, event: Event) -> None:
        """Show an event of the job."""


class Ticking(Progress):
    """Progress that is shown again every `tick_s` seconds, whether something happens or not."""

    def __init__(self, err: TextIO, tick_s: float = TICK_S) -> None:
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
        """Show how far the job is."""
        raise NotImplementedError


class Bar(Ticking):
    """A bar on a terminal: stage, step, and a clock that moves. Reasons to wait are lines above it."""

    def __init__(self, err: TextIO, tick_s: float = TICK_S) -> None:
        super().__init__(err, tick_s)
        from tqdm import tqdm  # noqa: PLC0415 - most calls show no bar

        self._bar: Any = tqdm(
            total=100, file=err, bar_format=_FORMAT, desc="sending", ncols=columns_of(err), nrows=24, leave=False
        )
        self._reason = ""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._bar.close()

    def say(self, line: str) -> None:
        """Write a line above the bar."""
        self._bar.write(line, file=self._err)

    def tick(self) -> None:
        """Draw the bar again: its clock has moved, and its terminal may have another width."""
        self._bar.ncols = columns_of(self._err)
        self._bar.refresh()

    def show(self, event: Event) -> None:
        """Show an event of the job."""
        match event:
            case Waiting(_, sentence) | ProviderUnavailable(sentence):
                if sentence != self._reason:
                    self._reason = sentence
                    self.say(sentence)
            case Queued() | Running() | Sampling() | Done():
                stage, details, percent = words_of(event)
                self._bar.leave = isinstance(event, Done)  # an interrupted bar goes away
                self._bar.n = max(self._bar.n, percent)
                self._bar.set_description_str(f"{stage}, {details}" if details else stage)


class Lines(Ticking):
    """Progress for a log: a line at each change of the job's state, and one every `tick_s` while there is none."""

    def __init__(self, err: TextIO, tick_s: float = LINE_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(err, tick_s)
        self._clock = clock
        self._lock = threading.Lock()
        self._begun_at = self._told_at = clock()
        self._stage = "sending"
        self._words = "sending"
        self._reason = ""

    def show(self, event: Event) -> None:
        """Write a line if the event is a change of state; steps are left to `tick`."""
        match event:
            case Waiting(_, sentence) | ProviderUnavailable(sentence):
                is_new, self._reason = sentence != self._reason, sentence
                self._words = f"{self._stage}: {sentence}"
            case Queued() | Running() | Sampling():
                stage, details, percent = words_of(event)
                is_new, self._stage = stage != self._stage, stage
                self._words = f"{stage}, {details} ({percent}%)" if details else stage
            case _:
                return
        if is_new:
            self._write()

    def tick(self) -> None:
        """Write how far the job is, if no line was written lately."""
        if self._clock() - self._told_at >= self._tick_s / 2:
            self._write()

    def _write(self) -> None:
        with self._lock:
            self._told_at = self._clock()
            self.say(f"[{self._told_at - self._begun_at:4.0f} s] {self._words}")
