"""The nodes' Python packages, with a real pip and local wheels: installed within the lock, or an error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from simulators.waiting import until
from tests.worker.snapshot.conftest import Installed, SnapshotSetup
from worker.snapshot.packages import Python, read_constraints

pytestmark = pytest.mark.slow


def asking(bench: SnapshotSetup, **requirements: str) -> dict[str, object]:
    """Put nodes on the git server, with these requirements.txt; return their entries of git_custom_nodes."""
    entries: dict[str, object] = {}
    for name, text in requirements.items():
        entries |= bench.node(name, {"requirements.txt": text})
    return entries


def restored(bench: SnapshotSetup, installed: Installed, lock: str, *more: str, **parts: object) -> tuple[int, str]:
    """Restore with that environment and its lock."""
    return bench.restore("--python", str(installed.python), "--constraints", lock, *more, **parts)


def test_requirements_of_two_nodes(bench: SnapshotSetup, installed: Installed, lock: str) -> None:
    """Each node's requirements are installed, in versions compatible with both and the lock."""
    for version in ("1.0", "2.0", "3.0"):
        bench.wheels.put("shared", version)
    bench.wheels.put("single", "1.0", needs="locked")

    nodes = asking(bench, one="# first\nshared>=1.5\n", two="shared<3\nsingle\n", three="\n# nothing\n")
    status, text = restored(bench, installed, lock, git_custom_nodes=nodes)

    assert status == 0, text
    assert "installing the requirements of one, two, three\n" in text
    assert [installed.version(name) for name in ("shared", "single", "locked")] == ["2.0", "1.0", "1.0"]


def test_requirement_that_does_not_exist(bench: SnapshotSetup, installed: Installed, lock: str) -> None:
    """The node is named, with pip's output; the other node is not."""
    bench.wheels.put("single", "1.0")

    nodes = asking(bench, good="single", bad="nosuch==1.0")
    status, text = restored(bench, installed, lock, git_custom_nodes=nodes)

    assert status == 1
    assert "- bad: its requirements cannot be installed\n" in text
    assert "No matching distribution found for nosuch==1.0" in text
    assert "Pin another commit" in text
    assert "- good" not in text
    assert bench.is_untouched


def test_requirement_that_contradicts_the_lock(bench: SnapshotSetup, installed: Installed, lock: str) -> None:
    """A node cannot change ComfyUI's packages: it and the package are named, and the package stays."""
    status, text = restored(bench, installed, lock, git_custom_nodes=asking(bench, greedy="locked>=2"))

    assert status == 1
    assert "- greedy: its requirements conflict with the lock, which has locked==1.0\n" in text
    assert installed.version("locked") == "1.0"
    assert bench.is_untouched


def test_nodes_that_contradict_one_another(bench: SnapshotSetup, installed: Installed, lock: str) -> None:
    """Two nodes that could each be installed alone fail together, instead of the later one winning."""
    bench.wheels.put("shared", "1.0")
    bench.wheels.put("shared", "2.0")

    nodes = asking(bench, one="shared==1.0", two="shared==2.0")
    status, text = restored(bench, installed, lock, git_custom_nodes=nodes)

    assert status == 1
    assert "- one and two: their requirements conflict, though each alone can be installed\n" in text
    assert "The user requested shared==2.0" in text
    assert bench.is_untouched


def test_several_constraints(bench: SnapshotSetup, installed: Installed, lock: str) -> None:
    """--constraints may be repeated, because the lock is several files."""
    bench.wheels.put("shared", "1.0")
    bench.wheels.put("shared", "2.0")
    more = bench.folder / "more.txt"
    more.write_text("shared==1.0\n")

    nodes = asking(bench, one="shared\nlocked")
    assert restored(bench, installed, lock, "--constraints", str(more), git_custom_nodes=nodes)[0] == 0
    assert installed.version("shared") == "1.0"


def test_without_constraints(bench: SnapshotSetup, installed: Installed) -> None:
    """Without a lock a node may change packages, and a warning says so."""
    nodes = asking(bench, greedy="locked>=2")
    status, text = bench.restore("--python", str(installed.python), git_custom_nodes=nodes)

    assert status == 0
    assert "No --constraints: the nodes' requirements may change ComfyUI's packages" in text
    assert installed.version("locked") == "2.0"


def test_nothing_of_it_can_be_installed_without_a_python(bench: SnapshotSetup) -> None:
    """Without --python, the nodes that need it are named."""
    nodes = {**asking(bench, one="single"), **bench.node("two", {"install.py": ""}), **bench.node("three", {})}

    status, text = bench.restore(git_custom_nodes=nodes)

    assert status == 1
    for name in ("one", "two"):
        assert f"- {name}: it requires packages. Pass ComfyUI's Python with --python\n" in text
    assert "- three" not in text
    assert bench.is_untouched


