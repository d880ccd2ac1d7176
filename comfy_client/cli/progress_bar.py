"""Progress on a terminal in two lines: bar, amount, clock and the estimated time left, and below them the stage.

The lines are redrawn several times a second, so that the clock never stands still, and removed at the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self, TextIO

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from comfy_client.cli.progress import CountDisplay, ProgressDisplay, describe_event
from comfy_client.cli.terminal import console_for, visible
from comfy_client.job import Done, Downloading, Event, ProviderUnavailable, Queued, Running, Sampling, Waiting

_REDRAWS_PER_S = 4
_MAX_BAR_COLUMNS = 50
_MIN_BAR_COLUMNS = 4
_CLOCK_COLUMNS = len(" 1:00:00, about 1:00:00 left ")


class _ClockColumn(ProgressColumn):
    """The time since the start, and the estimated time left if it is known."""

    def render(self, task: Task) -> Text:
        left_s = None if task.finished else task.time_remaining
        return Text(f"{_clock(task.elapsed or 0)}{'' if left_s is None else f', about {_clock(left_s)} left'}")


def _clock(seconds: float) -> str:
    minutes, rest_s = divmod(int(seconds), 60)
    hours, rest_minutes = divmod(minutes, 60)
    return f"{hours}:{rest_minutes:02}:{rest_s:02}" if hours else f"{minutes}:{rest_s:02}"


class _TwoLines(Progress):
    """rich's progress display with one bar, and the stage in a line below it. `amount` is a format for the task."""

    def __init__(self, err: TextIO, total: float | None, amount: str, stage: str) -> None:
        self._stage = stage
        self._amount = amount
        self._bar = BarColumn()
        self._console = console_for(err)
        super().__init__(
            self._bar,
            TextColumn(amount, markup=False),
            _ClockColumn(),
            console=self._console,
            refresh_per_second=_REDRAWS_PER_S,
            transient=True,
            redirect_stdout=False,
        )
        self._only_task = self.add_task("", total=total)

    def show(self, stage: str, *, completed: float | None = None, advance: float | None = None) -> None:
        """Set the stage, and set or advance the completed part of the total. Thread-safe."""
        self._stage = stage
        self.update(self._only_task, completed=completed, advance=advance)

    def get_renderables(self) -> Iterable[RenderableType]:
        amount_columns = max((len(self._amount.format(task=task)) for task in self.tasks), default=0)
        free_columns = self._console.width - amount_columns - _CLOCK_COLUMNS
        self._bar.bar_width = max(_MIN_BAR_COLUMNS, min(_MAX_BAR_COLUMNS, free_columns))
        yield from super().get_renderables()
        yield Text(visible(self._stage), no_wrap=True, overflow="crop")


class _Bar(ProgressDisplay):
    """Shows `lines` until the display ends, and permanent lines above them."""

    def __init__(self, err: TextIO, lines: _TwoLines) -> None:
        super().__init__(err)
        self._lines = lines

    def __enter__(self) -> Self:
        self._lines.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.stop()

    def say(self, line: str) -> None:
        """Write a permanent line above the bar."""
        self._lines.console.print(visible(line), soft_wrap=True)


class JobProgressBar(_Bar):
    """The progress of a job. Reasons to wait are written above the bar."""

    def __init__(self, err: TextIO) -> None:
        super().__init__(err, _TwoLines(err, 100, "{task.percentage:3.0f}%", "sending"))
        self._reason = ""
        self._percent = 0

    def show(self, event: Event) -> None:
        """Show an event of the job."""
        match event:
            case Waiting(_, sentence) | ProviderUnavailable(sentence):
                if sentence != self._reason:
                    self._reason = sentence
                    self.say(sentence)
            case Queued() | Running() | Downloading() | Sampling() | Done():
                stage, details, percent = describe_event(event)
                self._percent = max(self._percent, percent)
                self._lines.show(f"{stage}, {details}" if details else stage, completed=self._percent)


class CountBar(_Bar, CountDisplay):
    """How many of `total` things are finished. `total` is None if it is not known."""

    def __init__(self, err: TextIO, total: int | None, unit: str) -> None:
        amount = "{task.completed:.0f}" if total is None else "{task.completed:.0f} of {task.total:.0f}"
        super().__init__(err, _TwoLines(err, total, f"{amount} {unit}", ""))

    def count(self, line: str) -> None:
        """Count one more, and show `line` below the bar. Thread-safe."""
        self._lines.show(line, advance=1)
