"""The smoke test that image.yml runs before it pushes: scripts/release/smoke_image, on images built here."""

from __future__ import annotations

import subprocess

import pytest

from bench.stage import ROOT
from tests.image.conftest import BAKED, SIMULATOR, WORKER

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("images")]


@pytest.mark.parametrize("image", [WORKER, BAKED])
def test_a_built_image_passes_the_smoke_test(image: str) -> None:
    """Its labels, a job with the simulator, an end by SIGTERM. Its own ComfyUI is a stand-in here, and left out."""
    ended = subprocess.run(
        [str(ROOT / "scripts" / "release" / "smoke_image"), image, SIMULATOR, "--without-comfyui"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
