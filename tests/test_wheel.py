"""The wheel: what an application installs has the workflows in it, and imports quickly without the worker."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys
import comfy_client
assert not {"requests", "PIL", "jsonschema", "websocket"} & sys.modules.keys()
from comfy_client.workflows import default_directory, load_workflows
assert "worker" not in sys.modules
print(*sorted(load_workflows(default_directory())), comfy_client.__file__)
"""


def test_the_wheel_has_its_workflows_and_nothing_of_the_worker(tmp_path: Path) -> None:
    """Built, unpacked elsewhere and imported, it finds the templates inside itself."""
    build = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, timeout=110)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [entry_points] = [name for name in names if name.endswith("entry_points.txt")]
        assert b"comfy-client = comfy_client.cli.main:main" in archive.read(entry_points)
        archive.extractall(tmp_path / "installed")
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed")},
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout

    assert told.startswith("flux-dev-img2img flux-dev-txt2img ")
    assert str(tmp_path) in told
    assert not [name for name in names if name.startswith(("worker", "tests", "handler"))]
    assert "comfy_client/py.typed" in names
