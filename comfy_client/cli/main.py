"""The entry of `comfy-client`: arguments in, an exit status out; every error of this package ends here.

| status | means |
|---|---|
| 0 | it is done |
| 1 | the job failed, or its request is wrong |
| 2 | the command was called in a wrong way |
| 3 | a setting is missing or wrong, or the key was refused |
| 4 | the provider was not reached, or answered badly |
| 5 | the time to wait was over; the job goes on |
| 130 | Ctrl-C |
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn, TextIO

from comfy_client import __version__
from comfy_client.cli import batch, deploy, scenario
from comfy_client.cli.call import INTERRUPTED, JSON, Call, Command
from comfy_client.cli.commands import commands
from comfy_client.cli.flags import UsageError
from comfy_client.cli.screen import Screen
from comfy_client.errors import ComfyClientError, RequestError, missing_extra
from comfy_client.workflows import Workflow, default_directory, load_workflows

SUMMARY = "Makes pictures with Flux.1-dev on your own ComfyUI. IMAGE_GENERATION_PROVIDER and its variables say where."
SHELLS = ("bash", "zsh", "tcsh")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are raised, so that `--json` shows them as JSON."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with the usage, as argparse would print it."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def all_commands(workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return every command: those of jobs, and those around them."""
    return (*commands(workflows), *batch.COMMANDS, *scenario.COMMANDS, *deploy.COMMANDS)


def make_parser(all_commands: Sequence[Command]) -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(prog="comfy-client", description=SUMMARY, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--json", dest="is_json_first", action="store_true", help="print one object on stdout")
    named = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for command in all_commands:
        added = named.add_parser(
            command.name, help=command.summary, description=f"{command.name}: {command.summary}.", allow_abbrev=False
        )
        for flag in command.flags:
            flag.add_to(added)
        added.set_defaults(do=command.run)
    completion = named.add_parser("completion", help="print a script that completes this command in a shell")
    completion.add_argument("shell", choices=SHELLS)
    JSON.add_to(completion)
    return parser


def main(
    arguments: Sequence[str] | None = None,
    environment: Mapping[str, str] = os.environ,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """Do what `arguments` say and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    is_json = "--json" in arguments
    screen = Screen(out or sys.stdout, err or sys.stderr, is_json=is_json)
    try:
        workflows = load_workflows(default_directory())
        parser = make_parser(all_commands(workflows))
        words = [word for word in arguments if word != "--json"]
        is_simulate = words[:1] == ["simulate"]  # whose flags are its own
        options = parser.parse_args(words[:1] if is_simulate else arguments)
        options.arguments = words[1:]
        if options.command == "completion":
            script = _completion(parser, options.shell)
            screen.show({"shell": options.shell, "script": script}, script)
            return 0
        status: int = options.do(Call(options, screen, environment, workflows))
    except ComfyClientError as error:
        screen.fail(error)
        if isinstance(error, RequestError) and error.status is None:
            screen.say("comfy-client: `comfy-client doctor` looks for the reason, step by step.")
        return error.exit_status
    except KeyboardInterrupt:
        screen.interrupted("Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read stdout is gone; Python would complain again when it flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _completion(parser: argparse.ArgumentParser, shell: str) -> str:
    try:
        import shtab  # noqa: PLC0415 - an extra of its own
    except ImportError as error:
        raise missing_extra("Completion", "completion") from error
    script: str = shtab.complete(parser, shell)
    return script


if __name__ == "__main__":
    sys.exit(main())
