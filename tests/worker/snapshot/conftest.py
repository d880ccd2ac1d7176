"""Fixtures of the restore of a snapshot: git server, index of wheels, Python environment and lock file."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import venv
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from simulators.hugging_face import ModelServer
from tests.fakes.git_server import GitServer
from worker.snapshot.__main__ import main

MAIN = {"main.py": "print('one')\n", "custom_nodes/websocket_image_save.py": "NODE = 1\n"}


class Wheels:
    """A folder of wheels, which is pip's only source of packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def put(self, name: str, version: str, *, needs: str = "") -> Path:
        """Build the wheel of a package with the attribute VERSION; return the wheel's path."""
        info = f"{name}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        files = {
            f"{name}.py": f"VERSION = {version!r}\n",
            f"{info}/METADATA": metadata + (f"Requires-Dist: {needs}\n" if needs else ""),
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
        wheel = self.folder / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for file, text in {**files, f"{info}/RECORD": record}.items():
                archive.writestr(file, text)
        return wheel


class SnapshotSetup:
    """Everything that a restore accesses, and `restore`, which runs the command."""

    def __init__(self, folder: Path, git: GitServer, web: ModelServer) -> None:
        self.folder = folder
        self.git = git
        self.web = web
        self.to = folder / "opt" / "comfyui"
        self.wheels = Wheels(folder / "wheels")
        self.commits = git.put("ComfyUI", MAIN, {"main.py": "print('two')\n"})
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels.folder),
            "PIP_CONFIG_FILE": os.devnull,
        }

    def snapshot(self, **parts: object) -> Path:
        """Write a snapshot.json with ComfyUI's first commit and the keys of `parts`; return its path."""
        file = self.folder / "snapshot.json"
        file.write_text(json.dumps({"comfyui": self.commits[0], **parts}))
        return file

    def restore(self, *more: str, **parts: object) -> tuple[int, str]:
        """Write a snapshot with `parts`, and run the command in this process; return its exit status and output."""
        err = io.StringIO()
        arguments = ["--snapshot", str(self.snapshot(**parts)), "--to", str(self.to)]
        status = main([*arguments, "--comfyui-repo", self.git.url("ComfyUI"), *more], self.env, err)
        return status, err.getvalue()

    def node(self, name: str, files: Mapping[str, str]) -> dict[str, object]:
        """Put a node with one commit on the git server; return its entry in git_custom_nodes."""
        [commit] = self.git.put(name, {"__init__.py": "", **files})
        return {self.git.url(name): {"hash": commit, "disabled": False}}

    @property
    def nodes(self) -> Path:
        """The folder of custom nodes in the restored ComfyUI."""
        return self.to / "custom_nodes"

    @property
    def is_untouched(self) -> bool:
        """Whether the target folder and its temporary neighbours do not exist."""
        return not self.to.parent.exists() or not list(self.to.parent.iterdir())


@pytest.fixture
def snapshot_setup(tmp_path: Path) -> Iterator[SnapshotSetup]:
    """A new setup, whose git server has a ComfyUI with two commits."""
    with GitServer(tmp_path / "git") as git, ModelServer() as web:
        yield SnapshotSetup(tmp_path, git, web)


class PythonEnvironment:
    """A virtual environment with pip, in which packages can be installed and removed quickly."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.python = folder / "bin" / "python"
        [self._packages] = folder.glob("lib/*/site-packages")
        self._first = set(self._packages.iterdir())

    def put(self, wheel: Path) -> None:
        """Install a wheel by unpacking it, which is much faster than pip."""
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self._packages)

    def clear(self) -> None:
        """Remove all packages that were installed after the environment was created."""
        for each in set(self._packages.iterdir()) - self._first:
            if each.is_dir():
                shutil.rmtree(each)
            else:
                each.unlink()

    def version(self, name: str) -> str:
        """Return the VERSION of an installed package, or an empty text if it cannot be imported."""
        ended = subprocess.run(
            [self.python, "-c", f"import {name}; print({name}.VERSION)"], capture_output=True, text=True, check=False
        )
        return ended.stdout.strip()


@pytest.fixture(scope="module")
def _environment(tmp_path_factory: pytest.TempPathFactory) -> PythonEnvironment:
    return PythonEnvironment(tmp_path_factory.mktemp("environment") / "venv")


@pytest.fixture
def installed(_environment: PythonEnvironment, snapshot_setup: SnapshotSetup) -> Iterator[PythonEnvironment]:
    """An environment with pip and `locked` 1.0. The index also has `locked` 2.0."""
    snapshot_setup.wheels.put("locked", "2.0")
    _environment.put(snapshot_setup.wheels.put("locked", "1.0"))
    yield _environment
    _environment.clear()


@pytest.fixture
def lock(snapshot_setup: SnapshotSetup) -> str:
    """The path of a lock file with `locked` 1.0, in the format of scripts/lock."""
    file = snapshot_setup.folder / "lock.txt"
    file.write_text(f"# by scripts/lock\nlocked[extra]==1.0 ; python_version > '3' \\\n    --hash=sha256:{64 * 'a'}\n")
    return str(file)
