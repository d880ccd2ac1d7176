"""The restore through its command: commits, submodules, retries, the target folder, and invalid options."""

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
MISSING_COMMIT = "1" * 40
UNAUTHORIZED = ModelResponse(401, {"WWW-Authenticate": 'Basic realm="private"'})


def first_commit(snapshot_setup: SnapshotSetup) -> Repository:
    """Return ComfyUI's repository at its first commit."""
    return Repository(snapshot_setup.git.url("ComfyUI"), snapshot_setup.commits[0])


# Restored parts


def test_the_pinned_commit_and_not_the_newest(snapshot_setup: SnapshotSetup) -> None:
    """The first of two commits is pinned and restored, and the output names it."""
    status, text = snapshot_setup.restore()

    assert status == 0
    assert (snapshot_setup.to / "main.py").read_text() == "print('one')\n"
    assert (
        f"ComfyUI: {snapshot_setup.commits[0]} of {snapshot_setup.git.url('ComfyUI')}, fetched and verified in " in text
    )
    assert text.endswith(f"ComfyUI with 0 custom nodes is in {snapshot_setup.to}\n")


def test_comfyui_ref_replaces_a_missing_commit(snapshot_setup: SnapshotSetup) -> None:
    """--comfyui-ref is used if the snapshot has no commit of ComfyUI."""
    assert snapshot_setup.restore("--comfyui-ref", snapshot_setup.commits[1], comfyui=None)[0] == 0
    assert (snapshot_setup.to / "main.py").read_text() == "print('two')\n"


@pytest.mark.parametrize(("version", "status"), [("1.2.0", 0), ("1.3.0", 1)])
def test_the_commit_must_have_the_version_of_the_snapshot(
    snapshot_setup: SnapshotSetup, version: str, status: int
) -> None:
    """If comfyui_version is not the version of the commit, the restore fails and creates no folder."""
    files = {"comfyui_version.py": '__version__ = "1.2.0"\n'}
    [commit] = snapshot_setup.git.put("versioned", files)
    repository = ("--comfyui-repo", snapshot_setup.git.url("versioned"))

    ended, text = snapshot_setup.restore(*repository, comfyui=commit, comfyui_version=version)

    assert ended == status
    assert snapshot_setup.is_untouched == bool(status)
    assert ("the commit is not version 1.3.0. Correct comfyui or comfyui_version" in text) == bool(status)


def test_nodes_at_their_commits(snapshot_setup: SnapshotSetup) -> None:
    """Each node is in the folder of its repository's name, at its commit; a disabled node is not installed."""
    first = snapshot_setup.git.put("packs/First.git", {"__init__.py": "1"}, {"__init__.py": "2"})
    nodes = {
        f"{snapshot_setup.git.url('packs/First.git')}": {"hash": first[0], "disabled": False},
        **snapshot_setup.node("second", {"nodes.py": "x"}),
        "https://example.invalid/third": {"hash": None, "disabled": True},
    }

    status, text = snapshot_setup.restore(git_custom_nodes=nodes)

    assert status == 0
    assert (snapshot_setup.nodes / "First" / "__init__.py").read_text() == "1"
    assert sorted(each.name for each in snapshot_setup.nodes.iterdir()) == [
        "First",
        "second",
        "websocket_image_save.py",
    ]
    assert "git_custom_nodes[https://example.invalid/third]: disabled, not installed" in text
    assert text.endswith(f"ComfyUI with 2 custom nodes is in {snapshot_setup.to}\n")


def test_a_submodule_has_its_pinned_commit(snapshot_setup: SnapshotSetup) -> None:
    """A node's submodule is fetched at the commit that the node pins."""
    snapshot_setup.git.put("library", {"code.py": "old"})
    [commit] = snapshot_setup.git.put("node", {"__init__.py": ""}, submodule="library")

    status, text = snapshot_setup.restore(git_custom_nodes={snapshot_setup.git.url("node"): {"hash": commit}})

    assert status == 0, text
    assert (snapshot_setup.nodes / "node" / "part" / "code.py").read_text() == "old"
    assert not list(snapshot_setup.to.rglob(".git"))


def test_missing_submodule(snapshot_setup: SnapshotSetup) -> None:
    """If a submodule's repository does not exist, the error names the node, and nothing is restored."""
    snapshot_setup.git.put("library", {"code.py": "old"})
    [commit] = snapshot_setup.git.put("node", {"__init__.py": ""}, submodule="library")
    (snapshot_setup.git.folder / "library").rename(snapshot_setup.git.folder / "elsewhere")

    status, text = snapshot_setup.restore(git_custom_nodes={snapshot_setup.git.url("node"): {"hash": commit}})

    assert status == 1
    assert f"- node: git submodule update of {commit} of {snapshot_setup.git.url('node')} failed\n" in text
    assert snapshot_setup.is_untouched


