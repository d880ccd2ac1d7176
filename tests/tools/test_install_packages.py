"""tools/install_packages.py, with programs in place of uv, and with the real pip."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.worker_setup import ROOT
from tools.install_packages import PipProgress

pytestmark = pytest.mark.slow
LOCKED = """\
nothing-has-this-name==1.0 \\
    --hash=sha256:0000000000000000000000000000000000000000000000000000000000000000
colorama==0.4.6 ; sys_platform == 'never' \\
    --hash=sha256:0000000000000000000000000000000000000000000000000000000000000000
"""


def install(folder: Path, uv: str) -> subprocess.CompletedProcess[str]:
    """Run the tool on LOCKED without an index. `uv` is a shell script."""
    (folder / "locked.txt").write_text(LOCKED)
    program = folder / "uv"
    program.write_text(f"#!/bin/sh\n{uv}\n")
    program.chmod(0o755)
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "install_packages.py"), str(folder / "locked.txt")],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PIP_NO_INDEX": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_uv_installs_the_locked_list_and_the_project(tmp_path: Path) -> None:
    """With uv, two commands install the list with its hashes and the project; nothing else is resolved."""
    ended = install(tmp_path, f'echo "$@" >> {tmp_path}/calls')
    calls = [line.partition(sys.executable)[2].split() for line in (tmp_path / "calls").read_text().splitlines()]

    assert ended.returncode == 0, ended.stderr
    assert calls == [
        ["--no-deps", "--require-hashes", "-r", str(tmp_path / "locked.txt")],
        ["--no-deps", "--editable", "."],
    ]
    assert ended.stderr.startswith(f"Installed {tmp_path}/locked.txt in ")


def test_pip_is_used_if_uv_fails_and_its_error_is_shown(tmp_path: Path) -> None:
    """If both fail, the exit status is pip's, and the output has pip's error and the next step."""
    ended = install(tmp_path, "echo no certificate; exit 2")

    assert ended.returncode == 1
    assert "no certificate" in ended.stderr
    assert "No matching distribution found for nothing-has-this-name==1.0" in ended.stderr
    assert "Check the network and repeat the command." in ended.stderr


def test_the_progress_of_pip_counts_what_this_platform_needs() -> None:
    """A package for another platform is not counted; after the downloads pip installs the packages and the project."""
    progress = PipProgress(LOCKED)
    texts = []
    for line in (
        "Ignoring colorama: markers 'sys_platform == \"never\"' don't match your environment\n",
        "Collecting nothing-has-this-name==1.0 (from -r locked.txt (line 1))\n",
        "Installing collected packages: nothing-has-this-name\n",
        "Obtaining file:///here\n",
        "Installing collected packages: this-project\n",
    ):
        progress.read(line)
        texts.append(progress.text())

    assert texts == [
        "Downloading package 0 of 1",
        "Downloading package 1 of 1 nothing-has-this-name",
        "Installing package 1 of 1",
        "Installing this project",
        "Installing this project",
    ]