def test_index_that_never_answers(bench: SnapshotSetup, installed: Installed, lock: str) -> None:
    """A pip that hangs is killed at the timeout, and not run again for each node."""
    bench.git.hang()
    (bench.folder / "requirements.txt").write_text("single")
    env = {"PATH": bench.env["PATH"], "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": bench.git.url("")}
    env["PIP_INDEX_URL"] = env["PIP_INDEX_URL"].replace("git://", "http://")
    python = Python(installed.python, read_constraints([Path(lock)]), env, timeout_s=3)

    [error] = python.install([bench.folder], bench.folder)

    assert str(error).startswith("pip: it timed out after 3 s")


def test_requirement_that_does_not_build(bench: SnapshotSetup, installed: Installed, lock: str) -> None:
    """A failure after pip has resolved everything names the node too."""
    node = bench.node("node", {"requirements.txt": f"{bench.folder}/sources\n"})
    (bench.folder / "sources").mkdir()
    (bench.folder / "sources" / "setup.py").write_text("raise SystemExit('no compiler')")

    status, text = restored(bench, installed, lock, git_custom_nodes=node)

    assert status == 1
    assert "- node: its requirements cannot be installed\n" in text
    assert bench.is_untouched


# Scripts.


def test_install_script(bench: SnapshotSetup, installed: Installed, lock: str) -> None:
    """A node's install.py runs in its final folder, on that Python, and can import files next to it."""
    bench.wheels.put("single", "1.0")
    script = """
import beside, os, subprocess, sys
subprocess.run([sys.executable, "-m", "pip", "install", "-qq", "single"], check=True)
with open("told.txt", "w") as file:
    print(os.getcwd(), os.environ["COMFYUI_PATH"], sys.executable, file=file)
"""
    node = bench.node("node", {"install.py": script, "beside.py": ""})

    status, text = restored(bench, installed, lock, git_custom_nodes=node)

    assert status == 0, text
    folder = bench.nodes / "node"
    assert (folder / "told.txt").read_text() == f"{folder} {bench.to} {installed.python}\n"
    assert installed.version("single") == "1.0"


def test_install_script_that_fails(bench: SnapshotSetup, installed: Installed, lock: str) -> None:
    """A status other than 0 fails the restore, with the script's last lines; each such node is named."""
    nodes = {
        **bench.node("one", {"install.py": "import sys; sys.exit('no compiler')"}),
        **bench.node("two", {"install.py": "raise SystemExit(7)"}),
    }

    status, text = restored(bench, installed, lock, git_custom_nodes=nodes)

    assert status == 1
    assert "- one: its install.py exited with status 1\n    no compiler\n" in text
    assert "- two: its install.py exited with status 7\n" in text
    assert bench.is_untouched


def test_install_script_that_hangs(bench: SnapshotSetup, installed: Installed, lock: str) -> None:
    """It is killed at the timeout, with all its child processes."""
    script = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
open({str(bench.folder / "child")!r}, "w").write(str(child.pid))
child.wait()
"""
    node = bench.node("node", {"install.py": script})

    status, text = restored(bench, installed, lock, "--install-timeout", "5", git_custom_nodes=node)

    assert status == 1
    assert "- node: its install.py timed out after 5 s\n" in text
    child = int((bench.folder / "child").read_text())
    assert until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
    assert bench.is_untouched


@pytest.mark.parametrize("way", ["install -qq --force-reinstall locked==2.0", "uninstall -qq --yes locked"])
def test_install_script_that_changes_the_lock(bench: SnapshotSetup, installed: Installed, lock: str, way: str) -> None:
    """A script that changes locked packages despite pip's constraints is detected afterwards."""
    script = f"""
import os, subprocess, sys
del os.environ["PIP_CONSTRAINT"]
subprocess.run([sys.executable, "-m", "pip", *{way.split()}], check=True)
"""
    node = bench.node("node", {"install.py": script})

    status, text = restored(bench, installed, lock, git_custom_nodes=node)

    assert status == 1
    assert "- node: its install.py changed locked packages: locked from 1.0 to " in text
    assert bench.is_untouched


# Wrong options.


def test_python_that_is_none(bench: SnapshotSetup) -> None:
    """A Python that does not exist, and one without pip, are errors before anything is fetched."""
    status, text = bench.restore("--python", str(bench.folder / "python"))
    assert (status, text) == (3, f"--python: {bench.folder}/python cannot be run (No such file or directory)\n")

    bare = bench.folder / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    status, text = bench.restore("--python", str(bare))
    assert status == 3
    assert f"--python: {bare} has no pip" in text
    assert bench.git.connections == 0


def test_constraints_that_cannot_be_read(bench: SnapshotSetup) -> None:
    """A lock that does not exist is an error before anything is fetched."""
    status, text = bench.restore("--constraints", "/nowhere/constraints.txt")

    assert (status, text) == (3, "--constraints: /nowhere/constraints.txt cannot be read (FileNotFoundError)\n")
    assert bench.git.connections == 0