def test_no_git_is_left(snapshot_setup: SnapshotSetup) -> None:
    """The restored folder has no .git and is readable by all users; with --keep-git the .git folders are kept."""
    node = snapshot_setup.node("node", {})

    assert snapshot_setup.restore(git_custom_nodes=node)[0] == 0
    assert not list(snapshot_setup.to.rglob(".git"))
    assert stat.S_IMODE(snapshot_setup.to.stat().st_mode) & 0o555 == 0o555

    snapshot_setup.to = snapshot_setup.folder / "kept"
    assert snapshot_setup.restore("--keep-git", git_custom_nodes=node)[0] == 0
    assert (snapshot_setup.to / ".git").is_dir()
    assert (snapshot_setup.nodes / "node" / ".git").is_dir()


# Parts that cannot be restored


def test_missing_repositories_and_commits_are_named(snapshot_setup: SnapshotSetup) -> None:
    """The error names a repository that does not exist, and a commit that does not; nothing is retried or restored."""
    snapshot_setup.node("there", {})
    nodes = {
        snapshot_setup.git.url("gone"): {"hash": MISSING_COMMIT, "disabled": False},
        snapshot_setup.git.url("there"): {"hash": MISSING_COMMIT, "disabled": False},
    }

    status, text = snapshot_setup.restore(git_custom_nodes=nodes)

    assert status == 1
    assert f"- gone: git fetch of {MISSING_COMMIT} of {snapshot_setup.git.url('gone')} failed\n" in text
    assert "The repository does not exist. Correct its URL" in text
    assert f"- there: git fetch of {MISSING_COMMIT} of {snapshot_setup.git.url('there')} failed\n" in text
    assert "It has no commit of that hash, or its server serves no commits by hash. Correct the hash or the URL" in text
    assert "Retrying" not in text
    assert snapshot_setup.is_untouched


def test_missing_comfyui(snapshot_setup: SnapshotSetup) -> None:
    """If ComfyUI's repository does not exist, that is the error, and no node is fetched."""
    status, text = snapshot_setup.restore(
        "--comfyui-repo", snapshot_setup.git.url("gone"), git_custom_nodes=snapshot_setup.node("node", {})
    )

    assert status == 1
    assert "- ComfyUI: git fetch of " in text
    assert "The repository does not exist" in text
    assert "- node: " not in text
    assert snapshot_setup.git.connections == 1


def test_hash_of_a_tag(snapshot_setup: SnapshotSetup) -> None:
    """The hash of a tag object is rejected, because the checked-out commit has another hash."""
    tag = snapshot_setup.git.tag("ComfyUI")

    status, text = snapshot_setup.restore("--comfyui-ref", tag)

    assert status == 1
    assert f"checking out {tag} of {snapshot_setup.git.url('ComfyUI')} resulted in {snapshot_setup.commits[1]}" in text


def test_submodule_of_this_machine(snapshot_setup: SnapshotSetup) -> None:
    """A node's submodule must not be a folder of the machine that runs the restore."""
    snapshot_setup.git.put("library", {"code.py": "old"})
    local = f"file://{snapshot_setup.git.folder}/library"
    [commit] = snapshot_setup.git.put("node", {"__init__.py": ""}, submodule="library", submodule_url=local)

    status, text = snapshot_setup.restore(git_custom_nodes={snapshot_setup.git.url("node"): {"hash": commit}})

    assert status == 1
    assert "transport 'file' not allowed" in text


def test_comfyui_of_this_machine(snapshot_setup: SnapshotSetup) -> None:
    """--comfyui-repo may be a folder of the machine that runs the restore."""
    assert snapshot_setup.restore("--comfyui-repo", f"file://{snapshot_setup.git.folder}/ComfyUI")[0] == 0


def test_broken_connections_are_retried(snapshot_setup: SnapshotSetup) -> None:
    """After two broken connections the third attempt succeeds."""
    snapshot_setup.git.drop(2)

    fetch_commit("ComfyUI", first_commit(snapshot_setup), snapshot_setup.to, Git(snapshot_setup.env, pause_s=0.01))

    assert (snapshot_setup.to / "main.py").is_file()
    assert snapshot_setup.git.connections == 3


def test_the_third_broken_connection_is_an_error(snapshot_setup: SnapshotSetup) -> None:
    """A third broken connection is an error, and there is no fourth attempt."""
    snapshot_setup.git.drop(9)

    with pytest.raises(RestoreError, match=r"(?s)ComfyUI: git fetch of .*Given up after 3 attempts"):
        fetch_commit("ComfyUI", first_commit(snapshot_setup), snapshot_setup.to, Git(snapshot_setup.env, pause_s=0.01))
    assert snapshot_setup.git.connections == 3


