"""The command's output: result lines on stdout, errors and progress on stderr.

With --json, stdout gets one JSON object, which is the result or the error. With --stream too, it is the last of several
lines: each has an object whose `event` names it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from comfy_client.cli.terminal import can_redraw, discarding, visible
from comfy_core.contract import ErrorReport, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError

if TYPE_CHECKING:
    from comfy_client.cli.progress import CountDisplay, ProgressDisplay


class NotShown(ComfyClientError):  # noqa: N818 - the job may have succeeded
    """The output could not be written to stdout."""


@dataclass(frozen=True)
class Screen:
    """The output streams of a command. With `is_json`, `out` gets nothing but JSON."""

    out: TextIO
    err: TextIO
    is_json: bool = False
    is_stream: bool = False

    @property
    def is_terminal(self) -> bool:
        """Whether stdout is a terminal."""
        return self.out.isatty()

    def show(self, value: JsonObject, *lines: str) -> None:
        """Write `value` as JSON if `is_json` is set, else the lines."""
        if self.is_json:
            self.show_event("error" if "error" in value else "done", value)
            return
        self._write("\n".join([*map(visible, lines), ""]))

    def show_event(self, event: str, value: JsonObject) -> None:
        """Write `value` as a line of JSON, which has the name of the event if `is_stream` is set."""
        is_unicode = (self.out.encoding or "utf-8").lower().replace("-", "") == "utf8"
        named = {"event": event, **value} if self.is_stream else value
        self._write(f"{visible(json.dumps(named, ensure_ascii=not is_unicode))}\n")

    def _write(self, text: str) -> None:
        """Write text to stdout. Raises NotShown, and BrokenPipeError if the reader has closed stdout."""
        try:
            with discarding(self.out):
                self.out.write(text)
                self.out.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise NotShown(
                f"stdout cannot be written: {error.strerror or error}. `comfy-client jobs` lists the jobs"
            ) from error

    def say(self, line: str) -> None:
        """Write a line to stderr."""
        self.err.write(f"{visible(line)}\n")
        self.err.flush()

    def note(self, line: str) -> None:
        """Write a line about the result to stderr, unless `is_json` is set."""
        if not self.is_json:
            self.say(f"comfy-client: {line}")

    def fail(self, error: ComfyClientError, lines: Sequence[str]) -> None:
        """Show an error: its report as JSON if `is_json` is set, else the lines."""
        is_shown = self.is_json and self._show_report(error.report)
        for line in () if is_shown else lines:
            self.say(f"comfy-client: {line}")

    def interrupted(self, message: str, job_id: str | None = None) -> None:
        """Show that a signal ended the command, and what happens to its job."""
        self.say(f"comfy-client: {message}")
        if self.is_json:
            self._show_report(ErrorReport(ErrorCode.CANCELLED, message, {"job_id": job_id}))

    def _show_report(self, report: ErrorReport) -> bool:
        """Write an error as JSON. Return whether stdout could be written."""
        try:
            self.show({"error": json.loads(report.to_json())})
        except (NotShown, BrokenPipeError):
            return False
        return True

    def progress(self) -> ProgressDisplay:
        """Return the progress display: a bar on a terminal, else log lines.

        With --json it only shows `say` lines, and with --stream also JSON lines.
        """
        from comfy_client.cli.progress import EventStream, ProgressDisplay, ProgressLog  # noqa: PLC0415 - few commands need them

        if self.is_json:
            return EventStream(self.err, self.show_event) if self.is_stream else ProgressDisplay(self.err)
        if not can_redraw(self.err):
            return ProgressLog(self.err)
        from comfy_client.cli.progress_bar import JobProgressBar  # noqa: PLC0415 - imports rich

        return JobProgressBar(self.err)

    def count_bar(self, total: int | None, unit: str) -> CountDisplay | None:
        """Return a bar that counts finished things, or None without a terminal or with --json."""
        if self.is_json or not can_redraw(self.err):
            return None
        from comfy_client.cli.progress_bar import CountBar  # noqa: PLC0415 - imports rich

        return CountBar(self.err, total, unit)

    def write_bytes(self, data: bytes) -> None:
        """Write a file to stdout. Raises OSError."""
        with discarding(self.out):
            self.out.buffer.write(data)
            self.out.buffer.flush()
