"""The terminal's variables, and rich's console for a terminal. rich is imported when a console is needed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TextIO

from comfy_core.environment import Variable

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = Variable(
    "COLUMNS", lambda text: int(text) if text.isdecimal() else 0, "Width of the terminal. Default: its own."
)
NO_COLOR = Variable("NO_COLOR", bool, "Any value switches the colors of `comfy-client` off.")
TERM = Variable("TERM", str, "Type of the terminal. With `dumb`, progress is shown as lines, without colors.")
VARIABLES = (COLUMNS, NO_COLOR, TERM)


def can_redraw(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal that can move its cursor."""
    return stream.isatty() and TERM.read(os.environ).lower() not in {"dumb", "unknown"}


def console_for(stream: TextIO) -> Console:
    """Return a console that writes to the terminal `stream`."""
    from rich.console import Console  # noqa: PLC0415 - slow to import, and only needed on a terminal

    return Console(
        file=stream,
        width=COLUMNS.read(os.environ) or None,
        no_color=NO_COLOR.read(os.environ),
        highlight=False,
        markup=False,
        emoji=False,
    )
