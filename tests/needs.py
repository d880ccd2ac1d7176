"""Requirements of tests besides Python. If one is missing the test is skipped with a notice; in CI it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest


def skip_visibly(why: str) -> NoReturn:
    """Skip the test with a notice; in CI fail it, so that a missing program is not taken for success."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


def programs(*names: str) -> None:
    """Continue only if all of these programs are installed."""
    if missing := [name for name in names if shutil.which(name) is None]:
        skip_visibly(f"NOT TESTED: {', '.join(missing)} is not installed; .ci/run installs it on Debian")


def programs_of(script: str) -> None:
    """Continue only if the programs that a shell script of the documentation calls are installed."""
    programs(*(name for name in ("curl", "jq", "node") if f"{name} " in script))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a disk of that size at `folder`."""
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None or _fails([mount, "-t", "tmpfs", "-o", f"size={size}", "small", str(folder)]):
        skip_visibly("NOT TESTED: a full disk: mounting one requires root")
    try:
        yield folder
    finally:
        subprocess.run([umount, str(folder)], check=True)


def _fails(command: list[str]) -> bool:
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode != 0
