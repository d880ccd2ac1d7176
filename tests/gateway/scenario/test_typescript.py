"""TypeScript callers: types from /openapi.json, and examples/typescript/generate.ts with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from PIL import Image

from bench.shim_process import KEY, SECRET, ShimProcess
from bench.worker_setup import ROOT
from tests.npm import installed

pytestmark = pytest.mark.slow
STRICT = ("--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes", "--module", "nodenext")


def run(folder: Path, *command: str, **environment: str) -> str:
    """Run a program in a folder, and return its output."""
    ended = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_example_compiles_and_runs(shim: ShimProcess, released: threading.Event, tmp_path: Path) -> None:
    """openapi-typescript makes the types, tsc compiles the program in strict mode, and node saves an image."""
    packages = installed("typescript") / "node_modules"
    released.set()
    (tmp_path / "node_modules").symlink_to(packages)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(ROOT / "examples" / "typescript" / "generate.ts", tmp_path)
    tools = packages / ".bin"

    run(tmp_path, str(tools / "openapi-typescript"), f"{shim.url}/openapi.json", "-o", "shim.d.ts")
    run(tmp_path, str(tools / "tsc"), *STRICT, "--target", "es2022", "generate.ts")
    caller = {
        "SCENARIO_BASE_URL": shim.base_url,
        "SCENARIO_SDK_API_KEY": KEY,
        "SCENARIO_SDK_API_SECRET": SECRET,
    }
    printed = run(tmp_path, "node", "generate.js", "a knight", "knight.png", **caller)

    assert "knight.png: image/png" in printed
    with Image.open(tmp_path / "knight.png") as image:
        image.load()
