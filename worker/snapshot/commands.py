"""Other programs, run to their end: git, pip, the nodes' own scripts. Each has a deadline and no one to ask.

What a program says may hold an address with a password, and nothing is shown before redacted() has seen it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from worker.snapshot.listing import redacted

_KEPT_OUTPUT = 64 * 1024
_SHOWN_LINES = 20
_NOT_INHERITED = frozenset(
    {
        # Of a repository that we may be run in, as from a git hook.
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_NAMESPACE",
        "GIT_PREFIX",
        # Of our own Python: with PYTHONSAFEPATH an install.py could not import what lies beside it.
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSAFEPATH",
    }
)


@dataclass(frozen=True)
class CompletedCommand:
    """A program that has ended, or was ended.

    Attributes:
        status: its exit status; negative is the signal that ended it.
        output: the end of what it wrote, to stdout and stderr in one.
        late: whether it was killed at its deadline.
    """

    status: int
    output: str
    late: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether it did what it was to do."""
        return self.status == 0 and not self.late

    def tail(self) -> str:
        """Return its last lines as they may be shown, each on an indented line of its own."""
        lines = [line for line in redacted(self.output).splitlines() if line.strip()]
        return "".join(f"\n    {line}" for line in lines[-_SHOWN_LINES:])


def run(arguments: Sequence[str | Path], cwd: Path, env: Mapping[str, str], timeout_s: float) -> CompletedCommand:
    """Run a program to its end and return it; at its deadline, and where we are interrupted, it is killed.

    Raises OSError where it cannot be started.
    """
    # A file and no pipe: a child of the program that outlives it would keep a pipe open, and us waiting for its end.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(  # noqa: S603 - no shell
            arguments,
            cwd=cwd,
            env=_child_env(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        late = False
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            if process.poll() is None:
                _kill(process)
        return CompletedCommand(process.returncode, _end_of(output), late)


def _child_env(env: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in env.items() if name not in _NOT_INHERITED}
    # Whoever asks for a password gets none, rather than wait for it. pip and install.py may run git too.
    never_ask = {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "false",
        "SSH_ASKPASS": "false",
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o ConnectTimeout=30",
        "GCM_INTERACTIVE": "never",
    }
    return {**inherited, **never_ask, "GIT_SSH_COMMAND": env.get("GIT_SSH_COMMAND", never_ask["GIT_SSH_COMMAND"])}


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its children too; what it leads is a group of its own
    process.wait()


def _end_of(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - _KEPT_OUTPUT))
    return output.read().decode("utf-8", "replace")
