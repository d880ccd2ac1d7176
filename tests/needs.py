"""What a test needs of the machine beside Python. Where it is not there the test is left out loudly; in CI it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest


def left_out(why: str) -> NoReturn:
    """End the test: it was not run, and nobody is to take that for a success."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


def programs(*names: str) -> None:
    """Go on only where all of these programs are there."""
    if missing := [name for name in names if shutil.which(name) is None]:
        left_out(f"NOT TESTED: there is no {', '.join(missing)}; .ci/run installs it on Debian")


def programs_of(script: str) -> None:
    """Go on only where the programs are there that a shell script of the documentation calls."""
    programs(*(name for name in ("curl", "jq", "node") if f"{name} " in script))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Make `folder` a disk of that size."""
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None or _fails([mount, "-t", "tmpfs", "-o", f"size={size}", "small", str(folder)]):
        left_out("NOT TESTED: a full disk: mounting one takes root")
    try:
        yield folder
    finally:
        subprocess.run([umount, str(folder)], check=True)


def _fails(command: list[str]) -> bool:
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode != 0
