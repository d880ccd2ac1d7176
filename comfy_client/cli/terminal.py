"""The terminal's variables, and rich's console for a terminal. rich is imported when a console is needed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from comfy_core.environment import Variable

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = Variable(
    "COLUMNS", lambda text: int(text) if text.isdecimal() else 0, "Width of the terminal. Default: its own."
)
NO_COLOR = Variable("NO_COLOR", bool, "Any value switches the colors of `comfy-client` off.")
TERM = Variable("TERM", str, "Type of the terminal. With `dumb`, progress is shown as lines, without colors.")
VARIABLES = (COLUMNS, NO_COLOR, TERM)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters except tab and newline, and the characters that change the direction of the text after them."""


class Sequences(str):
    """Text whose escape sequences this program has made, so that `visible` does not change it."""

    __slots__ = ()


def visible(text: str) -> str:
    """Return the text with JSON's escapes in place of control characters, which a terminal would execute.

    Prompts, file names and the errors of a provider are from others. Escapes within a JSON string keep its value.
    """
    return text if isinstance(text, Sequences) else _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


@contextmanager
def discarding(stream: TextIO) -> Iterator[None]:
    """When a write to `stream` in the block fails, discard all that is written to it later, and raise OSError again.

    Otherwise Python would write the rest of the buffer at exit, and fail again.
    """
    try:
        yield
    except OSError:
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - os.devnull is a string
            os.dup2(nowhere.fileno(), stream.fileno())
        raise


class MessageStream:
    """A TextIO for messages. What cannot be written to `stream` is lost: no job may depend on its messages.

    The disk may be full, the reader of a pipe may have ended, or the terminal may be closed.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute of a stream
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, if that is possible."""
        with suppress(OSError), discarding(self._stream):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write the buffered text, if that is possible."""
        with suppress(OSError), discarding(self._stream):
            self._stream.flush()


def open_stream(stream: TextIO | None) -> TextIO:
    """Return the stream. If it was closed before the process began, return one to which every write fails."""
    return stream or open(os.devnull, encoding="utf-8")  # noqa: PTH123 - os.devnull is a string; closed at exit


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
