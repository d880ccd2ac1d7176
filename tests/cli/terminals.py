"""A process of `comfy-client` on a pseudo-terminal, whose screen is emulated by pyte."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyte

from simulators.waiting import until
from tests.processes import killed_at_end

COMMAND = [sys.executable, "-m", "comfy_client.cli.main"]
_SCREEN_LINES = 300


class Terminal:
    """A process whose stdin and stderr are a terminal, and the terminal's content."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        columns: int = 120,
        *,
        is_stdout_too: bool = False,
        program: Sequence[str] = COMMAND,
    ) -> None:
        self._near, far = pty.openpty()
        termios.tcsetwinsize(far, (_SCREEN_LINES, columns))
        self._columns = columns
        self._pieces: list[bytes] = []
        inherited = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
        self.process = subprocess.Popen(  # awaited by `wait`, which kills it after 60 s
            [*program, *arguments],
            cwd=folder,
            env={**inherited, "TERM": "xterm-256color", **environment, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=far,
            stdout=far if is_stdout_too else subprocess.PIPE,
            stderr=far,
            text=True,
            start_new_session=True,  # so that a key is read from this terminal, not from that of the test run
        )
        os.close(far)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while piece := os.read(self._near, 4096):
                self._pieces.append(piece)
        except OSError:  # Linux: the other side was closed
            pass

    @property
    def output(self) -> bytes:
        """Everything that the process has written to the terminal so far."""
        return b"".join(self._pieces)

    @property
    def screen(self) -> str:
        """The same as text."""
        return self.output.decode("utf-8", "replace")

    @property
    def lines(self) -> list[str]:
        """The lines that the terminal shows now, without empty lines at the end."""
        return "\n".join(line.rstrip() for line in self._emulated().display).rstrip().split("\n")

    @property
    def text(self) -> str:
        """What the terminal shows now in one line, with single spaces."""
        return re.sub(" +", " ", "".join(self._emulated().display))

    @property
    def is_cursor_hidden(self) -> bool:
        """Whether the terminal hides its cursor now."""
        return bool(self._emulated().cursor.hidden)

    def _emulated(self) -> pyte.Screen:
        screen = pyte.Screen(self._columns, _SCREEN_LINES)
        pyte.ByteStream(screen).feed(self.output)
        return screen

    def wait_for_lines(self, *patterns: str) -> list[str]:
        """Wait until the terminal's last lines match the patterns, and return these lines."""
        found: list[str] = []

        def are_shown() -> bool:
            found[:] = self.lines[-len(patterns) :]
            return len(found) == len(patterns) and all(map(re.search, patterns, found))

        assert until(are_shown), self.screen
        return found

    @property
    def shows_typing(self) -> bool:
        """Whether the terminal shows what is typed."""
        return bool(termios.tcgetattr(self._near)[3] & termios.ECHO)

    def type(self, text: str) -> None:
        """Type a line."""
        self.press(f"{text}\n")

    def press(self, keys: str) -> None:
        """Type characters."""
        os.write(self._near, keys.encode())

    def press_ctrl_d(self) -> None:
        """Type the character that closes stdin."""
        self.press("\x04")

    def wait(self) -> tuple[int, str]:
        """Wait for the process; return its exit status and stdout."""
        with killed_at_end(self.process):
            out, _ = self.process.communicate(timeout=60)
        self._reader.join(60)
        os.close(self._near)
        return self.process.returncode, out
