"""The entry point of `comfy-client`. Errors are shown here and converted into the exit status.

| status | means |
|---|---|
| 0 | success |
| 1 | the job failed, its request is invalid, or its result could not be saved at the path of `-o` |
| 2 | the command line is wrong; nothing was sent |
| 3 | a setting is missing or wrong, or the key was refused |
| 4 | the provider was not reachable, or its response was invalid |
| 5 | waiting timed out; the job continues |
| 130 | Ctrl-C |
| 143, 129 | SIGTERM, SIGHUP |
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from typing import TYPE_CHECKING, TextIO, cast

from comfy_client import __version__
from comfy_client.cli.call import JSON, STREAM, Call, Command, raise_on_signals, status_of
from comfy_client.cli.flags import Flag
from comfy_client.cli.parser import (
    GLOBAL_OPTIONS,
    make_parser,
    overview,
    parse,
    subparsers,
    unknown_command,
    without_global_options,
)
from comfy_client.cli.screen import Screen
from comfy_client.cli.terminal import MessageStream, open_stream
from comfy_core.errors import ComfyClientError

if TYPE_CHECKING:
    from comfy_client.profiles import Settings
    from comfy_core.workflows import Workflow

_JOBS, _ONE_JOB, _SERVERS = (f"comfy_client.cli.{name}" for name in ("commands", "jobs", "servers"))

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("set up the command: choose and check where images are generated", "comfy_client.cli.init"),
    "txt2img": ("generate images from a prompt", _JOBS),
    "img2img": ("generate images from a start image and a prompt", _JOBS),
    "inpaint": ("generate a part of an image again", _JOBS),
    "upscale": ("double the size of an image, with new details", _JOBS),
    "run": ("run a workflow by name, or a graph", _JOBS),
    "submit": ("start a job and print its id", _JOBS),
    "jobs": ("list the jobs in this machine's log", "comfy_client.cli.job_list"),
    "status": ("show a job's status", _ONE_JOB),
    "wait": ("wait for a job and save its images", _ONE_JOB),
    "result": ("save the images of a finished job again", _ONE_JOB),
    "logs": ("show the log lines of a failed job", _ONE_JOB),
    "cancel": ("cancel a job", _ONE_JOB),
    "health": ("show the endpoint's workers and jobs", _JOBS),
    "workflows": ("list, show, make and check workflows", "comfy_client.cli.workflows"),
    "models": ("list, download and delete model files of the worker or of a local ComfyUI", "comfy_client.cli.models"),
    "errors": ("list the error codes, or explain one", "comfy_client.cli.errors"),
    "profiles": ("list the profiles of `init`, and choose the default one", "comfy_client.cli.profiles"),
    "ui": ("open a web page that generates images", "comfy_client.cli.ui"),
    "doctor": ("check variables, address, key, endpoint, workers and models", "comfy_client.cli.doctor"),
    "simulate": ("run a simulated ComfyUI that needs no GPU", _SERVERS),
    "cost": ("show what the jobs in this machine's log have cost", "comfy_client.cli.costs"),
    "mcp": ("serve tools for AI agents (MCP) on stdin and stdout", "comfy_client.cli.mcp"),
    "batch": ("generate all images of a game from one file", "comfy_client.cli.batch"),
    "serve": ("serve OpenAI's and Scenario.com's APIs from your endpoint, and a web page", "comfy_client.cli.serve"),
    "scenario": ("serve Scenario.com's API from your endpoint (`scenario serve`)", "comfy_client.cli.scenario"),
    "deploy": ("create or update the endpoint at RunPod, and generate a test image", "comfy_client.cli.deploy"),
    "destroy": ("delete the endpoint and its template at RunPod", "comfy_client.cli.deploy"),
    "completion": ("print a shell completion script", "comfy_client.cli.main"),
}
"""Each command's summary, and its module, which is imported when the command is used."""
GROUPS: dict[str, tuple[str, ...]] = {
    "Start": ("init", "profiles", "simulate", "doctor"),
    "Generate": ("txt2img", "img2img", "inpaint", "upscale", "run", "batch"),
    "Jobs": ("submit", "jobs", "status", "wait", "result", "logs", "cancel", "cost"),
    "Workflows and models": ("workflows", "models"),
    "Serve": ("ui", "serve", "scenario", "mcp"),
    "Deploy": ("deploy", "destroy", "health"),
    "Help": ("help", "errors", "completion"),
}
"""The commands by the titles of their groups in the help."""
_COMPLETING = "_ARGCOMPLETE"
"""The variable that the completion script sets when the user presses Tab."""
_HELP = frozenset({"--help", "-h"})
WITHOUT_PROFILE = frozenset({"init", "profiles", "simulate", "errors", "completion"})
"""The commands that use no profile, so that they work with an invalid profiles.toml."""
SUMMARIES = {name: summary for name, (summary, _) in COMMANDS.items()}


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the command `completion`."""
    shells = ("bash", "zsh", "fish", "powershell", "tcsh")
    shell = Flag(("shell",), "The shell.", "|".join(shells), {"choices": shells})
    return (Command("completion", [shell, JSON], _completion),)


def all_commands(workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return every command, in the order of COMMANDS."""
    return tuple(_command(name, workflows) for name in COMMANDS)


