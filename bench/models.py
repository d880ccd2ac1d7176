"""Measures how fast models are downloaded and verified, compared with `cp` and `sha256sum` of the same bytes."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from simulators.hugging_face import ModelServer

ROOT = Path(__file__).parent.parent
MODEL_BYTES = 2 * 1024**3
MEASURED_ROUNDS = 3
_CHUNK_BYTES = 1024 * 1024
_SPARE_BYTES = 1024**3


def models(_: argparse.Namespace) -> None:
    """Print how long it takes to download and verify 2 GiB from a server on this machine."""
    with tempfile.TemporaryDirectory(prefix="bench-models-") as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        needed = 2 * MODEL_BYTES + _SPARE_BYTES
        if free < needed:
            sys.exit(f"scripts/bench: {folder} has {free:,} bytes free and needs {needed:,}. Set TMPDIR")
        _measure(folder)


def _measure(folder: Path) -> None:
    source = folder / "source"
    with source.open("wb") as file:
        for _ in range(MODEL_BYTES // _CHUNK_BYTES):
            file.write(os.urandom(_CHUNK_BYTES))
    sha256 = _sha256(source)
    times: dict[str, list[float]] = {"cp": [], "sha256sum": [], "sha256 by Python's OpenSSL": [], "worker.models": []}
    with ModelServer() as server:
        server.put("/model", source)
        listed = folder / "models.txt"
        listed.write_text(f"{sha256} {MODEL_BYTES} vae/model {server.url}/model\n")
        copy, fetched = folder / "copy", folder / "models"
        command = [sys.executable, "-m", "worker.models", "--quiet", "--list", str(listed), "--to", str(fetched)]
        for _ in range(MEASURED_ROUNDS):
            times["cp"].append(_seconds(lambda: _run("cp", str(source), str(copy))))
            times["sha256sum"].append(_seconds(lambda: _run("sha256sum", str(copy))))
            times["sha256 by Python's OpenSSL"].append(_seconds(lambda: _sha256(copy)))
            copy.unlink()
            times["worker.models"].append(_seconds(lambda: _run(*command)))
            shutil.rmtree(fetched)
    _print_times(times)


def _print_times(times: dict[str, list[float]]) -> None:
    print(
        f"{MODEL_BYTES:,} bytes from loopback, median of {MEASURED_ROUNDS} (min to max), s; "
        "worker.models includes its start and fsync"
    )
    for name, seconds in times.items():
        print(f"  {name:40} {statistics.median(seconds):8.2f}   ({min(seconds):.2f} to {max(seconds):.2f})")
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    ours = medians["worker.models"]
    for hashing in ("sha256sum", "sha256 by Python's OpenSSL"):
        print(f"  speed relative to cp, then {hashing:29} {(medians['cp'] + medians[hashing]) / ours:.2f}")


def _seconds(step: Callable[[], object]) -> float:
    """Return how long `step` takes. Unwritten data of earlier steps is written to disk first."""
    os.sync()
    begun = time.monotonic()
    step()
    return time.monotonic() - begun


def _run(program: str, *arguments: str) -> None:
    path = shutil.which(program) or program
    subprocess.run([path, *arguments], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()
