"""The restore, through its command: real repositories from a git server, each commit as pinned, or an error."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from simulators.hugging_face import ModelResponse
from simulators.waiting import until
from tests.worker.snapshot.conftest import MAIN, SnapshotSetup
from worker.snapshot.listing import Repository, RestoreError
from worker.snapshot.repository import Git, fetch_commit

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
NOWHERE = "1" * 40
UNAUTHORIZED = ModelResponse(401, {"WWW-Authenticate": 'Basic realm="private"'})


def first_commit(bench: SnapshotSetup) -> Repository:
    """Return ComfyUI's first commit."""
    return Repository(bench.git.url("ComfyUI"), bench.commits[0])


# What comes.


def test_the_pinned_commit_and_not_the_newest(bench: SnapshotSetup) -> None:
    """With a pin of the first of two commits, that one is restored."""
    status, text = bench.restore()

    assert status == 0
    assert (bench.to / "main.py").read_text() == "print('one')\n"
    assert f"ComfyUI: {bench.commits[0]} of {bench.git.url('ComfyUI')}, fetched and verified in " in text
    assert text.endswith(f"ComfyUI with 0 custom nodes is in {bench.to}\n")


def test_comfyui_ref_goes_first(bench: SnapshotSetup) -> None:
    """--comfyui-ref overrides the snapshot's commit, and is used if it has none."""
    assert bench.restore("--comfyui-ref", bench.commits[1], comfyui=None)[0] == 0
    assert (bench.to / "main.py").read_text() == "print('two')\n"


def test_nodes_at_their_commits(bench: SnapshotSetup) -> None:
    """Each node is in the folder that the Manager would choose, at its commit; a disabled one is not."""
    first = bench.git.put("packs/First.git", {"__init__.py": "1"}, {"__init__.py": "2"})
    nodes = {
        f"{bench.git.url('packs/First.git')}": {"hash": first[0], "disabled": False},
        **bench.node("second", {"nodes.py": "x"}),
        "https://example.invalid/third": {"hash": None, "disabled": True},
    }

    status, text = bench.restore(git_custom_nodes=nodes)

    assert status == 0
    assert (bench.nodes / "First" / "__init__.py").read_text() == "1"
    assert sorted(each.name for each in bench.nodes.iterdir()) == ["First", "second", "websocket_image_save.py"]
    assert "git_custom_nodes[https://example.invalid/third]: disabled, not installed" in text
    assert text.endswith(f"ComfyUI with 2 custom nodes is in {bench.to}\n")


def test_submodules(bench: SnapshotSetup) -> None:
    """A node's submodule is fetched at the commit that the node pins."""
    bench.git.put("library", {"code.py": "old"})
    [commit] = bench.git.put("node", {"__init__.py": ""}, submodule="library")

    status, text = bench.restore(git_custom_nodes={bench.git.url("node"): {"hash": commit}})

    assert status == 0, text
    assert (bench.nodes / "node" / "part" / "code.py").read_text() == "old"
    assert not list(bench.to.rglob(".git"))


def test_submodule_that_is_gone(bench: SnapshotSetup) -> None:
    """A node without its submodule is an error of that node."""
    bench.git.put("library", {"code.py": "old"})
    [commit] = bench.git.put("node", {"__init__.py": ""}, submodule="library")
    (bench.git.folder / "library").rename(bench.git.folder / "elsewhere")

    status, text = bench.restore(git_custom_nodes={bench.git.url("node"): {"hash": commit}})

    assert status == 1
    assert f"- node: git submodule update of {commit} of {bench.git.url('node')} failed\n" in text
    assert bench.is_untouched


def test_no_git_is_left(bench: SnapshotSetup) -> None:
    """The folder has no .git, and is world-readable; with --keep-git it is a repository at that commit."""
    node = bench.node("node", {})

    assert bench.restore(git_custom_nodes=node)[0] == 0
    assert not list(bench.to.rglob(".git"))
    assert stat.S_IMODE(bench.to.stat().st_mode) & 0o555 == 0o555

    bench.to = bench.folder / "kept"
    assert bench.restore("--keep-git", git_custom_nodes=node)[0] == 0
    assert (bench.to / ".git").is_dir()
    assert (bench.nodes / "node" / ".git").is_dir()


