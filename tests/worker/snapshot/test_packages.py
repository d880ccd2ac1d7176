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
    """Restore with `--python` of the environment and `--constraints` of the lock file."""
    return snapshot_setup.restore("--python", str(installed.python), "--constraints", lock, *more, **parts)


def test_requirements_of_two_nodes(snapshot_setup: SnapshotSetup, installed: PythonEnvironment, lock: str) -> None:
    """The requirements of all nodes are installed, in versions that fit all nodes and the lock."""
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
    """The error names the node with that requirement and has pip's output; it does not name the other node."""
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
    """A node cannot change a locked package: the error names node and package, and the package is not changed."""
    status, text = restore(
        snapshot_setup, installed, lock, git_custom_nodes=nodes_with_requirements(snapshot_setup, upgrading="locked>=2")
    )

    assert status == 1
    assert "- upgrading: its requirements conflict with the lock, which has locked==1.0\n" in text
    assert installed.version("locked") == "1.0"
    assert snapshot_setup.is_untouched


def test_nodes_that_contradict_one_another(
    snapshot_setup: SnapshotSetup, installed: PythonEnvironment, lock: str
) -> None:
    """If two nodes' requirements contradict one another, the error names both nodes, and nothing is restored."""
    snapshot_setup.wheels.put("shared", "1.0")
    snapshot_setup.wheels.put("shared", "2.0")

    nodes = nodes_with_requirements(snapshot_setup, one="shared==1.0", two="shared==2.0")
    status, text = restore(snapshot_setup, installed, lock, git_custom_nodes=nodes)

    assert status == 1
    assert "- one and two: their requirements conflict, though each alone can be installed\n" in text
    assert "The user requested shared==2.0" in text
    assert snapshot_setup.is_untouched


def test_several_constraints_apply_together(
    snapshot_setup: SnapshotSetup, installed: PythonEnvironment, lock: str
) -> None:
    """--constraints may be repeated, and each file applies."""
    snapshot_setup.wheels.put("shared", "1.0")
    snapshot_setup.wheels.put("shared", "2.0")
    more = snapshot_setup.folder / "more.txt"
    more.write_text("shared==1.0\n")

    nodes = nodes_with_requirements(snapshot_setup, one="shared\nlocked")
    assert restore(snapshot_setup, installed, lock, "--constraints", str(more), git_custom_nodes=nodes)[0] == 0
    assert installed.version("shared") == "1.0"


def test_without_constraints_a_node_may_change_packages(
    snapshot_setup: SnapshotSetup, installed: PythonEnvironment
) -> None:
    """Without a lock file a node may change packages, and a warning reports it."""
    nodes = nodes_with_requirements(snapshot_setup, upgrading="locked>=2")
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
    """If the index never responds, pip is stopped at the timeout, and there is one error."""
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
    """If a requirement's build fails, the error names the node, and nothing is restored."""
    node = snapshot_setup.node("node", {"requirements.txt": f"{snapshot_setup.folder}/sources\n"})
    (snapshot_setup.folder / "sources").mkdir()
    (snapshot_setup.folder / "sources" / "setup.py").write_text("raise SystemExit('no compiler')")

    status, text = restore(snapshot_setup, installed, lock, git_custom_nodes=node)

    assert status == 1
    assert "- node: its requirements cannot be installed\n" in text
    assert snapshot_setup.is_untouched


# Install scripts


def test_install_script(snapshot_setup: SnapshotSetup, installed: PythonEnvironment, lock: str) -> None:
    """A node's install.py runs with the given Python in the node's final folder, and can import files there."""
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
    """If install scripts fail, the error names each node with the exit status, and has a script's last lines."""
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


@pytest.mark.parametrize("pip_command", ["install -qq --force-reinstall locked==2.0", "uninstall -qq --yes locked"])
def test_install_script_that_changes_the_lock(
    snapshot_setup: SnapshotSetup, installed: PythonEnvironment, lock: str, pip_command: str
) -> None:
    """An install script that changes or removes a locked package fails the restore, and the error names the package."""
    script = f"""
import os, subprocess, sys
del os.environ["PIP_CONSTRAINT"]
subprocess.run([sys.executable, "-m", "pip", *{pip_command.split()}], check=True)
"""
    node = snapshot_setup.node("node", {"install.py": script})

    status, text = restore(snapshot_setup, installed, lock, git_custom_nodes=node)

    assert status == 1
    assert "- node: its install.py changed locked packages: locked from 1.0 to " in text
    assert snapshot_setup.is_untouched


# Invalid options


def test_python_that_cannot_be_used(snapshot_setup: SnapshotSetup) -> None:
    """A --python that does not exist or has no pip is an error before anything is fetched."""
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
    """A file of --constraints that does not exist is an error before anything is fetched."""
    status, text = snapshot_setup.restore("--constraints", "/nowhere/constraints.txt")

    assert (status, text) == (3, "--constraints: /nowhere/constraints.txt cannot be read (FileNotFoundError)\n")
    assert snapshot_setup.git.connections == 0
