"""Fetches a ComfyUI, installs its locked packages, and runs it on the CPU with models of random weights."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from simulators.http_server import free_port
from tools.bump_comfyui.declarations import packages_in
from tools.bump_comfyui.steps import StepError, Steps, last_lines

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")
START_TIMEOUT_S = 600
"""Includes the time that random_models.py needs to write the models."""
STOP_TIMEOUT_S = 30
POLL_INTERVAL_S = 0.5
_TAG = re.compile(r"([0-9a-f]{40})\trefs/tags/(\S+?)(?:\^\{\})?$", re.MULTILINE)
_RELEASE = re.compile(r"v\d+(\.\d+)*")


def commit_of(steps: Steps, repo: str, name: str) -> str:
    """Return the full hash of `name`: a full hash, a tag, or `newest` for the newest release of `repo`."""
    if re.fullmatch(r"[0-9a-f]{40}", name):
        return name
    listing = steps.command(["git", "ls-remote", "--tags", repo], remedy=f"Check --repo {repo}.", timeout_s=120)
    # An annotated tag is listed twice: first with its own hash, then with its commit.
    tags: dict[str, str] = {tag: commit for commit, tag in _TAG.findall(listing)}
    releases = [tag for tag in tags if _RELEASE.fullmatch(tag)]
    if name == "newest" and releases:
        return tags[max(releases, key=lambda tag: [int(number) for number in tag[1:].split(".")])]
    if name in tags:
        return tags[name]
    raise StepError(f"{repo} has no tag {name}: name a full commit hash (40 characters) or a tag of --repo")


def fetch(steps: Steps, repo: str, commit: str, to: Path) -> str:
    """Write ComfyUI's files at `commit` into `to`, once; return its version, and the files that are missing in `repo`.

    A repository on this machine is not copied, and may lack the content of files. Then it could not serve the commit.
    """
    result = to / ".git" / "fetched"
    if not result.exists():
        result.write_text(_fetch(steps, repo, commit, to))
    return result.read_text()


def _fetch(steps: Steps, repo: str, commit: str, to: Path) -> str:
    remedy = f"Check that --repo {repo} has the commit {commit}."
    shutil.rmtree(to, ignore_errors=True)  # what an interrupted run wrote
    git = ["git", "-C", str(to)]
    if Path(repo).is_dir():
        steps.command(["git", "clone", "--shared", "--no-checkout", repo, to], remedy=remedy, timeout_s=300)
    else:
        steps.command(["git", "init", "--quiet", to], remedy=remedy, timeout_s=60)
        steps.command([*git, "fetch", "--depth", "1", repo, commit], remedy=remedy, timeout_s=600)
    steps.command([*git, "read-tree", f"{commit}^{{tree}}"], remedy=remedy, timeout_s=60)
    files = [*git, "checkout-index", "--all", "--force"]
    printed = steps.command(files, remedy=remedy, timeout_s=300, accepted=(0, 1))
    missing = re.findall(r"unable to read sha1 file of (\S+)", printed)
    lacking = f"; the repository lacks {', '.join(missing)}" if missing else ""
    return f"{version_of(to)} ({commit[:12]}){lacking}"


def version_of(comfyui: Path) -> str:
    """Return the version of a checkout of ComfyUI."""
    version = re.search(r'__version__ = "(.+)"', (comfyui / "comfyui_version.py").read_text())
    if version is None:
        raise StepError(f"{comfyui}/comfyui_version.py has no version: is it a checkout of ComfyUI?")
    return version[1]


def install(steps: Steps, lists: Path, torch_index: str, to: Path) -> str:
    """Create a virtual environment with the locked packages, except torch's: they are installed for the CPU."""
    torch = packages_in((lists / "torch.txt").read_text())
    wanted = [f"{name}=={version}" for name, version in torch.items() if name.startswith("torch")]
    remedy = f"Remove {to} and run again. If a package is missing at --torch-index {torch_index}, name another index."
    pip = [UV, "pip", "install", "--quiet", "--python", to / "bin/python"]
    create = [UV, "venv", "--quiet", "--clear", "--python", "3.11", to]
    steps.command(create, remedy=remedy, timeout_s=120)
    locked = ["--require-hashes", "--no-deps", "--requirement", lists / "comfyui.txt"]
    steps.command([*pip, *locked], remedy=remedy, timeout_s=900)
    steps.command([*pip, "--index-url", torch_index, *wanted], remedy=remedy, timeout_s=1800)
    return f"{' '.join(wanted)} and {len(packages_in((lists / 'comfyui.txt').read_text()))} packages"


@contextmanager
def running(python: Path, comfyui: Path, log: Path, *flags: str) -> Iterator[str]:
    """Yield the URL of a ComfyUI that was just started with empty folders, and stop it at the end.

    It has no web page: requirements/image-overrides.txt leaves the package out. Raises StepError if it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="bump-") as folders, log.open("w") as output:
        port = free_port()
        own_flags = ("--port", str(port), "--front-end-root", folders)
        process = subprocess.Popen(  # noqa: S603 - our own script
            [python, ROOT / "tools/random_models.py", comfyui, *own_flags, *flags],
            env={**os.environ, "TMPDIR": folders},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            if not _becomes_ready(process, url):
                raise StepError(
                    "The new ComfyUI does not start with the locked packages. If a package is missing, see whether "
                    f"requirements/image-overrides.txt leaves it out. {log} ends with\n{last_lines(log.read_text())}"
                )
            yield url
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _becomes_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    """Wait until ComfyUI responds; return False if it exits or takes longer than START_TIMEOUT_S."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            process.wait(POLL_INTERVAL_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{url}/system_stats", timeout=5).ok:
                    return True
        else:
            return False
    return False
