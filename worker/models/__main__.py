"""The command python -m worker.models --to DIR, which downloads or verifies models.

Exit status 0: all models are present; 1: some are missing or wrong; 3: usage or configuration error; 130: interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import rich.progress
from rich.console import Console

from comfy_core.command_line import ConfigErrorParser, logging_to
from comfy_core.errors import ConfigError
from comfy_core.models.download import JOBS, check_models, fetch_models, ignore_progress
from comfy_core.models.files import Progress
from comfy_core.models.listing import ModelsError, WantedFile, default_list, filter_models, read_models
from comfy_core.models.source import Hub

EXIT_FAILED = 1
EXIT_USAGE_ERROR = 3
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str], env: Mapping[str, str], err: TextIO) -> int:
    """Download or verify models according to `arguments`; return the exit status."""
    try:
        options = _parser().parse_args(arguments)
        models = filter_models(read_models(options.list), options.only)
        hub = Hub.from_env(env)
    except ConfigError as error:
        err.write(f"{error}\n")
        return EXIT_USAGE_ERROR
    console = Console(file=err)
    bars = _ProgressBars(console) if err.isatty() and not options.quiet else None
    progress: Progress = bars.show if bars else ignore_progress
    if bars:
        bars.start()
    try:
        level = logging.WARNING if bars or options.quiet else logging.INFO
        with logging_to("comfy_core.models", _ConsoleLogHandler(console), level):
            if options.check:
                check_models(models, options.to, jobs=options.jobs, progress=progress)
            else:
                fetch_models(models, options.to, hub, jobs=options.jobs, progress=progress)
    except ModelsError as error:
        failure_lines = "".join(f"  {each}\n" for each in error.errors)
        err.write(f"{len(error.errors)} of {len(models)} models failed:\n{failure_lines}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        err.write("Interrupted. Partial downloads are kept; run the same command to resume\n")
        return EXIT_INTERRUPTED
    finally:
        if bars:
            bars.stop()
    if not options.quiet:
        err.write(f"{len(models)} of {len(models)} models are present and verified in {options.to}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = ConfigErrorParser(
        prog="python -m worker.models",
        description="Download the models of a list into ComfyUI's models folder, or verify existing files.",
        epilog="HF_TOKEN (or the file in HF_TOKEN_FILE) gives access to gated Hugging Face files and is sent nowhere "
        "else. HF_ENDPOINT is the URL of a mirror.",
    )
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="ComfyUI's models folder")
    parser.add_argument(
        "--list", type=Path, default=default_list(), metavar="FILE", help="list of models; default: %(default)s"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="GLOB", help="only models whose path matches; repeatable"
    )
    parser.add_argument("--check", action="store_true", help="verify all files, download nothing")
    parser.add_argument(
        "--jobs", type=_count, default=JOBS, metavar="N", help="parallel downloads; default: %(default)s"
    )
    parser.add_argument("--quiet", action="store_true", help="print only warnings and errors")
    return parser


def _count(text: str) -> int:
    if not (text.isdigit() and 1 <= int(text) <= 32):  # noqa: PLR2004 - more is not faster
        raise argparse.ArgumentTypeError(f"must be from 1 to 32, not {text!r}")
    return int(text)


class _ProgressBars(rich.progress.Progress):
    """One progress bar for each model."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.DownloadColumn(),
            rich.progress.TransferSpeedColumn(),
            rich.progress.TimeRemainingColumn(),
            console=console,
            redirect_stdout=False,
        )
        self._task_by_path: dict[str, rich.progress.TaskID] = {}
        self._creating = threading.Lock()

    def show(self, model: WantedFile, size: int) -> None:
        """Set the bar of `model` to `size` bytes."""
        with self._creating:
            task = self._task_by_path.get(model.path)
            if task is None:
                task = self._task_by_path[model.path] = self.add_task(model.path, total=model.size)
        self.update(task, completed=size)


class _ConsoleLogHandler(logging.Handler):
    """Prints log lines above the progress bars."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ, sys.stderr))
