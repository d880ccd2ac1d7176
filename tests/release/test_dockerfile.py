"""Stages of the Dockerfile: which files two of them copy, and which layers each model and Debian's updates change."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from comfy_core.models.listing import read_models

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def copy_lines(stage: str) -> list[str]:
    """Return the arguments of a stage's COPY lines."""
    dockerfile = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    [body] = re.findall(rf"^FROM \S+ AS {stage}$(.*?)(?=^FROM |\Z)", dockerfile, re.MULTILINE | re.DOTALL)
    return re.findall(r"^COPY (.+)$", body, re.MULTILINE)


def copy_stage(stage: str, folder: Path) -> None:
    """Copy the sources of a stage's COPY lines into `folder`, which takes the place of the image's root."""
    for words in (line.split() for line in copy_lines(stage)):
        *sources, to = [word for word in words if not word.startswith("--")]
        target = folder / to.lstrip("/")
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target)
            else:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, target)


@pytest.mark.parametrize(
    ("stage", "python_path", "command"),
    [
        ("restorer", "", ("-S", "-m", "worker.snapshot")),  # -S: no installed packages
        ("downloader", "downloader", ("-m", "worker.models")),
    ],
)
def test_a_stage_has_all_modules_of_its_command(
    tmp_path: Path, stage: str, python_path: str, command: tuple[str, ...]
) -> None:
    """`--help` of the command works with the copied files only, in another working directory."""
    copy_stage(stage, tmp_path / stage)
    ended = subprocess.run(
        [sys.executable, *command, "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / stage / python_path), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert "--to DIR" in ended.stdout


def test_each_line_of_models_txt_is_a_layer() -> None:
    """The stage with weights has a RUN for each model. If this fails, add or remove the RUN with the last number."""
    numbers = re.findall(r"source=/lines/(\d+),target=/list", (ROOT / "Dockerfile").read_text())

    assert [int(number) for number in numbers] == list(range(1, len(read_models(ROOT / "models.txt")) + 1))


@pytest.mark.parametrize("stage", ["worker", "worker-flux1-dev-fp8", "simulator"])
def test_no_layer_depends_on_the_updates_below_it(stage: str) -> None:
    """Each COPY of a final image has --link. Without it, new updates of Debian would change the layer of torch too."""
    lines = copy_lines(stage)

    assert lines
    assert all(line.startswith("--link ") for line in lines)
