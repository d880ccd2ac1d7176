"""The command's help: the overview, in which the commands are grouped, and the help of each command with its flags."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from comfy_client.cli.flags import Flag

_MAX_COLUMNS = 110
"""Longer lines are hard to read."""
_WIDE_COLUMNS = 80
_MIN_COLUMNS = 40

FLAG_GROUPS: Mapping[str, frozenset[str]] = {
    "image": frozenset({
        "--image", "--mask", "--strength", "--negative-prompt", "--negative-strength", "--width", "--height", "--seed",
        "--num-images", "-i", "--graph", "--set",
    }),
    "sampling": frozenset({"--steps", "--guidance", "--sampler", "--scheduler", "--loras"}),
    "output": frozenset({
        "-o", "--force", "--show", "--output-format", "--output-quality", "--metadata", "--ai-mark", "--delivery",
        "--json", "--stream",
    }),
    "job": frozenset({
        "--last", "--wait-timeout", "--timeout-s", "--execution-timeout", "--ttl", "--low-priority", "--webhook",
    }),
}  # fmt: skip
"""The titles of groups of flags, and the first name of each flag in them. All others are in the group `options`."""


class HelpFormatter(argparse.HelpFormatter):
    """Formats for the terminal's width, and shows the metavar of a flag with several names once."""

    def __init__(self, prog: str) -> None:
        columns = help_columns()
        super().__init__(prog, width=columns, max_help_position=30 if columns >= _WIDE_COLUMNS else 24)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {action.metavar or ''}".rstrip()


def help_columns() -> int:
    """Return the width of help texts: that of the terminal, within limits."""
    return max(_MIN_COLUMNS, min(_MAX_COLUMNS, shutil.get_terminal_size().columns - 2))


def add_flags(parser: argparse.ArgumentParser, flags: Sequence[Flag]) -> None:
    """Add the flags in their groups, and --help as the last one."""
    groups = {}
    for title, names in (*FLAG_GROUPS.items(), ("options", frozenset[str]())):
        if title == "options" or any(flag.names[0] in names for flag in flags):
            groups[title] = parser.add_argument_group(title)
    title_by_name = {name: title for title, names in FLAG_GROUPS.items() for name in names}
    for flag in flags:
        is_positional = not flag.names[0].startswith("-")
        flag.add_to(parser if is_positional else groups[title_by_name.get(flag.names[0], "options")])
    groups["options"].add_argument("-h", "--help", action="help", help="Show this help.")


def usage_of(program: str, name: str, flags: Sequence[Flag]) -> str:
    """Return the usage of a command in a short line: its arguments and its required flags."""
    arguments = [flag.usage for flag in flags if not flag.names[0].startswith("-")]
    required = [f"{flag.names[-1]} {flag.metavar}" for flag in flags if flag.settings.get("required")]
    return " ".join([program, name, *arguments, *required, "[options]"])


def overview_text(
    program: str,
    summary: str,
    groups: Mapping[str, Sequence[tuple[str, str]]],
    options: Sequence[tuple[str, str]],
    first_steps: str,
) -> str:
    """Return the help that lists all commands. `groups` has the names and summaries of the commands by title."""
    columns = help_columns()
    rows = [row for group in (*groups.values(), options) for row in group]
    name_columns = max(len(name) for name, _ in rows) + 4
    paragraphs = [
        f"usage: {program} COMMAND [arguments]",
        textwrap.fill(summary, columns, break_on_hyphens=False),
        *(
            "\n".join([f"{title}:", *_indented(group, name_columns, columns)])
            for title, group in (*groups.items(), ("Options of every command", options))
        ),
        textwrap.fill(first_steps, columns, break_on_hyphens=False),
    ]
    return "\n\n".join(paragraphs)


def _indented(rows: Sequence[tuple[str, str]], name_columns: int, columns: int) -> Iterator[str]:
    for name, text in rows:
        yield textwrap.fill(
            text, columns, initial_indent=f"  {name}".ljust(name_columns), subsequent_indent=" " * name_columns
        )
