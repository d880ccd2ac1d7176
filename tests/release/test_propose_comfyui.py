"""scripts/release/propose_comfyui: the branch and the pull request of a bump, with a real git."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.worker_setup import ROOT
from tests.fakes.commands import FakeCommands

pytestmark = pytest.mark.slow
PINNED, NEWEST = "1" * 40, "2" * 40
BUMP = """\
#!/usr/bin/env bash
# In place of `python -m tools.bump_comfyui`: edits snapshot.json, and writes the table.
echo '{{"comfyui": "{commit}", "comfyui_version": "{version}"}}' > snapshot.json
mkdir -p .bump/{folder} && echo '# table' > .bump/{folder}/changes.md
"""
BRANCH = "comfyui-2.0-22222222"


class Checkout:
    """A clone with the script and a fake bump to a commit. `gh` has the calls of the fake gh."""

    def __init__(self, folder: Path, commit: str) -> None:
        self.folder, self.origin = folder / "checkout", folder / "origin"
        (self.folder / "scripts/release").mkdir(parents=True)
        (self.folder / ".venv/bin").mkdir(parents=True)
        self.gh = FakeCommands(folder / "fakes", ("gh",), {})
        self.gh.put(self.folder / "scripts/setup")
        shutil.copy(ROOT / "scripts/release/propose_comfyui", self.folder / "scripts/release")
        shutil.copy(ROOT / ".gitignore", self.folder)
        (self.folder / "snapshot.json").write_text(json.dumps({"comfyui": PINNED, "comfyui_version": "1.0"}) + "\n")
        python = self.folder / ".venv/bin/python"
        version = "2.0" if commit == NEWEST else "1.0"
        python.write_text(BUMP.format(commit=commit, version=version, folder=commit[:12]))
        python.chmod(0o755)
        self.git("init", "--quiet", "--bare", str(self.origin))
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("remote", "add", "origin", str(self.origin))
        self.git("add", "--all")
        self.git("-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "--quiet", "--message", "first")

    def git(self, *arguments: str) -> str:
        """Run git in the clone; return its output."""
        ended = subprocess.run(
            ["git", *arguments],  # noqa: S607 - found on PATH
            cwd=self.folder,
            check=True,
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "GIT_CONFIG_GLOBAL": os.devnull},
        )
        return ended.stdout

    def propose(self) -> None:
        """Run the script."""
        environment = {"PATH": self.gh.path, "HOME": str(self.folder), "GIT_CONFIG_GLOBAL": os.devnull}
        subprocess.run([self.folder / "scripts/release/propose_comfyui"], env=environment, check=True)

    @property
    def pull_requests(self) -> list[str]:
        """The calls of gh that open a pull request."""
        return [call for call in self.gh.calls if call.startswith("gh pr")]


def test_a_new_version_is_proposed(tmp_path: Path) -> None:
    """The edits are committed on a branch, the branch is pushed, and the pull request has the table as its text."""
    checkout = Checkout(tmp_path, NEWEST)
    checkout.propose()

    assert NEWEST in checkout.git("--git-dir", str(checkout.origin), "show", f"{BRANCH}:snapshot.json")
    assert "changes.md" not in checkout.git("--git-dir", str(checkout.origin), "ls-tree", "-r", "--name-only", BRANCH)
    table = f".bump/{NEWEST[:12]}/changes.md"
    assert checkout.pull_requests == [f"gh pr create --head {BRANCH} --title ComfyUI 2.0 --body-file {table}"]


def test_the_pinned_version_is_not_proposed(tmp_path: Path) -> None:
    """If the bump changes nothing, no branch is pushed and gh is not called."""
    checkout = Checkout(tmp_path, PINNED)
    checkout.propose()

    assert checkout.git("ls-remote", "origin") == ""
    assert checkout.pull_requests == []


def test_a_version_is_proposed_once(tmp_path: Path) -> None:
    """If the branch exists at the remote, it is not changed, and no second pull request is opened."""
    checkout = Checkout(tmp_path, NEWEST)
    checkout.git("push", "--quiet", "origin", f"main:{BRANCH}")
    before = checkout.git("ls-remote", "origin")
    checkout.propose()

    assert checkout.git("ls-remote", "origin") == before
    assert checkout.pull_requests == []
