"""One call of the command, and what a command is: the modules of commands share these."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from comfy_client.cli.flags import Flag
from comfy_client.cli.screen import Screen
from comfy_client.client import Client, client_from_env
from comfy_client.workflows import Workflow

INTERRUPTED = 130
"""The status of a shell's command that Ctrl-C ended: 128 + SIGINT."""


@dataclass(frozen=True)
class Call:
    """One call of the command: what was given, and where it shows its result."""

    options: argparse.Namespace
    screen: Screen
    environment: Mapping[str, str]
    workflows: Mapping[str, Workflow]

    def client(self) -> Client:
        """Return the client that the environment names. Raises ConfigError."""
        return client_from_env(self.environment)


@dataclass(frozen=True)
class Command:
    """One command. `run` returns the exit status; what it raises has its own."""

    name: str
    summary: str
    flags: Sequence[Flag]
    run: Callable[[Call], int]


JSON = Flag(("--json",), "Print one JSON object on stdout, an error too.", settings={"action": "store_true"})


def served(call: Call, url: str) -> None:
    """Tell who reads JSON; a person reads it in the server's own words."""
    if call.screen.is_json:
        call.screen.show({"url": url})
