"""The examples of the README, and the scripts `test_comfyui_api` and `validate_endpoint`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from bench.worker_setup import ROOT, WorkerSetup, running_worker
from simulators.http_server import free_port

pytestmark = pytest.mark.slow
TERMINAL_BLOCK = re.compile(r"<!-- Run by tests/test_readme.py. -->\n```sh\n(.*?)```", re.DOTALL)
PYTHON_BLOCK = re.compile(r"<!-- Run by tests/test_readme.py. -->\n```python\n(.*?)```", re.DOTALL)
SMALL_FLAGS = ["--width", "64", "--height", "64", "--steps", "2"]


@pytest.fixture(scope="module")
def setup() -> Iterator[WorkerSetup]:
    """A worker on the simulated platform."""
    with running_worker(step_s=0.02) as setup:
        yield setup


def run(command: list[str], setup: WorkerSetup, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with the variables of the platform."""
    env = {**os.environ, **setup.platform.client_env(), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=250, check=False)


def test_the_example_of_the_readme_runs(setup: WorkerSetup, tmp_path: Path) -> None:
    """The README's example has four lines, and generates knight.png; environment variables select the endpoint."""
    [example] = PYTHON_BLOCK.findall((ROOT / "README.md").read_text())
    ended = run([sys.executable, "-c", example], setup, tmp_path)

    assert ended.returncode == 0, ended.stderr
    assert len([line for line in example.splitlines() if line]) == 4
    with Image.open(tmp_path / "knight.png") as image:
        assert image.size == (1024, 1024)


def test_the_readme_s_block_for_a_terminal_runs() -> None:
    """The block runs on a free port, writes two images to debug-output/ and prints their paths without base64."""
    [block] = TERMINAL_BLOCK.findall((ROOT / "README.md").read_text())
    port = free_port()
    here = block.replace("simulator &", f"simulator --port {port} &").replace(":8188", f":{port}")
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"trap 'kill %1' EXIT\n{here}"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    written = [ROOT / path for path in re.findall(r"'data': '(debug-output/[^']+)'", ended.stdout)]

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(written) == 2
    assert len(ended.stdout) < 8000
    for path in written:
        with Image.open(path) as image:
            assert image.size == (1024, 1024)
        path.unlink()


def test_the_recording_shows_the_commands_of_the_tape() -> None:
    """The recording has each command that the tape types, no script, and a title that names the simulator."""
    recording = ET.parse(ROOT / "docs" / "terminal.svg")  # noqa: S314 - our own file
    tags = {element.tag.rpartition("}")[2] for element in recording.iter()}
    text = "".join(recording.getroot().itertext())
    tape = (ROOT / "tools" / "terminal.tape").read_text().partition("\nShow\n")[2]
    commands = re.findall(r'^Type "(.+)"$', tape, re.MULTILINE)

    assert "script" not in tags
    assert "simulator" in (recording.findtext("{*}title") or "")
    assert len(commands) >= 3
    for command in commands:
        assert command in text


def test_one_script_generates_an_image(setup: WorkerSetup, tmp_path: Path) -> None:
    """`test_comfyui_api` writes a PNG from a prompt and one from an image. Without a workflow it exits with 2."""
    script = str(ROOT / "scripts" / "test_comfyui_api")
    from_prompt = run([script, "A pixel art knight", "txt2img", *SMALL_FLAGS, "-o", "a.png"], setup, tmp_path)
    from_image = run([script, "Refine", "img2img", "a.png", *SMALL_FLAGS, "-o", "b.png"], setup, tmp_path)
    without_workflow = run([script, "Refine"], setup, tmp_path)

    assert (from_prompt.returncode, from_image.returncode, without_workflow.returncode) == (0, 0, 2), (
        from_prompt.stderr + from_image.stderr
    )
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"


def test_validate_endpoint_writes_its_evidence(setup: WorkerSetup, tmp_path: Path) -> None:
    """The script exits with 0, and writes images, requests, results and a page that shows the images and no API key."""
    script = str(ROOT / "scripts" / "validate_endpoint")
    ended = run([script, *SMALL_FLAGS, "--output", str(tmp_path)], setup, ROOT)
    [folder] = [path for path in tmp_path.iterdir() if path.is_dir()]
    page = (folder / "index.html").read_text()

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [line[:2] for line in ended.stdout.splitlines()[:-1]] == ["ok"] * 5
    for name in ("txt2img-1.png", "txt2img-2.png", "img2img-1.png", "graph-1.png", "in.png"):
        assert (folder / name).exists()
        assert name in page
    for name in ("txt2img", "img2img", "graph", "bad_request", "cancel"):
        assert json.loads((folder / f"{name}.request.json").read_text())
        assert json.loads((folder / f"{name}.result.json").read_text())
    assert setup.platform.api_key not in page


def test_validate_endpoint_fails_for_a_failing_endpoint(setup: WorkerSetup, tmp_path: Path) -> None:
    """The script exits with 1, and names the failed case and its error."""
    assert setup.simulator is not None
    setup.simulator.faults.fail_node("KSampler", "RuntimeError", "boom", times=1)
    script = str(ROOT / "scripts" / "validate_endpoint")
    ended = run([script, *SMALL_FLAGS, "--output", str(tmp_path)], setup, ROOT)

    assert ended.returncode == 1, ended.stdout
    assert "!!  txt2img" in ended.stdout
    assert "boom" in ended.stdout
