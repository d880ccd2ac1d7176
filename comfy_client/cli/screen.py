"""What the command shows: lines and one JSON object on stdout, errors and progress on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from comfy_core.contract import ErrorCode, ErrorReport, JsonObject
from comfy_core.errors import ComfyClientError

if TYPE_CHECKING:
    from comfy_client.cli.progress import Progress


@dataclass(frozen=True)
class Screen:
    """Where a command writes. With `is_json` it writes one object to `out`, and nothing else there."""

    out: TextIO
    err: TextIO
    is_json: bool = False

    @property
    def is_terminal(self) -> bool:
        """Whether stdout is a terminal."""
        return self.out.isatty()

    def show(self, value: JsonObject, *lines: str) -> None:
        """Write the object, or the lines that say the same."""
        is_unicode = (self.out.encoding or "utf-8").lower().replace("-", "") == "utf8"
        text = json.dumps(value, ensure_ascii=not is_unicode) if self.is_json else "\n".join(lines)
        self.out.write(f"{text}\n")
        self.out.flush()

    def say(self, line: str) -> None:
        """Write a line for a person to stderr."""
        self.err.write(f"{line}\n")
        self.err.flush()

    def fail(self, error: ComfyClientError, lines: Sequence[str]) -> None:
        """Show an error: its report as JSON, or its `lines`."""
        if self.is_json:
            self.show({"error": json.loads(error.report.to_json())})
        for line in () if self.is_json else lines:
            self.say(f"comfy-client: {line}")

    def interrupted(self, message: str, job_id: str | None = None) -> None:
        """Say that a signal ended the command, and what becomes of its job."""
        self.say(f"comfy-client: {message}")
        if self.is_json:
            report = ErrorReport(ErrorCode.CANCELLED, message, {"job_id": job_id})
            self.show({"error": json.loads(report.to_json())})

    def progress(self) -> Progress:
        """Return what shows a job's progress: a bar on a terminal, else lines; only `say` with --json."""
        from comfy_client.cli.progress import Bar, Lines, Progress  # noqa: PLC0415 - few calls follow a job

        if self.is_json:
            return Progress(self.err)
        return Bar(self.err) if self.err.isatty() else Lines(self.err)

    def write_bytes(self, data: bytes) -> None:
        """Write a picture to stdout. Raises OSError."""
        buffer = getattr(self.out, "buffer", sys.stdout.buffer)
        try:
            buffer.write(data)
            buffer.flush()
        except OSError:
            # What stays in the buffer would be written, and fail, once more when Python ends.
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - no path
                os.dup2(nowhere.fileno(), buffer.fileno())
            raise
