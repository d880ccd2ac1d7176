"""Installs a locked list of packages and this project into the environment that runs it, and shows the progress.

    .venv/bin/python tools/install_packages.py requirements/demo.txt

It uses uv if uv is installed and succeeds, otherwise pip. No bytecode is compiled: Python compiles the modules that it
imports, which are few of them. Needs no packages.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

REDRAW_S = 0.2
PLAIN_LINE_S = 5.0
"""Seconds between two lines if standard error is not a terminal."""
_REQUIREMENT = re.compile(r"^([\w.-]+)==", re.MULTILINE)
_PIP_OUTPUT = re.compile(r"(Ignoring|Collecting|Installing|Obtaining) ([\w.-]+)")


def main() -> int:
    """Install the list and the project; return the exit status of the command that failed, or 0."""
    locked = Path(sys.argv[1])
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        status = 1
        if uv := shutil.which("uv"):
            with _progress(lambda: "Installing the packages with uv", began):
                status = _run(_commands([uv, "pip", "install", "--python", sys.executable], locked), log)
        if status:
            progress = PipProgress(locked.read_text())
            pip = [sys.executable, "-m", "pip", "install", "--no-compile", "--disable-pip-version-check"]
            with _progress(progress.text, began):
                status = _run(_commands([*pip, "--progress-bar", "off"], locked), log, progress.read)
        if status:
            log.seek(0)
            sys.stderr.write(log.read()[-4000:])
            sys.stderr.write(
                f"The packages of {locked} were not installed. Check the network and repeat the command.\n"
            )
            return status
    sys.stderr.write(f"Installed {locked} in {time.monotonic() - began:.0f} s.\n")
    return 0


def _commands(install: Sequence[str], locked: Path) -> list[list[str]]:
    """Return the commands that install the list and then this project. The list is complete: nothing is resolved."""
    return [
        [*install, "--no-deps", "--require-hashes", "-r", str(locked)],
        [*install, "--no-deps", "--editable", "."],
    ]


def _run(commands: Sequence[Sequence[str]], log: IO[str], read: Callable[[str], None] = lambda _: None) -> int:
    """Run the commands until one fails, pass every line to `log` and `read`, and return the last exit status."""
    status = 0
    for command in commands:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:  # noqa: S603 - pip or uv
            assert process.stdout is not None  # noqa: S101 - because of PIPE
            for line in process.stdout:
                log.write(line)
                read(line)
        status = process.returncode
        if status:
            break
    return status


class PipProgress:
    """How far pip is, according to its output and to the installed packages. pip first downloads all of them."""

    def __init__(self, locked: str) -> None:
        self._count = len(_REQUIREMENT.findall(locked))
        self._collected: list[str] = []
        self._step = "Collecting"

    def read(self, line: str) -> None:
        """Take one line of pip's output."""
        match _PIP_OUTPUT.match(line):
            case None:
                pass
            case _ if self._step == "Obtaining":  # the last step: pip only reports how it installs the project
                pass
            case found if found[1] == "Ignoring":  # the requirement is for another platform or another Python
                self._count -= 1
            case found:
                self._step = found[1]
                self._collected.append(found[2])

    def text(self) -> str:
        """Return what pip does now."""
        match self._step:
            case "Collecting":
                collected = len(self._collected)
                return " ".join([f"Downloading package {collected} of {self._count}", *self._collected[-1:]])
            case "Installing":
                installed = sum(1 for _ in Path(sysconfig.get_path("purelib")).glob("*.dist-info"))
                return f"Installing package {min(installed, self._count)} of {self._count}"
        return "Installing this project"


@contextmanager
def _progress(text: Callable[[], str], began: float) -> Iterator[None]:
    """Show `text()` and the elapsed seconds while the block runs: one live line, or a line every PLAIN_LINE_S."""
    is_over = threading.Event()
    is_terminal = sys.stderr.isatty()

    def show() -> None:
        while not is_over.wait(REDRAW_S if is_terminal else PLAIN_LINE_S):
            line = f"{text()}, {time.monotonic() - began:.0f} s"
            sys.stderr.write(
                f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}" if is_terminal else f"{line}\n"
            )
            sys.stderr.flush()

    thread = threading.Thread(target=show)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        if is_terminal:
            sys.stderr.write("\r\x1b[K")


if __name__ == "__main__":
    sys.exit(main())