# What does not come.


def test_what_is_missing_is_named(bench: SnapshotSetup) -> None:
    """A repository and a commit that do not exist fail the restore; both are named, and nothing is left."""
    bench.node("there", {})
    nodes = {
        bench.git.url("gone"): {"hash": NOWHERE, "disabled": False},
        bench.git.url("there"): {"hash": NOWHERE, "disabled": False},
    }

    status, text = bench.restore(git_custom_nodes=nodes)

    assert status == 1
    assert f"- gone: git fetch of {NOWHERE} of {bench.git.url('gone')} failed\n" in text
    assert "The repository does not exist. Correct its URL" in text
    assert f"- there: git fetch of {NOWHERE} of {bench.git.url('there')} failed\n" in text
    assert "It has no commit of that hash, or its server serves no commits by hash. Correct the hash or the URL" in text
    assert "Retrying" not in text
    assert bench.is_untouched


def test_comfyui_that_is_missing(bench: SnapshotSetup) -> None:
    """Without ComfyUI nothing else is fetched."""
    status, text = bench.restore("--comfyui-repo", bench.git.url("gone"), git_custom_nodes=bench.node("node", {}))

    assert status == 1
    assert "- ComfyUI: git fetch of " in text
    assert "The repository does not exist" in text
    assert "- node: " not in text
    assert bench.git.connections == 1


def test_hash_of_a_tag(bench: SnapshotSetup) -> None:
    """The hash of a tag object is not that of a commit."""
    tag = bench.git.tag("ComfyUI")

    status, text = bench.restore("--comfyui-ref", tag)

    assert status == 1
    assert f"checking out {tag} of {bench.git.url('ComfyUI')} resulted in {bench.commits[1]}" in text


def test_submodule_of_this_machine(bench: SnapshotSetup) -> None:
    """A submodule cannot be a folder of the build machine."""
    bench.git.put("library", {"code.py": "old"})
    local = f"file://{bench.git.folder}/library"
    [commit] = bench.git.put("node", {"__init__.py": ""}, submodule="library", submodule_url=local)

    status, text = bench.restore(git_custom_nodes={bench.git.url("node"): {"hash": commit}})

    assert status == 1
    assert "transport 'file' not allowed" in text


def test_comfyui_of_this_machine(bench: SnapshotSetup) -> None:
    """The user who runs the restore may use a folder of this machine."""
    assert bench.restore("--comfyui-repo", f"file://{bench.git.folder}/ComfyUI")[0] == 0


def test_what_passes_is_tried_again(bench: SnapshotSetup) -> None:
    """Two broken connections are retried."""
    bench.git.drop(2)

    fetch_commit("ComfyUI", first_commit(bench), bench.to, Git(bench.env, pause_s=0.01))

    assert (bench.to / "main.py").is_file()
    assert bench.git.connections == 3


def test_what_does_not_pass_is_given_up(bench: SnapshotSetup) -> None:
    """The third broken connection is an error."""
    bench.git.drop(9)

    with pytest.raises(RestoreError, match=r"(?s)ComfyUI: git fetch of .*Given up after 3 attempts"):
        fetch_commit("ComfyUI", first_commit(bench), bench.to, Git(bench.env, pause_s=0.01))
    assert bench.git.connections == 3


def test_server_that_never_answers(bench: SnapshotSetup) -> None:
    """A server that accepts the connection and sends nothing times out."""
    bench.git.hang()

    with pytest.raises(RestoreError, match=r"(?s)timed out.*Given up after 3 attempts"):
        fetch_commit("ComfyUI", first_commit(bench), bench.to, Git(bench.env, timeout_s=0.5, pause_s=0.01))


def test_nobody_is_asked_for_a_password(bench: SnapshotSetup) -> None:
    """A server that requires a login ends the restore at once, and the login in the URL is not shown."""
    address = bench.web.url.replace("://", "://user:hunter2@") + "/private"
    bench.web.respond("/private/info/refs", *[UNAUTHORIZED] * 9)

    status, text = bench.restore("--comfyui-repo", address)

    assert status == 1
    assert "It does not exist, or is private" in text
    assert "***@127.0.0.1" in text
    assert "hunter2" not in text


