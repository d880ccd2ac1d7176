"""The nodes' Python packages, with a real pip and local wheels: installed within the lock, or an error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from simulators.waiting import until
from tests.worker.snapshot.conftest import PythonEnvironment, SnapshotSetup
from worker.snapshot.packages import Python, read_constraints

pytestmark = pytest.mark.slow


def nodes_with_requirements(snapshot_setup: SnapshotSetup, **requirements: str) -> dict[str, object]:
    """Put nodes with these requirements.txt on the git server; return their entries in git_custom_nodes."""
    entries: dict[str, object] = {}
    for name, text in requirements.items():
        entries |= snapshot_setup.node(name, {"requirements.txt": text})
    return entries


def restore(
    snapshot_setup: SnapshotSetup, installed: PythonEnvironment, lock: str, *more: str, **parts: object
) -> tuple[int, str]:
    """Restore with that environment and its lock."""
    return snapshot_setup.restore("--python", str(installed.python), "--constraints", lock, *more, **parts)


def test_requirements_of_two_nodes(snapshot_setup: SnapshotSetup, installed: PythonEnvironment, lock: str) -> None:
    """Each node's requirements are installed, in versions compatible with both and the lock."""
    for version in ("1.0", "2.0", "3.0"):
        snapshot_setup.wheels.put("shared", version)
    snapshot_setup.wheels.put("single", "1.0", needs="locked")

    nodes = nodes_with_requirements(
        snapshot_setup, one="# first\nshared>=1.5\n", two="shared<3\nsingle\n", three="\n# nothing\n"
    )
    status, text = restore(snapshot_setup, installed, lock, git_custom_nodes=nodes)

    assert status == 0, text
    assert "installing the requirements of one, two, three\n" in text
    assert [installed.version(name) for name in ("shared", "single", "locked")] == ["2.0", "1.0", "1.0"]


def test_requirement_that_does_not_exist(
    snapshot_setup: SnapshotSetup, installed: PythonEnvironment, lock: str
) -> None:
    """The node is named, with pip's output; the other node is not."""
    snapshot_setup.wheels.put("single", "1.0")

    nodes = nodes_with_requirements(snapshot_setup, good="single", bad="nosuch==1.0")
    status, text = restore(snapshot_setup, installed, lock, git_custom_nodes=nodes)

    assert status == 1
    assert "- bad: its requirements cannot be installed\n" in text
    assert "No matching distribution found for nosuch==1.0" in text
    assert "Pin another commit" in text
    assert "- good" not in text
    assert snapshot_setup.is_untouched


def test_requirement_that_contradicts_the_lock(
    snapshot_setup: SnapshotSetup, installed: PythonEnvironment, lock: str
) -> None:
    """A node cannot change ComfyUI's packages: it and the package are named, and the package stays."""
    status, text = restore(
        snapshot_setup, installed, lock, git_custom_nodes=nodes_with_requirements(snapshot_setup, greedy="locked>=2")
    )

    assert status == 1
    assert "- greedy: its requirements conflict with the lock, which has locked==1.0\n" in text
    assert installed.version("locked") == "1.0"
    assert snapshot_setup.is_untouched


def test_nodes_that_contradict_one_another(
    snapshot_setup: SnapshotSetup, installed: PythonEnvironment, lock: str
) -> None:
    """Two nodes that could each be installed alone fail together, instead of the later one winning."""
    snapshot_setup.wheels.put("shared", "1.0")
    snapshot_setup.wheels.put("shared", "2.0")

    nodes = nodes_with_requirements(snapshot_setup, one="shared==1.0", two="shared==2.0")
    status, text = restore(snapshot_setup, installed, lock, git_custom_nodes=nodes)

    assert status == 1
    assert "- one and two: their requirements conflict, though each alone can be installed\n" in text
    assert "The user requested shared==2.0" in text
    assert snapshot_setup.is_untouched


def test_several_constraints(snapshot_setup: SnapshotSetup, installed: PythonEnvironment, lock: str) -> None:
    """--constraints may be repeated, because the lock is several files."""
    snapshot_setup.wheels.put("shared", "1.0")
    snapshot_setup.wheels.put("shared", "2.0")
    more = snapshot_setup.folder / "more.txt"
    more.write_text("shared==1.0\n")

    nodes = nodes_with_requirements(snapshot_setup, one="shared\nlocked")
    assert restore(snapshot_setup, installed, lock, "--constraints", str(more), git_custom_nodes=nodes)[0] == 0
    assert installed.version("shared") == "1.0"


def test_without_constraints(snapshot_setup: SnapshotSetup, installed: PythonEnvironment) -> None:
    """Without a lock file a node may change packages, and a warning reports it."""
    nodes = nodes_with_requirements(snapshot_setup, greedy="locked>=2")
    status, text = snapshot_setup.restore("--python", str(installed.python), git_custom_nodes=nodes)

    assert status == 0
    assert "No --constraints: the nodes' requirements may change ComfyUI's packages" in text
    assert installed.version("locked") == "2.0"


def test_nodes_that_need_a_python_are_named(snapshot_setup: SnapshotSetup) -> None:
    """Without --python, the error names each node that requires packages or has an install script."""
    nodes = {
        **nodes_with_requirements(snapshot_setup, one="single"),
        **snapshot_setup.node("two", {"install.py": ""}),
        **snapshot_setup.node("three", {}),
    }

    status, text = snapshot_setup.restore(git_custom_nodes=nodes)

    assert status == 1
    for name in ("one", "two"):
        assert f"- {name}: it requires packages. Pass ComfyUI's Python with --python\n" in text
    assert "- three" not in text
    assert snapshot_setup.is_untouched


