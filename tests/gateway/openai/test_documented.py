"""The example of docs/openai.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from bench.shim_process import KEY, SECRET, ShimProcess
from bench.worker_setup import ROOT

pytestmark = pytest.mark.slow


def test_the_example_runs(server: ShimProcess, tmp_path: Path) -> None:
    """The example saves an image, with the URL and the key of a running server."""
    [example] = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/openai.md").read_text(), re.MULTILINE | re.DOTALL)
    program = example.replace("http://localhost:8189/v1", server.base_url).replace(
        "my-key:my-secret", f"{KEY}:{SECRET}"
    )

    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=300)

    with Image.open(tmp_path / "knight.png") as image:
        assert image.size == (1024, 1024)