def _command(name: str, workflows: Mapping[str, Workflow]) -> Command:
    found: Sequence[Command] = importlib.import_module(COMMANDS[name][1]).commands(workflows)
    return next(command for command in found if command.name == name)


def main(
    arguments: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """Run a command line and return the exit status. The defaults are `sys.argv`, `os.environ`, stdout and stderr."""
    environment = os.environ if environment is None else environment
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # The console's encoding may not have all characters.
    screen = Screen(
        open_stream(out or sys.stdout),
        cast("TextIO", MessageStream(open_stream(err or sys.stderr))),
        is_json="--json" in arguments,
        is_stream="--stream" in arguments,
    )
    flags: Sequence[Flag] = ()
    name = ""
    try:
        with raise_on_signals():
            arguments, given = without_global_options(arguments)
            environment = {**environment, **given}
            name, words = _split(arguments)
            before_dashes = list(itertools.takewhile("--".__ne__, words))
            if name in {"", "help", *_HELP} or _HELP.intersection(before_dashes):
                return _help([name, *words], screen, environment)
            if name == "--version":
                screen.show({"version": __version__}, __version__)
                return 0
            if name not in COMMANDS:
                raise unknown_command(name, [*COMMANDS, "help", "--help", "--version"])
            settings = _settings(name, environment)
            _report_replaced(settings, screen, given)
            workflows = _workflows(settings.environment)
            command = _command(name, workflows)
            flags = command.flags
            if name == "simulate":
                options = argparse.Namespace(arguments=[word for word in words if word != "--json"])
            else:
                options = parse(make_parser(SUMMARIES, [command]), command, words)
            return command.run(Call(options, screen, settings, workflows))
    except ComfyClientError as error:
        from comfy_client.cli.messages import error_lines, flags_by_field  # noqa: PLC0415 - only needed for errors

        screen.fail(error, error_lines(error, flags_by_field(flags), name))
        return error.exit_status
    except KeyboardInterrupt as interrupt:
        screen.interrupted("Interrupted.")
        return status_of(interrupt)
    except BrokenPipeError:
        return 1  # The reader closed stdout.


def _split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command's name (or an empty string) and its arguments. --json and --stream may precede the name."""
    before_name = {*JSON.names, *STREAM.names}
    first = next((number for number, word in enumerate(arguments) if word not in before_name), len(arguments))
    name = arguments[first] if first < len(arguments) else ""
    return name, [*arguments[first + 1 :], *arguments[:first]]


def _help(words: Sequence[str], screen: Screen, environment: Mapping[str, str]) -> int:
    """Print the help of the command that `words` name, or the list of commands. Return the exit status."""
    name = next((word for word in words if not word.startswith("-") and word != "help"), "")
    if name and name not in COMMANDS:
        raise unknown_command(name, COMMANDS)
    if name == "simulate":
        text: str = importlib.import_module(_SERVERS).simulate_help()
    elif name:
        workflows = _workflows(_settings(name, environment).environment)
        text = subparsers(make_parser(SUMMARIES, [_command(name, workflows)]))[name].format_help()
    else:
        text = overview(GROUPS, {"help": "explain a command: help COMMAND", **SUMMARIES})
    screen.show({"help": text}, text.rstrip())
    return 0


def _settings(name: str, environment: Mapping[str, str]) -> Settings:
    """Return the environment, completed with the selected profile unless the command needs none."""
    from comfy_client.profiles import Settings, complete, selected_profile  # noqa: PLC0415 - `--help` needs none

    if name in WITHOUT_PROFILE:
        return Settings(environment)
    return complete(environment, selected_profile(environment))


def _report_replaced(settings: Settings, screen: Screen, given: Mapping[str, str]) -> None:
    """For a profile that --profile selected, show which of its values the environment replaces."""
    if GLOBAL_OPTIONS["--profile"].variable in given and settings.profile is not None and settings.replaced:
        screen.say(
            f"comfy-client: the environment has priority over these values of the profile {settings.profile.name}: "
            f"{', '.join(settings.replaced)}. `comfy-client doctor` shows where each value comes from"
        )


def _workflows(environment: Mapping[str, str]) -> Mapping[str, Workflow]:
    from comfy_client.providers import workflows_from_env  # noqa: PLC0415 - `--help` needs none

    return workflows_from_env(environment)


def _completion(call: Call) -> int:
    from comfy_client.cli.completion import completion_script  # noqa: PLC0415 - only needed for completion

    script = completion_script(call.options.shell)
    call.screen.show({"shell": call.options.shell, "script": script}, script)
    return 0


def _respond_to_shell(environment: Mapping[str, str]) -> int:
    """Write completions for the shell, and return the exit status."""
    from comfy_client.cli.completion import respond  # noqa: PLC0415 - as above

    try:
        completed = _settings("", environment).environment
        workflows = _workflows(completed)
    except ComfyClientError:
        return 1
    respond(environment.get("COMP_LINE", ""), SUMMARIES, workflows, lambda name: _command(name, workflows), completed)
    return 0


def run() -> int:
    """Run the command line of this process, or complete it for a shell, and return the exit status."""
    sys.stdin = open_stream(sys.stdin)
    return _respond_to_shell(os.environ) if _COMPLETING in os.environ else main()


if __name__ == "__main__":
    sys.exit(run())
