"""Fetches one commit of a git repository by its hash, verifies it, and fetches its submodules.

The hash is trusted, not the connection: a commit's hash covers the content of all its files. A URL may therefore be one
of a mirror, or begin with http://.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from worker.snapshot.commands import CompletedCommand, run
from worker.snapshot.listing import Repository, RestoreError, redacted

_LOG = logging.getLogger(__name__)
_FETCH_ATTEMPTS = 3
_PROTOCOLS = "https:http:git:ssh"
_SETTINGS = (
    "advice.detachedHead=false",
    "core.autocrlf=false",
    "core.hooksPath=/dev/null",
    "gc.auto=0",  # automatic garbage collection would continue in the background
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=60",
    "init.defaultBranch=main",
    "maintenance.auto=false",
)
# Messages of git 2.39 with LC_ALL=C for permanent errors. Any other error is retried.
_REMEDIES = (
    (
        r"not our ref|unadvertised object",
        "It has no commit of that hash, or its server serves no commits by hash. Correct the hash or the URL",
    ),
    (
        r"not found|not exported|does not appear to be a git|does not exist",
        "The repository does not exist. Correct its URL",
    ),
    (
        r"could not read (username|password)|authentication failed|permission denied|host key verification|error: 403",
        "It does not exist, or is private. Correct its URL, or configure git's login (credential helper, ssh key)",
    ),
    (r"certificate", "Check the clock, or set GIT_SSL_CAINFO to the certificates of your network"),
    (r"no space left|disk quota", "Free some disk space"),
    (r"transport '\w+' not allowed", "A submodule's URL must begin with https://, http://, git:// or ssh://"),
)


class _TemporaryError(Exception):
    """A failure that may not happen again."""


@dataclass(frozen=True)
class Git:
    """Runs git.

    Attributes:
        env: the environment of git.
        timeout_s: maximum time of one call.
        pause_s: pause after the first failed attempt to fetch; doubled after the second.
    """

    env: Mapping[str, str]
    timeout_s: float = 600.0
    pause_s: float = 2.0

    def __call__(self, folder: Path, *arguments: str, protocols: str = _PROTOCOLS) -> CompletedCommand:
        """Run git in `folder` and return its outcome."""
        settings = [word for setting in _SETTINGS for word in ("-c", setting)]
        env = {**self.env, "LC_ALL": "C", "GIT_ALLOW_PROTOCOL": protocols}
        return run(["git", *settings, *arguments], folder, env, self.timeout_s)


def fetch_commit(part: str, repository: Repository, folder: Path, git: Git) -> None:
    """Create `folder` with the files of a commit and its `.git`. Raises RestoreError if that fails."""
    for attempt in range(1, _FETCH_ATTEMPTS + 1):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            _fetch(part, repository, folder, git)
        except _TemporaryError as error:
            if attempt == _FETCH_ATTEMPTS:
                advice = "Check the network and its proxies, or try again later"
                raise RestoreError(part, f"{error}\n  Given up after {attempt} attempts. {advice}") from error
            pause_s = git.pause_s * 2 ** (attempt - 1)
            _LOG.warning("%s: %s\n  Retrying in %g s", part, error, pause_s)
            time.sleep(pause_s)
        else:
            return


def remove_git(folder: Path) -> None:
    """Delete every `.git` in a folder and its subfolders. The `.git` of a submodule is a file."""
    for found in list(folder.rglob(".git")):
        if found.is_dir():
            shutil.rmtree(found)
        else:
            found.unlink()


def _fetch(part: str, repository: Repository, folder: Path, git: Git) -> None:
    commit, wanted = repository.commit, f"{repository.commit} of {redacted(repository.url)}"

    def require(step: str, *arguments: str, protocols: str = _PROTOCOLS) -> str:
        completed = git(folder, *arguments, protocols=protocols)
        if not completed.succeeded:
            _raise_failure(part, step, completed)
        return completed.output.strip()

    require("git init", "init", "--quiet")
    require("git remote", "remote", "add", "origin", repository.url)
    fetch = ("fetch", "--quiet", "--depth=1", "--no-tags", "origin", commit)
    require(f"git fetch of {wanted}", *fetch, protocols=f"{_PROTOCOLS}:file")
    require(f"git checkout of {wanted}", "checkout", "--quiet", "--detach", commit)
    checked_out = require("git rev-parse", "rev-parse", "HEAD")
    if checked_out != commit:
        raise RestoreError(part, f"checking out {wanted} resulted in {checked_out}. The hash must be that of a commit")
    if (folder / ".gitmodules").is_file():  # its URLs are untrusted, so they may not be file://
        update = ("submodule", "update", "--quiet", "--init", "--recursive", "--depth=1")
        require(f"git submodule update of {wanted}", *update)


def _raise_failure(part: str, step: str, completed: CompletedCommand) -> NoReturn:
    """Raise RestoreError for a permanent failure of `step`, _TemporaryError for any other."""
    if completed.is_timed_out:
        raise _TemporaryError(f"{step} timed out{completed.tail()}")
    problem = f"{step} failed{completed.tail()}"
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, completed.output, re.IGNORECASE):
            raise RestoreError(part, f"{problem}\n  {remedy}")
    raise _TemporaryError(problem)
