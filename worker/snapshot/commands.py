"""Runs git, pip and the install scripts of custom nodes, with a timeout and without interactive prompts.

The output of these commands may contain a URL with a password. Pass it through `redacted` before it is shown.
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

from worker.snapshot.listing import redacted

_KEPT_OUTPUT_BYTES = 64 * 1024
_SHOWN_LINES = 20
_NOT_INHERITED = {
    # Set if git started this process, for example as a hook.
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES"),
    *("GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX"),
    # Settings of this process's Python. With PYTHONSAFEPATH, install.py could not import files next to it.
    *("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH"),
}
# Password prompts fail immediately instead of blocking. pip and install.py may run git too.
_NO_PROMPTS = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "false",
    "SSH_ASKPASS": "false",
    "GCM_INTERACTIVE": "never",
}
_SSH = "ssh -o BatchMode=yes -o ConnectTimeout=30"


@dataclass(frozen=True)
class CompletedCommand:
    """The outcome of a command.

    Attributes:
        status: exit status; a negative number is the signal that ended the command.
        output: the end of the combined stdout and stderr.
        is_timed_out: whether the command was killed because of the timeout.
    """

    status: int
    output: str
    is_timed_out: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether the command exited with status 0 in time."""
        return self.status == 0 and not self.is_timed_out

    def tail(self) -> str:
        """Return the last lines of the output, redacted and indented."""
        lines = [line for line in redacted(self.output).splitlines() if line.strip()]
        return "".join(f"\n    {line}" for line in lines[-_SHOWN_LINES:])


def run(arguments: Sequence[str | Path], cwd: Path, env: Mapping[str, str], timeout_s: float) -> CompletedCommand:
    """Run a command and return its outcome. The command is killed at the timeout, or if this process is interrupted.

    Raises OSError if the command cannot be started.
    """
    inherited = {name: value for name, value in env.items() if name not in _NOT_INHERITED}
    # A file instead of a pipe: a surviving child of the command would keep a pipe open and block the reader.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(  # noqa: S603 - no shell
            arguments,
            cwd=cwd,
            env={"GIT_SSH_COMMAND": _SSH, **inherited, **_NO_PROMPTS},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        is_timed_out = False
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            is_timed_out = True
        finally:
            if process.poll() is None:
                # The command leads its own process group, so this also kills its children.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(max(0, output.seek(0, os.SEEK_END) - _KEPT_OUTPUT_BYTES))
        return CompletedCommand(process.returncode, output.read().decode("utf-8", "replace"), is_timed_out)
