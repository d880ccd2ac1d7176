"""The wheel: it contains the workflows and not the worker, and works in a new environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.needs import skip_visibly

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
BUILD_FILES = (
    "comfy_core",
    "comfy_client",
    "simulators",
    "workflows",
    "models.txt",
    "requirements",
    "scripts",
    "pyproject.toml",
    "snapshot.json",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
)
PROGRAM = """
import sys
import comfy_client
assert not {"requests", "PIL", "jsonschema", "websocket"} & sys.modules.keys()
from comfy_client.pages import static_page
from comfy_core.workflows import default_directory, load_workflows
from comfy_core.models.listing import default_list, read_models
assert "worker" not in sys.modules
assert read_models(default_list())
assert "--ground" in static_page("title", "body")
print(*sorted(load_workflows(default_directory())), comfy_client.__file__)
"""


@pytest.fixture(scope="module")
def wheel_and_output(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The wheel that scripts/release/wheel builds in a copy of BUILD_FILES, and the script's output."""
    copy = tmp_path_factory.mktemp("copy")
    for name in BUILD_FILES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copy(ROOT / name, copy)
    ended = subprocess.run(
        [str(copy / "scripts" / "release" / "wheel")], capture_output=True, text=True, timeout=280, check=False
    )
    if "NewConnectionError" in ended.stderr or "NameResolutionError" in ended.stderr:
        skip_visibly("NOT TESTED: the wheel: pip cannot reach a package index, which its new environment needs")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    [wheel] = (copy / "dist").glob("*.whl")
    return wheel, ended.stdout


def test_the_wheel_works_in_an_empty_environment(wheel_and_output: tuple[Path, str]) -> None:
    """`scripts/release/wheel` installs the wheel into a new environment, which generates an image on the simulator."""
    wheel, printed = wheel_and_output
    version, image, path = printed.splitlines()

    assert wheel.name.startswith(f"flux_comfyui_client-{version}-")
    assert image.startswith("an image of 64 x 64, ")
    assert path == str(wheel)


def test_the_wheel_has_the_workflows_and_not_the_worker(wheel_and_output: tuple[Path, str], tmp_path: Path) -> None:
    """Importing the unpacked wheel loads no large library and finds the workflows; it has no tests and no worker."""
    with zipfile.ZipFile(wheel_and_output[0]) as archive:
        names = archive.namelist()
        [entry_points] = [name for name in names if name.endswith("entry_points.txt")]
        assert b"comfy-client = comfy_client.cli.main:run" in archive.read(entry_points)
        archive.extractall(tmp_path / "installed")
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed")},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout

    shipped = sorted(path.name.removesuffix(".inputs.json") for path in (ROOT / "workflows").glob("*.inputs.json"))
    assert output.startswith(f"{' '.join(shipped)} ")
    assert str(tmp_path) in output
    assert not [name for name in names if name.startswith(("worker", "tests", "handler", "scripts"))]
    assert "comfy_client/py.typed" in names