def test_server_that_never_responds(snapshot_setup: SnapshotSetup) -> None:
    """A server that accepts connections and sends nothing is an error after three attempts."""
    snapshot_setup.git.hang()

    with pytest.raises(RestoreError, match=r"(?s)timed out.*Given up after 3 attempts"):
        fetch_commit(
            "ComfyUI",
            first_commit(snapshot_setup),
            snapshot_setup.to,
            Git(snapshot_setup.env, timeout_s=0.5, pause_s=0.01),
        )


def test_a_login_is_never_prompted_for(snapshot_setup: SnapshotSetup) -> None:
    """If the server requires a login, the restore ends with an error, which does not show the login in the URL."""
    address = snapshot_setup.web.url.replace("://", "://user:hunter2@") + "/private"
    snapshot_setup.web.respond("/private/info/refs", *[UNAUTHORIZED] * 9)

    status, text = snapshot_setup.restore("--comfyui-repo", address)

    assert status == 1
    assert "It does not exist, or is private" in text
    assert "***@127.0.0.1" in text
    assert "hunter2" not in text


# The target folder


def test_the_folder_must_be_empty(snapshot_setup: SnapshotSetup) -> None:
    """An empty folder is accepted; a non-empty one is an error before anything is fetched."""
    snapshot_setup.to.mkdir(parents=True)
    assert snapshot_setup.restore()[0] == 0

    connections = snapshot_setup.git.connections
    status, text = snapshot_setup.restore()
    assert (status, text) == (3, f"--to: {snapshot_setup.to} already exists. Remove it, or pass a new folder\n")
    assert snapshot_setup.git.connections == connections


def test_node_that_comfyui_ships(snapshot_setup: SnapshotSetup) -> None:
    """A node does not replace a folder that ComfyUI ships."""
    commits = snapshot_setup.git.put("Other", {**MAIN, "custom_nodes/node/__init__.py": ""})

    status, text = snapshot_setup.restore(
        "--comfyui-repo",
        snapshot_setup.git.url("Other"),
        comfyui=commits[0],
        git_custom_nodes=snapshot_setup.node("node", {}),
    )

    assert status == 1
    assert "- node: ComfyUI ships a node of that name" in text


def test_folder_that_cannot_be_created(snapshot_setup: SnapshotSetup) -> None:
    """If a file is where the target's parent folder should be, the error names its path."""
    snapshot_setup.to.parent.write_text("")

    status, text = snapshot_setup.restore()

    assert status == 1
    assert str(snapshot_setup.to.parent) in text


# The command line


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_the_restore(snapshot_setup: SnapshotSetup, signal_number: signal.Signals) -> None:
    """SIGINT and SIGTERM end the restore with status 130, and nothing is restored."""
    snapshot_setup.git.hang()
    arguments = [
        "--snapshot",
        str(snapshot_setup.snapshot()),
        "--to",
        str(snapshot_setup.to),
        "--comfyui-repo",
        snapshot_setup.git.url("ComfyUI"),
    ]
    process = subprocess.Popen(
        [ROOT / "scripts" / "restore_snapshot", *arguments],
        env={**os.environ, **snapshot_setup.env},
        cwd=snapshot_setup.folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert until(lambda: snapshot_setup.git.connections)

    process.send_signal(signal_number)
    output = process.communicate(timeout=60)[1]

    assert (process.returncode, output) == (130, f"Interrupted. {snapshot_setup.to} was not created\n")
    assert snapshot_setup.is_untouched


def test_missing_git_is_an_error(snapshot_setup: SnapshotSetup) -> None:
    """If git is not installed, the error has the command that installs it."""
    snapshot_setup.env["PATH"] = str(snapshot_setup.folder)

    status, text = snapshot_setup.restore()

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
def test_invalid_options(snapshot_setup: SnapshotSetup, arguments: tuple[str, ...], fault: str) -> None:
    """An invalid option ends with status 3 and the reason, before anything is fetched."""
    status, text = snapshot_setup.restore(*arguments)

    assert (status, fault in text) == (3, True), text
    assert "hunter2" not in text
    assert snapshot_setup.git.connections == 0


def test_snapshot_without_comfyui(snapshot_setup: SnapshotSetup) -> None:
    """A snapshot without ComfyUI needs --comfyui-ref."""
    status, text = snapshot_setup.restore(comfyui=None)

    assert status == 3
    assert text.endswith("comfyui has no commit. Save a complete snapshot, or pass --comfyui-ref\n")


def test_disk_that_cannot_be_written(snapshot_setup: SnapshotSetup) -> None:
    """If a node's folder cannot be created, the error names the node, and nothing is restored."""
    commits = snapshot_setup.git.put("Other", {"main.py": "", "custom_nodes": "a file"})

    status, text = snapshot_setup.restore(
        "--comfyui-repo",
        snapshot_setup.git.url("Other"),
        comfyui=commits[0],
        git_custom_nodes=snapshot_setup.node("node", {}),
    )

    assert status == 1
    assert "- node: its files cannot be read or written (Not a directory: " in text
    assert snapshot_setup.is_untouched
