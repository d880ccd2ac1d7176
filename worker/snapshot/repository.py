"""Fetches one commit of a git repository by its hash, verifies it, and fetches its submodules.

The hash is trusted, not the transport: git identifies every file by its content, from the commit down. A URL may
therefore be http or a mirror.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.snapshot.commands import CompletedCommand, run
from worker.snapshot.listing import Repository, RestoreError, redacted
from worker.snapshot.retries import LOG, RestoreRetryPolicy, RetryableFetchError, with_retries

_NO_SURPRISES = (
    "advice.detachedHead=false",
    "core.autocrlf=false",
    "core.hooksPath=/dev/null",
    "gc.auto=0",  # it would continue in the background
    "init.defaultBranch=main",
    "maintenance.auto=false",
)
# Messages of git 2.39 with LC_ALL=C. "Not our ref" means that the commit does not exist, or that the server does not
# serve commits by hash; fetching the whole history shows which.
_REFUSED = re.compile(
    r"unadvertised object|not our ref|shallow capabilities|want \S+ not valid|does not support shallow", re.IGNORECASE
)
_PASSING = re.compile(
    r"could not resolve host|name resolution|failed to connect|couldn't connect|unable to connect|"
    r"network is unreachable|connection (refused|reset|timed out|closed)|operation (too slow|timed out)|broken pipe|"
    r"early eof|RPC failed|could not read from remote repository|unexpected disconnect|hung up unexpectedly|"
    r"returned error: (408|429|5\d\d)|invalid index-pack|TLS connection was non-properly",
    re.IGNORECASE,
)
# Permanent errors, even if git also reports a temporary one.
_REMEDIES = (
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
)


@dataclass(frozen=True)
class Git:
    """Runs git with an environment and a timeout."""

    env: Mapping[str, str]
    retry_policy: RestoreRetryPolicy

    def __call__(self, folder: Path, *arguments: str, protocols: str = "https:http:git:ssh") -> CompletedCommand:
        """Run git in `folder` and return its outcome."""
        settings = [word for setting in _NO_SURPRISES for word in ("-c", setting)]
        slow = ["-c", "http.lowSpeedLimit=1000", "-c", f"http.lowSpeedTime={max(1, int(self.retry_policy.silence_s))}"]
        env = {**self.env, "LC_ALL": "C", "GIT_ALLOW_PROTOCOL": protocols}
        return run(["git", *settings, *slow, *arguments], folder, env, self.retry_policy.step_s)


def fetch_commit(part: str, repository: Repository, folder: Path, git: Git) -> None:
    """Create `folder` with the files of a commit and its `.git`. Raises RestoreError if that fails."""

    def attempt() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _fetch(part, repository, folder, git)

    with_retries(part, attempt, git.retry_policy)


def remove_git(folder: Path) -> None:
    """Delete every `.git` in a folder and its subfolders."""
    for parent, folders, files in os.walk(folder):
        if ".git" in folders:
            folders.remove(".git")
            shutil.rmtree(Path(parent, ".git"))
        if ".git" in files:  # a submodule's
            Path(parent, ".git").unlink()


def _fetch(part: str, repository: Repository, folder: Path, git: Git) -> None:
    commit, shown = repository.commit, redacted(repository.url)
    _require(part, "git init", git(folder, "init", "--quiet"))
    _require(part, "git remote", git(folder, "remote", "add", "origin", repository.url))
    wanted = f"{commit} of {shown}"
    ended = _fetched(folder, git, "--depth=1", "--no-tags", "origin", commit)
    if not ended.succeeded and _REFUSED.search(ended.output):
        LOG.info("%s: %s does not serve commits by hash; fetching its whole history", part, shown)
        branches = "+refs/heads/*:refs/remotes/origin/*"
        ended = _fetched(folder, git, "--tags", "origin", branches)
        if ended.succeeded and not git(folder, "cat-file", "-e", commit).succeeded:
            raise RestoreError(
                part,
                f"{shown} has no commit {commit} on any branch or tag. Correct the hash, or the URL if the commit is "
                "in a fork",
            )
    _require(part, f"git fetch of {wanted}", ended)
    _require(part, f"git checkout of {wanted}", git(folder, "checkout", "--quiet", "--detach", commit))
    came = git(folder, "rev-parse", "HEAD").output.strip()
    if came != commit:
        raise RestoreError(part, f"checking out {wanted} resulted in {came}. The hash must be that of a commit")
    if (folder / ".gitmodules").is_file():
        _fetch_submodules(part, wanted, folder, git)


def _fetched(folder: Path, git: Git, *arguments: str) -> CompletedCommand:
    return git(folder, "fetch", "--quiet", *arguments, protocols="https:http:git:ssh:file")


def _fetch_submodules(part: str, wanted: str, folder: Path, git: Git) -> None:
    # Submodule URLs are untrusted, so file:// is not allowed for them.
    update = ("submodule", "update", "--quiet", "--init", "--recursive")
    ended = git(folder, *update, "--depth=1")
    if not ended.succeeded and _REFUSED.search(ended.output):
        ended = git(folder, *update)
    _require(part, f"git submodule update of {wanted}", ended)


def _require(part: str, step: str, ended: CompletedCommand) -> None:
    """Raise RetryableFetchError for a temporary failure, RestoreError for a permanent one."""
    if ended.succeeded:
        return
    if ended.late:
        raise RetryableFetchError(f"{step} timed out{ended.tail()}")
    remedies = [remedy for signs, remedy in _REMEDIES if re.search(signs, ended.output, re.IGNORECASE)]
    if _PASSING.search(ended.output) and not remedies:
        raise RetryableFetchError(f"{step} failed{ended.tail()}")
    advice = f"\n  {remedies[0]}" if remedies else ""
    raise RestoreError(part, f"{step} failed{ended.tail()}{advice}")
