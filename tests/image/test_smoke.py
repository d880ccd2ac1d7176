"""scripts/release/smoke_image, which image.yml runs before it pushes an image, on the images of these tests."""

from __future__ import annotations

import subprocess

import pytest

from bench.worker_setup import ROOT
from tests.image.conftest import SIMULATOR, WITH_WEIGHTS, WORKER

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("images")]


@pytest.mark.parametrize("image", [WORKER, WITH_WEIGHTS])
def test_a_built_image_passes_the_smoke_test(image: str) -> None:
    """The image has its labels, a job on the simulator succeeds, and SIGTERM ends the container.

    The image's own ComfyUI is not tested.
    """
    ended = subprocess.run(
        [str(ROOT / "scripts" / "release" / "smoke_image"), image, SIMULATOR, "--without-comfyui"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
