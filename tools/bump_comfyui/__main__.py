"""Moves this repository to another commit of ComfyUI.

    python -m tools.bump_comfyui [COMMIT] [--dry-run]

The steps: fetch ComfyUI, lock its packages, install them, record it, compare the recordings and the source with those
of the pinned version, run each file of tests/comfyui on it, edit this repository, generate docs/, run the tests that
use the recordings. A step that succeeded is not repeated, so the command can be run again after a failure. Nothing
outside the work folder changes before the step `edit`. ComfyUI runs on the CPU with models of random weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tools.bump_comfyui.bump import LISTS, RECORDING_TESTS, SNAPSHOT, Bump
from tools.bump_comfyui.engine import ROOT, commit_of
from tools.bump_comfyui.steps import StepError, Steps

REPO = "https://github.com/Comfy-Org/ComfyUI"
TESTS = ROOT / "tests" / "comfyui"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(
        prog="python -m tools.bump_comfyui", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "commit", nargs="?", default="newest", help="a full hash or a tag (default: the newest release)"
    )
    options.add_argument("--repo", default=REPO, help="URL or folder of a repository of ComfyUI (default: %(default)s)")
    options.add_argument("--dry-run", action="store_true", help="print the table; do not edit this repository")
    options.add_argument(
        "--torch-index",
        default=TORCH_INDEX,
        metavar="URL",
        help="a package index that has torch (default: %(default)s)",
    )
    options.add_argument("--work", type=Path, default=ROOT / ".bump", help="the work folder (default: %(default)s)")
    return options


def run(bump: Bump, *, is_dry_run: bool) -> None:
    """Run the steps. Raises StepError."""
    steps, source = bump.steps, (bump.commit, bump.repo)
    lists = tuple(bump.lists / name for name in LISTS)
    steps.run("fetch", (*source, bump.pinned), bump.fetch)
    overrides = ROOT / "requirements/image-overrides.txt"
    steps.run("lock", (*source, ROOT / "scripts/lock", ROOT / "pyproject.toml", overrides), bump.lock)
    steps.run("install", (bump.venv.name,), bump.install)
    recorder = [ROOT / "tools" / name for name in ("record_comfyui.py", "recorded_graphs.py", "random_models.py")]
    steps.run("record", (*source, *lists, *recorder), bump.record)
    steps.always("compare", bump.compare)
    code = [ROOT / name for name in ("comfy_core", "worker", "tests/comfyui", "workflows")]
    for file in sorted(TESTS.glob("test_*.py")):
        if str(file.relative_to(ROOT)) in RECORDING_TESTS:
            continue  # it uses no ComfyUI
        steps.run(file.stem, (*source, *lists, *code), partial(bump.test, file))
    if is_dry_run:
        print(f"\n{bump.page.read_text()}")
        return
    steps.always("edit", bump.edit)
    steps.always("docs", bump.generate)
    steps.always("check", bump.check)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the steps that are left. Exits with 1 if one fails."""
    options = parser().parse_args(arguments)
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    try:
        commit = commit_of(Steps(work), options.repo, options.commit)
        snapshot = json.loads(SNAPSHOT.read_text())
        if commit == snapshot["comfyui"]:
            print(f"ComfyUI {snapshot['comfyui_version']} ({commit}) is pinned already.")
            return
        bump = Bump(commit, options.repo, options.torch_index, work, snapshot)
        run(bump, is_dry_run=options.dry_run)
    except StepError as error:
        sys.exit(f"tools.bump_comfyui: {error}")


if __name__ == "__main__":
    main()
