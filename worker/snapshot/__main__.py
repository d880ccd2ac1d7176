"""The command: python -m worker.snapshot --to DIR. Exit status 0: all there; 1: not all; 3: usage or the snapshot."""

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

from comfy_core.errors import ConfigError
from worker.command_line import ConfigErrorParser, logging_to
from worker.snapshot.listing import Repository, Snapshot, SnapshotError, default_snapshot, read_snapshot
from worker.snapshot.packages import Lock, Python
from worker.snapshot.registry import OFFICIAL, Registry
from worker.snapshot.repository import Git
from worker.snapshot.restore import Sources, restore
from worker.snapshot.retries import RestoreRetryPolicy

COMFYUI_REPO = "https://github.com/Comfy-Org/ComfyUI"

FAILED = 1
MISUSED = 3
INTERRUPTED = 130


def main(arguments: Sequence[str], env: Mapping[str, str], err: TextIO) -> int:
    """Restore as `arguments` say; return the exit status."""
    with logging_to("worker.snapshot", logging.StreamHandler(err), logging.INFO):
        try:
            options = _parser().parse_args(arguments)
            snapshot = read_snapshot(options.snapshot)
            err.writelines(f"{notice}\n" for notice in snapshot.notices)
            restore(snapshot, options.to, _sources(options, snapshot, env))
        except ConfigError as error:
            err.write(f"{error}\n")
            return MISUSED
        except SnapshotError as error:
            failed = "".join(f"- {each}\n" for each in error.errors)
            err.write(f"The snapshot was not restored, and {options.to} not made:\n{failed}")
            return FAILED
        except OSError as error:
            err.write(f"The snapshot was not restored: {error.strerror} ({error.filename})\n")
            return FAILED
        except KeyboardInterrupt:
            err.write(f"Interrupted, and {options.to} not made\n")
            return INTERRUPTED
    count = len(snapshot.repositories) + len(snapshot.registry_nodes)
    err.write(f"ComfyUI with {count} custom node{'' if count == 1 else 's'} is in {options.to}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = ConfigErrorParser(
        prog="python -m worker.snapshot",
        description="Make ComfyUI's folder with its custom nodes from a snapshot of ComfyUI-Manager: each commit as it "
        "is pinned, or an error.",
        epilog="COMFY_REGISTRY names another address of the registry's API. docs/snapshot.md has the rest.",
    )
    parser.add_argument(
        "--to", type=Path, required=True, metavar="DIR", help="ComfyUI's folder; empty, or not there yet"
    )
    parser.add_argument("--snapshot", type=Path, default=default_snapshot(), metavar="FILE", help="%(default)s")
    parser.add_argument("--comfyui-repo", default=COMFYUI_REPO, metavar="URL", help="%(default)s")
    parser.add_argument("--comfyui-ref", default="", metavar="SHA", help="a commit instead of the snapshot's")
    parser.add_argument(
        "--python",
        type=Path,
        metavar="FILE",
        help="the Python that ComfyUI runs on; without it no node may need packages",
    )
    parser.add_argument(
        "--constraints",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a list of what is installed there and has to stay; may be repeated",
    )
    parser.add_argument("--keep-git", action="store_true", help="leave the .git folders")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=RestoreRetryPolicy.step_s,
        metavar="S",
        help="of one fetch, each time; %(default)g",
    )
    parser.add_argument(
        "--install-timeout",
        type=_seconds,
        default=RestoreRetryPolicy.install_s,
        metavar="S",
        help="of pip, of a script; %(default)g",
    )
    return parser


def _seconds(text: str) -> float:
    if not (re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) and float(text)):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return float(text)


def _sources(options: argparse.Namespace, snapshot: Snapshot, env: Mapping[str, str]) -> Sources:
    """Return what the restore works with. Raises ConfigError that names the option at fault."""
    if not shutil.which("git", path=env.get("PATH", os.defpath)):
        raise ConfigError("git is not installed. On Debian and Ubuntu: apt-get install git")
    commit = options.comfyui_ref or snapshot.comfyui
    if not commit:
        raise ConfigError(
            f"{options.snapshot}: comfyui has no commit. Save the snapshot in full, or give --comfyui-ref"
        )
    try:
        comfyui = Repository(options.comfyui_repo, commit)
    except ValueError as error:
        raise ConfigError(f"--comfyui-repo, --comfyui-ref: {error}") from error
    if options.keep_git and any(_has_login(each.url) for each in (comfyui, *snapshot.repositories)):
        raise ConfigError(
            "--keep-git would keep the login that an address has. Give it to git's credential helper instead"
        )
    retry_policy = RestoreRetryPolicy(step_s=options.timeout, install_s=options.install_timeout)
    lock = Lock.read(options.constraints)
    python = options.python and Python(options.python.absolute(), lock, env, retry_policy.install_s)
    registry = Registry(env.get("COMFY_REGISTRY", "").strip() or OFFICIAL, retry_policy)
    return Sources(comfyui, Git(env, retry_policy), registry, python, options.keep_git)


def _has_login(url: str) -> bool:
    return re.search(r"^https?://[^/]*@", url) is not None


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it cleans up as at Ctrl-C
    sys.exit(main(sys.argv[1:], os.environ, sys.stderr))
