"""Requirements of tests besides Python. If one is missing, its test is skipped with a notice; in CI the test fails."""

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


def require_programs(*names: str) -> None:
    """Skip the test, or fail it in CI, unless all of these programs are installed."""
    if missing := [name for name in names if shutil.which(name) is None]:
        skip_visibly(f"NOT TESTED: {', '.join(missing)} is not installed; .ci/run installs it on Debian")


def require_programs_of(script: str) -> None:
    """Skip the test, or fail it in CI, unless those of curl, jq and node that `script` calls are installed."""
    require_programs(*(name for name in ("curl", "jq", "node") if f"{name} " in script))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a disk of `size` at a new `folder`, and yield the folder."""
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
