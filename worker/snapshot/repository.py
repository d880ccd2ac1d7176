"""One commit of a git repository as a folder: fetched by its hash, verified, its submodules with it.

What is trusted is the hash and not the way it comes: git names every file by its content, from the commit down. So an
address may be http or a mirror's.
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
    "gc.auto=0",  # it would go on in the background
    "init.defaultBranch=main",
    "maintenance.auto=false",
)
# How git 2.39 says each in LC_ALL=C. "Not our ref" may mean that a commit is not there, or that it is not given by its
# hash; the whole history tells.
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
# What these stand for does not pass, whatever else git says.
_REMEDIES = (
    (
        r"not found|not exported|does not appear to be a git|does not exist",
        "There is no such repository. Correct its address",
    ),
    (
        r"could not read (username|password)|authentication failed|permission denied|host key verification|error: 403",
        "It is not there, or private. Correct its address, or give git the login (a credential helper, an ssh key)",
    ),
    (r"certificate", "Set the clock, or name the authorities of your network in GIT_SSL_CAINFO"),
    (r"no space left|disk quota", "Make room on the disk"),
)


@dataclass(frozen=True)
class Git:
    """How git is called: in which environment, and how long."""

    env: Mapping[str, str]
    retry_policy: RestoreRetryPolicy

    def __call__(self, folder: Path, *arguments: str, protocols: str = "https:http:git:ssh") -> CompletedCommand:
        """Run git in `folder` and return its end."""
        settings = [word for setting in _NO_SURPRISES for word in ("-c", setting)]
        slow = ["-c", "http.lowSpeedLimit=1000", "-c", f"http.lowSpeedTime={max(1, int(self.retry_policy.silence_s))}"]
        env = {**self.env, "LC_ALL": "C", "GIT_ALLOW_PROTOCOL": protocols}
        return run(["git", *settings, *slow, *arguments], folder, env, self.retry_policy.step_s)


def fetch_commit(part: str, repository: Repository, folder: Path, git: Git) -> None:
    """Make `folder`, with the files of a commit and its `.git`. Raises RestoreError where it cannot be had."""

    def attempt() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _fetch(part, repository, folder, git)

    with_retries(part, attempt, git.retry_policy)


def remove_git(folder: Path) -> None:
    """Take every `.git` out of a folder and those below."""
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
        LOG.info("%s: %s gives no commit by its hash; fetching all of its history", part, shown)
        branches = "+refs/heads/*:refs/remotes/origin/*"
        ended = _fetched(folder, git, "--tags", "origin", branches)
        if ended.succeeded and not git(folder, "cat-file", "-e", commit).succeeded:
            raise RestoreError(
                part,
                f"{shown} has no commit {commit}, on no branch and no tag. Correct the hash, or the address if the "
                "commit is a fork's",
            )
    _require(part, f"git fetch of {wanted}", ended)
    _require(part, f"git checkout of {wanted}", git(folder, "checkout", "--quiet", "--detach", commit))
    came = git(folder, "rev-parse", "HEAD").output.strip()
    if came != commit:
        raise RestoreError(part, f"{wanted} was checked out, and {came} came. The hash has to be a commit's")
    if (folder / ".gitmodules").is_file():
        _fetch_submodules(part, wanted, folder, git)


def _fetched(folder: Path, git: Git, *arguments: str) -> CompletedCommand:
    return git(folder, "fetch", "--quiet", *arguments, protocols="https:http:git:ssh:file")


def _fetch_submodules(part: str, wanted: str, folder: Path, git: Git) -> None:
    # Theirs are addresses that a stranger chose: no file:// for them.
    update = ("submodule", "update", "--quiet", "--init", "--recursive")
    ended = git(folder, *update, "--depth=1")
    if not ended.succeeded and _REFUSED.search(ended.output):
        ended = git(folder, *update)
    _require(part, f"git submodule update of {wanted}", ended)


def _require(part: str, step: str, ended: CompletedCommand) -> None:
    """Raise RetryableFetchError for what may pass, RestoreError for what does not."""
    if ended.succeeded:
        return
    if ended.late:
        raise RetryableFetchError(f"{step} did not end in its time{ended.tail()}")
    remedies = [remedy for signs, remedy in _REMEDIES if re.search(signs, ended.output, re.IGNORECASE)]
    if _PASSING.search(ended.output) and not remedies:
        raise RetryableFetchError(f"{step} failed{ended.tail()}")
    advice = f"\n  {remedies[0]}" if remedies else ""
    raise RestoreError(part, f"{step} failed{ended.tail()}{advice}")
