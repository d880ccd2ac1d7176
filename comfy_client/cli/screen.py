"""What the command shows: lines and one JSON object on stdout, errors and a bar on stderr."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm

from comfy_client.contract import ErrorCode, ErrorReport, JsonObject
from comfy_client.errors import ComfyClientError
from comfy_client.job import Done, Event, Queued, Running, Sampling, Unanswered, Waiting

_FORMAT = "{desc} |{bar}| {percentage:3.0f}% {postfix} [{elapsed}]"


@dataclass(frozen=True)
class Screen:
    """Where a command writes. With `is_json` it writes one object to `out`, and nothing else there."""

    out: TextIO
    err: TextIO
    is_json: bool = False

    def show(self, value: JsonObject, *lines: str) -> None:
        """Write the object, or the lines that say the same."""
        text = json.dumps(value, ensure_ascii=False) if self.is_json else "\n".join(lines)
        self.out.write(f"{text}\n")
        self.out.flush()

    def say(self, line: str) -> None:
        """Tell a person."""
        self.err.write(f"{line}\n")
        self.err.flush()

    def fail(self, error: ComfyClientError) -> None:
        """Show an error: its report, or its sentence."""
        if self.is_json:
            self.show({"error": json.loads(error.report.to_json())})
        else:
            self.say(f"comfy-client: {error}")

    def interrupted(self, message: str, job_id: str | None = None) -> None:
        """Say that Ctrl-C ended the command, and what becomes of its job."""
        self.say(f"comfy-client: {message}")
        if self.is_json:
            report = ErrorReport(ErrorCode.CANCELLED, message, {"job_id": job_id})
            self.show({"error": json.loads(report.to_json())})

    def bar(self) -> Bar:
        """Return a bar, which shows nothing where stderr is no terminal."""
        return Bar(self.err, is_shown=self.err.isatty() and not self.is_json)

    def write_bytes(self, data: bytes) -> None:
        """Write a picture to stdout."""
        buffer = getattr(self.out, "buffer", sys.stdout.buffer)
        buffer.write(data)
        buffer.flush()


class Bar:
    """A job's progress on a terminal: stage, step, time."""

    def __init__(self, err: TextIO, *, is_shown: bool) -> None:
        # Not tqdm's own measure: it shows nothing on a terminal that tells no size.
        columns, rows = shutil.get_terminal_size()
        self._bar: Any = tqdm(
            total=100, file=err, disable=not is_shown, bar_format=_FORMAT, desc="sending", ncols=columns, nrows=rows
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def show(self, event: Event) -> None:
        """Show what happened."""
        match event:
            case Queued():
                self._stage("queued")
            case Waiting(_, sentence) | Unanswered(sentence):
                self._bar.set_postfix_str(sentence[:80])
            case Running():
                self._stage("running")
            case Sampling(picture, pictures, step, steps, percent):
                self._stage("sampling")
                self._to(percent)
                which = f"picture {picture} of {pictures}, " if pictures > 1 else ""
                self._bar.set_postfix_str(f"{which}step {step} of {steps}")
            case Done():
                self._to(100)
                self._stage("done")

    def _stage(self, name: str) -> None:
        self._bar.set_postfix_str("", refresh=False)
        self._bar.set_description_str(name)

    def _to(self, percent: int) -> None:
        self._bar.update(max(0, percent - self._bar.n))