# The folder.


def test_folder_that_is_there(bench: SnapshotSetup) -> None:
    """An empty folder is accepted; a non-empty one is an error before anything is fetched."""
    bench.to.mkdir(parents=True)
    assert bench.restore()[0] == 0

    connections = bench.git.connections
    status, text = bench.restore()
    assert (status, text) == (3, f"--to: {bench.to} already exists. Remove it, or pass a new folder\n")
    assert bench.git.connections == connections


def test_node_that_comfyui_brings(bench: SnapshotSetup) -> None:
    """A node does not replace a folder that ComfyUI ships."""
    commits = bench.git.put("Other", {**MAIN, "custom_nodes/node/__init__.py": ""})

    status, text = bench.restore(
        "--comfyui-repo",
        bench.git.url("Other"),
        comfyui=commits[0],
        git_custom_nodes=bench.node("node", {}),
    )

    assert status == 1
    assert "- node: ComfyUI ships a node of that name" in text


def test_folder_that_cannot_be_made(bench: SnapshotSetup) -> None:
    """A file where a folder should be is named."""
    bench.to.parent.write_text("")

    status, text = bench.restore()

    assert status == 1
    assert str(bench.to.parent) in text


# The command.


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(bench: SnapshotSetup, sign: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end it soon, git with it, and nothing is left."""
    bench.git.hang()
    arguments = ["--snapshot", str(bench.snapshot()), "--to", str(bench.to), "--comfyui-repo", bench.git.url("ComfyUI")]
    process = subprocess.Popen(
        [ROOT / "scripts" / "restore_snapshot", *arguments],
        env={**os.environ, **bench.env},
        cwd=bench.folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert until(lambda: bench.git.connections)

    process.send_signal(sign)
    said = process.communicate(timeout=60)[1]

    assert (process.returncode, said) == (130, f"Interrupted. {bench.to} was not created\n")
    assert bench.is_untouched


def test_git_is_needed(bench: SnapshotSetup) -> None:
    """If git is not installed, that is reported first."""
    bench.env["PATH"] = str(bench.folder)

    status, text = bench.restore()

    assert (status, text) == (3, "git is not installed. On Debian and Ubuntu: apt-get install git\n")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("--comfyui-ref", "v1.2.3"), "--comfyui-repo, --comfyui-ref: its hash must be the 40 hexadecimal digits"),
        (("--comfyui-repo", "/src/ComfyUI"), "--comfyui-repo, --comfyui-ref: its URL must begin with https://"),
        (
            ("--comfyui-repo", "https://u:hunter2@host/x", "--keep-git"),
            "--keep-git would store the login that is in a URL",
        ),
        (("--timeout", "0"), "--timeout: must be a number of seconds above 0, not '0'"),
        (("--install-timeout", "soon"), "--install-timeout: must be a number of seconds above 0, not 'soon'"),
        (("--branch", "main"), "unrecognized arguments: --branch main"),
    ],
)
def test_wrong_options(bench: SnapshotSetup, arguments: tuple[str, ...], fault: str) -> None:
    """An invalid option ends with status 3 and its name, before anything is fetched."""
    status, text = bench.restore(*arguments)

    assert (status, fault in text) == (3, True), text
    assert "hunter2" not in text
    assert bench.git.connections == 0


def test_snapshot_without_comfyui(bench: SnapshotSetup) -> None:
    """A snapshot of the nodes only needs --comfyui-ref."""
    status, text = bench.restore(comfyui=None)

    assert status == 3
    assert text.endswith("comfyui has no commit. Save a complete snapshot, or pass --comfyui-ref\n")


def test_disk_that_cannot_be_written(bench: SnapshotSetup) -> None:
    """A disk error is an error of the part that needed the disk."""
    commits = bench.git.put("Other", {"main.py": "", "custom_nodes": "a file"})

    status, text = bench.restore(
        "--comfyui-repo", bench.git.url("Other"), comfyui=commits[0], git_custom_nodes=bench.node("node", {})
    )

    assert status == 1
    assert "- node: its files cannot be read or written (Not a directory: " in text
    assert bench.is_untouched
