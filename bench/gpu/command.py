"""The command: makes the model files, measures the flag sets, and writes the results after each of them."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.gpu import machine
from bench.gpu.flag_sets import FLAG_SETS, TOY, FlagSet, Plan
from bench.gpu.measure import Installation, measure
from bench.gpu.results import Report, Status, markdown_table
from bench.gpu.runner import Budget, measured_sets

DESCRIPTION = """\
Measures ComfyUI's launch flags on this machine's GPU: seconds a step and an image, GPU memory, boot, and the loading
of models. It writes model files of the real size with random weights (17.2 GB), and starts the given ComfyUI as the
worker does. It installs nothing and needs no network.
"""
RANDOM_MODELS = Path(__file__).parents[2] / "tools" / "random_models.py"
OUTPUT_FOLDER = Path("debug-output") / "gpu"
FULL_SIZE_BYTES = 18_000_000_000
"""Free disk space that the full-size model files need."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder, a checkout of its repository")
    parser.add_argument("--python", type=Path, required=True, help="the Python that has ComfyUI's packages")
    parser.add_argument("--models", type=Path, help="folder for the model files, which are kept and used again")
    parser.add_argument("--out", type=Path, default=OUTPUT_FOLDER, help="folder of the results; %(default)s")
    parser.add_argument("--sets", default="", help="comma-separated names of flag sets; default: all")
    parser.add_argument("--budget-s", type=float, default=540, help="maximum seconds in all; %(default)s")
    parser.add_argument("--set-limit-s", type=float, default=180, help="maximum seconds of a flag set; %(default)s")
    parser.add_argument(
        "--toy", action="store_true", help="small models and images on the CPU; changes the checkout's T5 config"
    )
    parser.set_defaults(run=gpu)


def gpu(options: argparse.Namespace) -> None:
    """Run the benchmark. Exits with 1 if a flag set failed; the results of the others are written."""
    logging.basicConfig(level=logging.ERROR)
    budget = Budget(options.budget_s, options.set_limit_s, time.monotonic, time.monotonic())
    flag_sets = selected(options.sets)
    options.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        models = options.models or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-models-")))
        flags = ("--cpu",) if options.toy else ()
        python = options.python.absolute()  # a link in a virtual environment must not be resolved
        installation = Installation(options.comfyui.resolve(), python, models.resolve(), flags, options.out)
        plan = TOY if options.toy else Plan()
        report = Report(
            machine=machine.describe(),
            versions=machine.versions(installation.comfyui, python),
            plan=plan,
            models=make_models(options, installation),
            budget_s=options.budget_s,
        )
        for result in measured_sets(flag_sets, partial(measure, installation, plan), budget):
            report = report.with_set(result, budget.used_s)
            write_results(report, options.out)
            print(f"{result.flag_set.name}: {result.status}, {result.duration_s:.0f} s {result.problem}", flush=True)
    print(f"\n{markdown_table(report.sets)}\nResults: {options.out}/results.json", flush=True)
    if any(result.status is Status.FAILED for result in report.sets):
        sys.exit(1)


def selected(names: str) -> list[FlagSet]:
    """Return the flag sets that --sets names, in their own order. Exits if a name is unknown."""
    wanted = [name for name in names.split(",") if name]
    known = [flag_set.name for flag_set in FLAG_SETS]
    if unknown := sorted(set(wanted) - set(known)):
        sys.exit(f"bench gpu: --sets: there is no flag set {unknown[0]}. The flag sets are {', '.join(known)}")
    return [flag_set for flag_set in FLAG_SETS if not wanted or flag_set.name in wanted]


def make_models(options: argparse.Namespace, installation: Installation) -> dict[str, Any]:
    """Write the missing model files; return their folder, size, and the seconds that it took. Exits if it fails."""
    models, own = installation.models, installation.comfyui / "models"
    if models != own and (found := next(own.glob("vae/ae.*"), None)):
        sys.exit(
            f"bench gpu: ComfyUI would load {found}. Pass --models {own} to measure its files, or another checkout"
        )
    models.mkdir(parents=True, exist_ok=True)
    if not options.toy and not installation.model_files and shutil.disk_usage(models).free < FULL_SIZE_BYTES:
        sys.exit(f"bench gpu: {models} has less than {FULL_SIZE_BYTES:,} free bytes. Set --models to another folder")
    size = [] if options.toy else ["--full-size"]
    command = [*map(str, (installation.python, RANDOM_MODELS, installation.comfyui, "--only-models", models)), *size]
    begun_at = time.monotonic()
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=options.budget_s)
    except (OSError, subprocess.SubprocessError) as error:
        reason = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        sys.exit(f"bench gpu: the model files were not written: {str(reason)[-2000:]}")
    seconds = time.monotonic() - begun_at
    written = sum(file.stat().st_size for file in installation.model_files)
    return {"folder": str(models), "bytes": written, "seconds": seconds}


def write_results(report: Report, folder: Path) -> None:
    """Write results.json and table.md."""
    made_at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    content = {"made_at": made_at, **report.to_json()}
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(markdown_table(report.sets), encoding="utf-8")
