"""The command python -m worker.snapshot --to DIR, which restores a snapshot.

Exit status 0: restored; 1: failed; 3: usage error or invalid snapshot; 130: interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from comfy_core.command_line import ConfigErrorParser, logging_to
from comfy_core.errors import ConfigError
from worker.snapshot.listing import Repository, Snapshot, SnapshotError, default_snapshot, read_snapshot
from worker.snapshot.packages import Python, read_constraints
from worker.snapshot.repository import Git
from worker.snapshot.restore import Restore

COMFYUI_REPO = "https://github.com/Comfy-Org/ComfyUI"

EXIT_FAILED = 1
EXIT_USAGE_ERROR = 3
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str], env: Mapping[str, str], err: TextIO) -> int:
    """Restore a snapshot according to `arguments`; return the exit status."""
    with logging_to("worker.snapshot", logging.StreamHandler(err), logging.INFO):
        try:
            options = _parser().parse_args(arguments)
            snapshot = read_snapshot(options.snapshot)
            err.writelines(f"{notice}\n" for notice in snapshot.notices)
            _restore(options, snapshot, env).run(options.to)
        except ConfigError as error:
            err.write(f"{error}\n")
            return EXIT_USAGE_ERROR
        except SnapshotError as error:
            failure_lines = "".join(f"- {each}\n" for each in error.errors)
            err.write(f"The snapshot was not restored, and {options.to} was not created:\n{failure_lines}")
            return EXIT_FAILED
        except OSError as error:
            err.write(f"The snapshot was not restored: {error.strerror} ({error.filename})\n")
            return EXIT_FAILED
        except KeyboardInterrupt:
            err.write(f"Interrupted. {options.to} was not created\n")
            return EXIT_INTERRUPTED
    count = len(snapshot.nodes)
    err.write(f"ComfyUI with {count} custom node{'' if count == 1 else 's'} is in {options.to}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = ConfigErrorParser(
        prog="python -m worker.snapshot",
        description="Create ComfyUI's folder with its custom nodes from a ComfyUI-Manager snapshot: every commit as "
        "pinned, or an error.",
        epilog="See docs/snapshot.md.",
    )
    add = parser.add_argument
    add("--to", type=Path, required=True, metavar="DIR", help="ComfyUI's folder; it must not exist or be empty")
    add("--snapshot", type=Path, default=default_snapshot(), metavar="FILE", help="default: %(default)s")
    add("--comfyui-repo", default=COMFYUI_REPO, metavar="URL", help="default: %(default)s")
    add("--comfyui-ref", default="", metavar="SHA", help="commit to use instead of the snapshot's")
    add("--python", type=Path, metavar="FILE", help="ComfyUI's Python; required if a node needs packages")
    add(
        "--constraints",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="constraints file of installed packages that must not change; repeatable",
    )
    add("--keep-git", action="store_true", help="keep the .git folders")
    add("--timeout", type=_seconds, default=600.0, metavar="S", help="seconds for a call of git; default: %(default)g")
    add(
        "--install-timeout",
        type=_seconds,
        default=3600.0,
        metavar="S",
        help="seconds for a run of pip or of a script; default: %(default)g",
    )
    return parser


def _seconds(text: str) -> float:
    if not (re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) and float(text)):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return float(text)


def _restore(options: argparse.Namespace, snapshot: Snapshot, env: Mapping[str, str]) -> Restore:
    """Return the restore that the options describe. Raises ConfigError that names the invalid option."""
    if not shutil.which("git", path=env.get("PATH", os.defpath)):
        raise ConfigError("git is not installed. On Debian and Ubuntu: apt-get install git")
    commit = options.comfyui_ref or snapshot.comfyui
    if not commit:
        raise ConfigError(f"{options.snapshot}: comfyui has no commit. Save a complete snapshot, or pass --comfyui-ref")
    try:
        comfyui = Repository(options.comfyui_repo, commit)
    except ValueError as error:
        raise ConfigError(f"--comfyui-repo, --comfyui-ref: {error}") from error
    if options.keep_git and any(re.search(r"^https?://[^/]*@", each.url) for each in (comfyui, *snapshot.nodes)):
        raise ConfigError("--keep-git would store the login that is in a URL. Use git's credential helper instead")
    lock = read_constraints(options.constraints)
    python = options.python and Python(options.python.absolute(), lock, env, options.install_timeout)
    version = "" if options.comfyui_ref else snapshot.comfyui_version
    return Restore(comfyui, version, snapshot.nodes, Git(env, options.timeout), python, options.keep_git)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as on Ctrl-C
    sys.exit(main(sys.argv[1:], os.environ, sys.stderr))
