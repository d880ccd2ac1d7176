"""The AI mark in a job's files, as exiftool reads it."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from comfy_core.images.ai_mark import SOURCE_TYPE
from tests.needs import require_programs
from tests.worker.test_job_images import run
from worker.jobs import Worker

pytestmark = pytest.mark.slow
PROPERTY = "XMP-iptcExt:DigitalSourceType"


def read_by_exiftool(file: Path) -> dict[str, Any]:
    """Return the mark as exiftool reads it, and exiftool's errors and warnings about the file."""
    command = ["exiftool", "-j", "-n", "-G1", "-a", "-warning", "-error", f"-{PROPERTY}", "-FileType"]
    [found] = json.loads(subprocess.run([*command, str(file)], capture_output=True, check=True).stdout)
    return dict(found)


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
@pytest.mark.parametrize("metadata", [True, False])
def test_exiftool_reads_the_mark(worker: Worker, tmp_path: Path, output_format: str, metadata: bool) -> None:
    """Each format has the mark, with and without other metadata, and the hash in the result is that of the file."""
    require_programs("exiftool")
    job = {"prompt": "a fox", "width": 64, "height": 64, "steps": 1, "output_format": output_format}

    [image] = run(worker, {**job, "metadata": metadata})["images"]
    file = tmp_path / image["filename"]
    file.write_bytes(base64.b64decode(image["data"]))
    found = read_by_exiftool(file)

    assert found[PROPERTY] == SOURCE_TYPE
    assert found["File:FileType"] == output_format.upper() or found["File:FileType"] == "Extended WEBP"
    assert not [key for key in found if key.endswith(("Warning", "Error"))], found
    assert image["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
