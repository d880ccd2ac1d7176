"""Runs the steps of a bump and their commands. A step that succeeded before with the same inputs is not repeated."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LOG_LINES = 15
"""Lines of a failed command's log that are shown."""


class StepError(Exception):
    """A step failed. The message says what to do."""


@dataclass(frozen=True)
class Steps:
    """The steps of one bump.

    Attributes:
        folder: where the logs are, and a file for each step that succeeded.
    """

    folder: Path

    def run(self, name: str, inputs: Iterable[object], action: Callable[[], str]) -> None:
        """Run `action`, unless it succeeded before with the same inputs, and print one line with its result.

        Raises StepError with the name of the step.
        """
        key = digest(inputs)
        done = self.folder / f"{name}.done"
        if done.exists() and (lines := done.read_text().split("\n", 1))[0] == key:
            print(f"{name:<21}    done   {lines[1]}", flush=True)
            return
        done.write_text(f"{key}\n{self.always(name, action)}")

    def always(self, name: str, action: Callable[[], str]) -> str:
        """Run `action`, print one line with its result, and return the result.

        Raises StepError with the name of the step.
        """
        started = time.monotonic()
        try:
            result = action()
        except StepError as error:
            raise StepError(f"{name} failed after {time.monotonic() - started:.1f} s. {error}") from error
        print(f"{name:<21} {time.monotonic() - started:5.1f} s   {result}", flush=True)
        return result

    def command(
        self,
        arguments: Sequence[object],
        *,
        remedy: str,
        timeout_s: float,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        accepted: Collection[int] = (0,),
    ) -> str:
        """Run a command, append its output to the log, and return the output.

        Raises StepError with `remedy` and the end of the output if the exit status is not in `accepted`, or if the
        command cannot be started or takes too long.
        """
        text = [str(argument) for argument in arguments]
        log = self.folder / "log.txt"
        with log.open("a+") as output:
            output.write(f"$ {' '.join(text)}\n")
            start = output.tell()
            output.flush()
            try:
                process = subprocess.run(  # noqa: S603 - the commands are those of the steps
                    text,
                    cwd=cwd,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=timeout_s,
                    check=False,
                )
                problem = "" if process.returncode in accepted else f"status {process.returncode}"
            except subprocess.TimeoutExpired:
                problem = f"no end after {timeout_s:g} s"
            except OSError as error:
                problem = str(error)
            output.seek(start)
            printed = output.read()
        if problem:
            raise StepError(f"{remedy}\n{' '.join(text[:4])}: {problem}. {log} ends with\n{last_lines(printed)}")
        return printed


def last_lines(text: str) -> str:
    """Return the end of a log."""
    return "\n".join(text.rstrip().split("\n")[-LOG_LINES:])


def digest(inputs: Iterable[object]) -> str:
    """Return a hash of values and of files: a path counts by its content, a folder by the Python files in it."""
    found = hashlib.sha256()
    for each in inputs:
        if isinstance(each, Path):
            for file in sorted(each.rglob("*.py")) if each.is_dir() else [each]:
                found.update(file.read_bytes())
        else:
            found.update(repr(each).encode())
    return found.hexdigest()
