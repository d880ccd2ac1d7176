"""Shell completion by argcomplete: commands, flags, choices, files, workflows, error codes, job ids, profiles.

`comfy-client completion SHELL` prints a script. On each Tab the script runs `comfy-client` with the variables of
argcomplete's protocol, and `respond` writes the completions to the file descriptor that the protocol names.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

import argcomplete
from argcomplete.completers import SuppressCompleter
from argcomplete.shell_integration import shellcode

from comfy_client.cli.call import Command
from comfy_client.cli.parser import GLOBAL_OPTIONS, PROGRAM, make_parser, subparsers
from comfy_client.cli.workflows import ACTIONS
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError
from comfy_core.models.folders import FOLDERS

if TYPE_CHECKING:
    from comfy_core.workflows import Workflow

_MAX_JOB_IDS = 20
_FILE_WORDS = ("FILE", "PATH", "DIR", "assets.toml")
"""An argument whose metavar contains one of these words is a path."""

_Values: TypeAlias = Callable[[str], Iterable[str] | Mapping[str, str]]
"""Returns possible values of an argument, or their descriptions by value. It gets what was typed so far."""


def completion_script(shell: str) -> str:
    """Return the script that enables completion in a shell."""
    return shellcode([PROGRAM], use_defaults=False, shell=shell)


def respond(
    line: str,
    summaries: Mapping[str, str],
    workflows: Mapping[str, Workflow],
    command_of: Callable[[str], Command],
    environment: Mapping[str, str],
) -> None:
    """Write the completions of `line`, which is the value of COMP_LINE, and exit the process."""
    name = next((word for word in line.split() if word in summaries), "")
    parser = make_parser(summaries, [command_of(name)] if name else [])
    titles = {each: str(workflow.schema.get("title", "")) for each, workflow in workflows.items()}
    values: dict[tuple[str, str], _Values] = {
        ("run", "name"): lambda _: titles,
        ("submit", "name"): lambda _: titles,
        ("workflows", "action"): lambda _: [*ACTIONS, *workflows],
        ("workflows", "subject"): lambda typed: [*workflows, *paths(typed)],
        ("errors", "code"): lambda _: {code.value: code.cause for code in ErrorCode},
        ("models", "subject"): lambda _: list(FOLDERS),
        ("models", "to_folder"): lambda _: list(FOLDERS),
        ("profiles", "name"): lambda _: _profile_names(environment),
        ("", "profile"): lambda _: _profile_names(environment),
        ("", "job_id"): lambda _: _job_ids(environment),
    }
    for each, added in subparsers(parser).items():
        for option, described in GLOBAL_OPTIONS.items():
            added.add_argument(option, metavar=described.metavar, help=described.help)
        for action in added._actions:  # noqa: SLF001 - argparse has no public API for this
            _set_completer(action, values.get((each, action.dest)) or values.get(("", action.dest)))
    argcomplete.autocomplete(parser, default_completer=SuppressCompleter())


def _set_completer(action: argparse.Action, values: _Values | None) -> None:
    if values is None and any(word in str(action.metavar) for word in _FILE_WORDS):
        values = paths
    if values is not None:
        action.completer = lambda prefix, **_: values(prefix)  # type: ignore[attr-defined]  # read by argcomplete


def paths(typed: str) -> Iterator[str]:
    """Yield the paths that begin with what was typed; folders end with a slash."""
    folder, slash, start = typed.rpartition("/")
    with suppress(OSError):
        for entry in os.scandir(os.path.expanduser(f"{folder}{slash}") or "."):  # noqa: PTH111 - the typed text is kept
            if entry.name.startswith(start) and (start or not entry.name.startswith(".")):
                yield f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}"


def _job_ids(environment: Mapping[str, str]) -> Sequence[str]:
    from comfy_client.job_log import job_log_from_env  # noqa: PLC0415 - only needed by some commands

    with suppress(ComfyClientError):
        log = job_log_from_env(environment)
        if log is not None:
            try:
                return [job.job_id for job in log.jobs()][-_MAX_JOB_IDS:]
            finally:
                log.close()
    return ()


def _profile_names(environment: Mapping[str, str]) -> Sequence[str]:
    from comfy_client.profiles import profiles_path, read_profiles  # noqa: PLC0415 - as above

    with suppress(ComfyClientError):
        path = profiles_path(environment)
        if path is not None and path.exists():
            return ["off", *read_profiles(path).profiles]
    return ()
