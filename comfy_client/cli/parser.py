"""Parses the command line. Errors for unknown commands and flags suggest a similar name."""

from __future__ import annotations

import argparse
import difflib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from comfy_client import __version__
from comfy_client.cli.call import JSON, Command
from comfy_client.cli.flags import UsageError
from comfy_client.cli.help import HelpFormatter, add_flags, overview_text, usage_of
from comfy_core.command_line import ConfigErrorParser
from comfy_core.errors import ConfigError

PROGRAM = "comfy-client"
SUMMARY = (
    "Generate images with Flux.1-dev on your own ComfyUI. The variable IMAGE_GENERATION_PROVIDER selects the provider."
)
_SIMILARITY = 0.68
"""How similar a name must be to be suggested (difflib's ratio): --colour is 0.67 of --loras."""
FIRST_STEPS = (
    "First, run `comfy-client init`: it asks where images are generated (also without an account or a GPU), checks the "
    "settings and stores them. `comfy-client doctor` checks them again. `comfy-client help COMMAND` explains a command."
)


class GlobalOption(NamedTuple):
    """An option of every command, which sets a variable. The flags of some commands depend on its value."""

    variable: str
    metavar: str
    help: str


GLOBAL_OPTIONS = {
    "--workflows": GlobalOption("COMFY_WORKFLOWS", "DIR", "folder of own workflows [default COMFY_WORKFLOWS]"),
    "--profile": GlobalOption(
        "COMFY_CLIENT_PROFILE", "NAME", "profile with the settings that the environment lacks, or off"
    ),
}
"""The options of every command by name."""


def without_global_options(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the arguments without GLOBAL_OPTIONS, and the variables that these set. The last value counts.

    Raises UsageError if a value is missing.
    """
    rest: list[str] = []
    variables: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in GLOBAL_OPTIONS:
            rest.append(word)
        elif not (value := value if equals else next(words, "")):
            raise UsageError(f"{name} needs a value")
        else:
            variables[GLOBAL_OPTIONS[name].variable] = value
    return rest, variables


def overview(groups: Mapping[str, Sequence[str]], summaries: Mapping[str, str]) -> str:
    """Return the help that lists all commands, by the titles of their groups."""
    options = [
        *((f"{name} {option.metavar}", option.help) for name, option in GLOBAL_OPTIONS.items()),
        (JSON.names[0], "print one JSON object on stdout"),
        ("-h, --help", "show the help of the command"),
        ("--version", "print the version (without a command)"),
    ]
    grouped = {title: [(name, summaries[name]) for name in names] for title, names in groups.items()}
    return overview_text(PROGRAM, SUMMARY, grouped, options, FIRST_STEPS)


def make_parser(summaries: Mapping[str, str], commands: Iterable[Command]) -> argparse.ArgumentParser:
    """Return the parser of all commands, with the flags of `commands`."""
    parser = ConfigErrorParser(prog=PROGRAM, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--json", dest="is_json_first", action="store_true", help="print one JSON object on stdout")
    for name, option in GLOBAL_OPTIONS.items():
        parser.add_argument(name, metavar=option.metavar, help=option.help)
    named = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=ConfigErrorParser)
    by_name = {command.name: command for command in commands}
    for name, summary in summaries.items():
        flags = by_name[name].flags if name in by_name else ()
        added = named.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            usage=usage_of(PROGRAM, name, flags).replace("%", "%%"),
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        add_flags(added, flags)
    return parser


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the commands by name."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public API for this
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - the same
            return dict(action.choices)
    return {}


def parse(parser: argparse.ArgumentParser, command: Command, words: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a command. Raises UsageError, with a suggestion for some mistakes."""
    help_for = f"`{PROGRAM} {command.name} --help` lists all options"
    try:
        options, extra = subparsers(parser)[command.name].parse_known_args(words)
    except ConfigError as error:
        options, extra, problem = argparse.Namespace(), list(words), str(error)
    else:
        problem = ""
    known = {name for flag in command.flags for name in flag.names if name.startswith("-")} | {JSON.names[0], "--help"}
    if unknown := _unknown_flag(extra, known):
        if unknown.lstrip("-") in {flag.names[0] for flag in command.flags}:
            raise UsageError(
                f"{unknown.lstrip('-')} is a positional argument: give it without a flag, in quotes. {help_for}"
            )
        input_hint = f" Inputs are given as -i {unknown.lstrip('-')}=VALUE." if "-i" in known else ""
        raise UsageError(f"there is no flag {unknown}{_suggestion(unknown, known)}{input_hint} {help_for}")
    if problem:
        raise UsageError(problem)
    if extra and hasattr(options, "prompt"):
        prompt = shlex.quote(" ".join([options.prompt, *extra]))
        raise UsageError(f"put the prompt in quotes: {PROGRAM} {command.name} {prompt}")
    if extra:
        quoted = " ".join(map(shlex.quote, extra))
        hint = ". Inputs are given as -i prompt='a red fox'" if "-i" in known else ""
        raise UsageError(f"{quoted} is one argument too many{hint}. {help_for}")
    if getattr(options, "stream", False) and not options.json:
        raise UsageError("--stream needs --json")
    return options


def unknown_command(name: str, names: Iterable[str]) -> UsageError:
    """Return the error for a command that does not exist."""
    return UsageError(f"there is no command {name!r}{_suggestion(name, names)} `{PROGRAM} help` lists the commands")


def _unknown_flag(words: Sequence[str], known: set[str]) -> str:
    """Return the first word that looks like a flag but is unknown, or an empty string."""
    for word in words:
        name = word.partition("=")[0]
        if word == "--":
            break
        is_short = not word.startswith("--") and word[:2] in known  # as in -iprompt=x
        if word.startswith("-") and word != "-" and not word[1:2].isdigit() and name not in known and not is_short:
            return name
    return ""


def _suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence: a suggestion for the misspelled `name`, or a full stop."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=_SIMILARITY)
    return f"; did you mean {close[0]}?" if close else "."