def test_index_that_never_responds(snapshot_setup: SnapshotSetup, installed: PythonEnvironment, lock: str) -> None:
    """A pip that hangs is killed at the timeout, and not run again for each node."""
    snapshot_setup.git.hang()
    (snapshot_setup.folder / "requirements.txt").write_text("single")
    env = {
        "PATH": snapshot_setup.env["PATH"],
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": snapshot_setup.git.url(""),
    }
    env["PIP_INDEX_URL"] = env["PIP_INDEX_URL"].replace("git://", "http://")
    python = Python(installed.python, read_constraints([Path(lock)]), env, timeout_s=3)

    [error] = python.install([snapshot_setup.folder], snapshot_setup.folder)

    assert str(error).startswith("pip: it timed out after 3 s")


def test_requirement_that_does_not_build(
    snapshot_setup: SnapshotSetup, installed: PythonEnvironment, lock: str
) -> None:
    """A failure after pip has resolved everything names the node too."""
    node = snapshot_setup.node("node", {"requirements.txt": f"{snapshot_setup.folder}/sources\n"})
    (snapshot_setup.folder / "sources").mkdir()
    (snapshot_setup.folder / "sources" / "setup.py").write_text("raise SystemExit('no compiler')")

    status, text = restore(snapshot_setup, installed, lock, git_custom_nodes=node)

    assert status == 1
    assert "- node: its requirements cannot be installed\n" in text
    assert snapshot_setup.is_untouched


# Install scripts


def test_install_script(snapshot_setup: SnapshotSetup, installed: PythonEnvironment, lock: str) -> None:
    """A node's install.py runs in its final folder, on that Python, and can import files next to it."""
    snapshot_setup.wheels.put("single", "1.0")
    script = """
import beside, os, subprocess, sys
subprocess.run([sys.executable, "-m", "pip", "install", "-qq", "single"], check=True)
with open("python.txt", "w") as file:
    print(os.getcwd(), os.environ["COMFYUI_PATH"], sys.executable, file=file)
"""
    node = snapshot_setup.node("node", {"install.py": script, "beside.py": ""})

    status, text = restore(snapshot_setup, installed, lock, git_custom_nodes=node)

    assert status == 0, text
    folder = snapshot_setup.nodes / "node"
    assert (folder / "python.txt").read_text() == f"{folder} {snapshot_setup.to} {installed.python}\n"
    assert installed.version("single") == "1.0"


def test_install_script_that_fails(snapshot_setup: SnapshotSetup, installed: PythonEnvironment, lock: str) -> None:
    """A status other than 0 fails the restore, with the script's last lines; each such node is named."""
    nodes = {
        **snapshot_setup.node("one", {"install.py": "import sys; sys.exit('no compiler')"}),
        **snapshot_setup.node("two", {"install.py": "raise SystemExit(7)"}),
    }

    status, text = restore(snapshot_setup, installed, lock, git_custom_nodes=nodes)

    assert status == 1
    assert "- one: its install.py exited with status 1\n    no compiler\n" in text
    assert "- two: its install.py exited with status 7\n" in text
    assert snapshot_setup.is_untouched


def test_install_script_that_hangs(snapshot_setup: SnapshotSetup, installed: PythonEnvironment, lock: str) -> None:
    """An install script that hangs is killed at the timeout, with all its child processes."""
    script = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
open({str(snapshot_setup.folder / "child")!r}, "w").write(str(child.pid))
child.wait()
"""
    node = snapshot_setup.node("node", {"install.py": script})

    status, text = restore(snapshot_setup, installed, lock, "--install-timeout", "5", git_custom_nodes=node)

    assert status == 1
    assert "- node: its install.py timed out after 5 s\n" in text
    child = int((snapshot_setup.folder / "child").read_text())
    assert until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
    assert snapshot_setup.is_untouched


@pytest.mark.parametrize("way", ["install -qq --force-reinstall locked==2.0", "uninstall -qq --yes locked"])
def test_install_script_that_changes_the_lock(
    snapshot_setup: SnapshotSetup, installed: PythonEnvironment, lock: str, way: str
) -> None:
    """A script that changes locked packages despite pip's constraints is detected afterwards."""
    script = f"""
import os, subprocess, sys
del os.environ["PIP_CONSTRAINT"]
subprocess.run([sys.executable, "-m", "pip", *{way.split()}], check=True)
"""
    node = snapshot_setup.node("node", {"install.py": script})

    status, text = restore(snapshot_setup, installed, lock, git_custom_nodes=node)

    assert status == 1
    assert "- node: its install.py changed locked packages: locked from 1.0 to " in text
    assert snapshot_setup.is_untouched


# Invalid options


def test_python_that_cannot_be_used(snapshot_setup: SnapshotSetup) -> None:
    """A Python that does not exist, and one without pip, are errors before anything is fetched."""
    status, text = snapshot_setup.restore("--python", str(snapshot_setup.folder / "python"))
    assert (status, text) == (
        3,
        f"--python: {snapshot_setup.folder}/python cannot be run (No such file or directory)\n",
    )

    bare = snapshot_setup.folder / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    status, text = snapshot_setup.restore("--python", str(bare))
    assert status == 3
    assert f"--python: {bare} has no pip" in text
    assert snapshot_setup.git.connections == 0


def test_constraints_that_cannot_be_read(snapshot_setup: SnapshotSetup) -> None:
    """A lock that does not exist is an error before anything is fetched."""
    status, text = snapshot_setup.restore("--constraints", "/nowhere/constraints.txt")

    assert (status, text) == (3, "--constraints: /nowhere/constraints.txt cannot be read (FileNotFoundError)\n")
    assert snapshot_setup.git.connections == 0
