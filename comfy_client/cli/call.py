"""What all commands share: `Call`, `Command`, the flag --json, and the conversion of signals into exceptions."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfy_client.cli.flags import Flag
from comfy_client.cli.screen import Screen

if TYPE_CHECKING:
    from comfy_client.client import Client
    from comfy_client.profiles import Settings
    from comfy_core.workflows import Workflow

_SIGNAL_STATUS = 128
"""The exit status of a command that a signal ended is this number plus the signal's number."""


TERMINATING_SIGNALS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""SIGHUP means that the terminal was closed. Windows does not have it."""


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM and SIGHUP. Commands handle it like Ctrl-C, but with another exit status."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


def status_of(interrupt: KeyboardInterrupt) -> int:
    """Return the exit status of an interrupted command: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return _SIGNAL_STATUS + (interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT)


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raise Terminated on SIGTERM and SIGHUP within the block. In a thread other than the main thread, do nothing.

    An ignored signal stays ignored: `nohup` ignores SIGHUP.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in TERMINATING_SIGNALS}
    for each, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(each, _terminate)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)


def _terminate(number: int, _frame: object) -> None:
    raise Terminated(number)


@dataclass(frozen=True)
class Call:
    """One invocation of the command: parsed options, output, settings and workflows."""

    options: argparse.Namespace
    screen: Screen
    settings: Settings
    workflows: Mapping[str, Workflow]

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment, completed with the profile."""
        return self.settings.environment

    def client(self) -> Client:
        """Return the client configured by the environment, with the log of jobs. Raises ConfigError."""
        from comfy_client.client import client_from_env  # noqa: PLC0415 - `--help` needs no HTTP client
        from comfy_client.job_log import job_log_from_env  # noqa: PLC0415 - as above

        return client_from_env(self.environment, job_log=job_log_from_env(self.environment))


@dataclass(frozen=True)
class Command:
    """One command. `run` returns the exit status, or raises ComfyClientError, which has an `exit_status`."""

    name: str
    flags: Sequence[Flag]
    run: Callable[[Call], int]


JSON = Flag(("--json",), "Print one JSON object on stdout, for results and errors.", settings={"action": "store_true"})


STREAM = Flag(
    ("--stream",),
    "With --json: before it, print one JSON object a line for each event of the job.",
    settings={"action": "store_true"},
)


def print_url(call: Call, url: str) -> None:
    """With --json, print the server's URL as JSON. Without it, the server's own log shows the URL."""
    if call.screen.is_json:
        call.screen.show({"url": url})
