"""One call of the command, what a command is, and how signals end it: shared by the modules of commands."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from comfy_client.cli.flags import Flag
from comfy_client.cli.screen import Screen

if TYPE_CHECKING:
    from comfy_client.client import Client
    from comfy_core.workflows import Workflow

_SIGNALLED = 128
"""A shell's exit status for a command that a signal ended is this plus the signal's number."""


_ENDING = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""SIGHUP says that the terminal was closed; Windows has none."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP. It ends a command exactly as Ctrl-C does, with its own exit status."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


def status_of(interrupt: KeyboardInterrupt) -> int:
    """Return the exit status of an interrupted command: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return _SIGNALLED + (interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT)


@contextmanager
def sigterm_raised() -> Iterator[None]:
    """Raise Terminated in the main thread on SIGTERM and SIGHUP. Called from another thread, it changes nothing.

    A signal that is ignored stays so: `nohup` makes SIGHUP one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in _ENDING}
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
    """One call of the command: its arguments, and where it writes its result."""

    options: argparse.Namespace
    screen: Screen
    environment: Mapping[str, str] = field(repr=False)
    workflows: Mapping[str, Workflow]

    def client(self) -> Client:
        """Return the client that the environment selects. Raises ConfigError."""
        from comfy_client.client import client_from_env  # noqa: PLC0415 - `--help` needs no HTTP client

        return client_from_env(self.environment)


@dataclass(frozen=True)
class Command:
    """One command. `run` returns the exit status; the errors that it raises have their own."""

    name: str
    flags: Sequence[Flag]
    run: Callable[[Call], int]


JSON = Flag(("--json",), "Print one JSON object on stdout, also for an error.", settings={"action": "store_true"})


def served(call: Call, url: str) -> None:
    """Print a server's address as JSON; without --json the server's own log has it."""
    if call.screen.is_json:
        call.screen.show({"url": url})
