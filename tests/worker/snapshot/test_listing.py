"""Parsing snapshot.json: a file of ComfyUI-Manager, every fault of an invalid file, and hidden logins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from comfy_core.errors import ConfigError
from worker.snapshot.listing import Repository, default_snapshot, read_snapshot, redacted

pytestmark = pytest.mark.slow
COMFYUI_COMMIT, NODE_COMMIT = "1" * 40, "2" * 40

SAVED = {
    "comfyui": COMFYUI_COMMIT,
    "git_custom_nodes": {
        "https://github.com/org/pack.git": {"hash": NODE_COMMIT, "disabled": False},
        "git@github.com:org/other": {"hash": NODE_COMMIT},
        "https://github.com/org/off": {"hash": "main", "disabled": True},
        "https://github.com/ltdrdata/ComfyUI-Manager": {"hash": NODE_COMMIT, "disabled": False},
    },
    "cnr_custom_nodes": {"comfyui-manager": "3.1.0"},
    "file_custom_nodes": [
        {"filename": "websocket_image_save.py", "disabled": False},
        {"filename": "off.py.disabled", "disabled": True},
    ],
    "pips": {},
    "made_by": "a newer Manager",
}
"""A snapshot as ComfyUI-Manager saves it, with all its keys and an unknown one. `pips` was emptied, as we require."""


def write_snapshot(folder: Path, content: object) -> Path:
    """Write a snapshot.json with this content, as JSON unless it is text; return its path."""
    file = folder / "snapshot.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_the_shipped_snapshot_is_one_comfyui_and_nothing_else() -> None:
    """The shipped snapshot has a complete commit of ComfyUI, no nodes, and nothing that is ignored."""
    snapshot = read_snapshot(default_snapshot())

    assert len(snapshot.comfyui) == 40
    assert (snapshot.nodes, snapshot.notices) == ((), ())


def test_a_full_snapshot_of_the_manager(tmp_path: Path) -> None:
    """ComfyUI's commit and the enabled nodes are parsed; each entry that is not installed has a notice."""
    snapshot = read_snapshot(write_snapshot(tmp_path, SAVED))

    assert snapshot.comfyui == COMFYUI_COMMIT
    assert snapshot.nodes == (
        Repository("https://github.com/org/pack.git", NODE_COMMIT),
        Repository("git@github.com:org/other", NODE_COMMIT),
    )
    assert [each.folder for each in snapshot.nodes] == ["pack", "other"]
    assert snapshot.notices == (
        "made_by: unknown key, ignored",
        "git_custom_nodes[https://github.com/org/off]: disabled, not installed",
        "git_custom_nodes[https://github.com/ltdrdata/ComfyUI-Manager]: not installed, as in the Manager's own restore",
        "cnr_custom_nodes[comfyui-manager]: not installed, as in the Manager's own restore",
    )


def test_an_empty_snapshot(tmp_path: Path) -> None:
    """`comfyui` and `pips` may be null, and other keys may be missing."""
    snapshot = read_snapshot(write_snapshot(tmp_path, {"comfyui": None, "pips": None}))

    assert (snapshot.comfyui, snapshot.nodes, snapshot.notices) == ("", (), ())


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    """One error lists all 17 faults, each with its location; passwords are not shown."""
    file = write_snapshot(
        tmp_path,
        {
            "comfyui": "v1.2.3",
            "git_custom_nodes": {
                "https://host/short": {"hash": "1111111", "disabled": False},
                "https://host/upper": {"hash": "A" * 40, "disabled": False},
                "https://host/none": {"hash": None, "disabled": False},
                "https://host/odd": {"hash": COMFYUI_COMMIT, "disabled": "no"},
                "https://u:secret@host/pack": {"hash": "main"},
                "/home/me/node": {"hash": COMFYUI_COMMIT},
                "--upload-pack=x": {"hash": COMFYUI_COMMIT},
                "ext::sh -c x": {"hash": COMFYUI_COMMIT},
                "https://host/..": {"hash": COMFYUI_COMMIT},
                "https://a/same": {"hash": COMFYUI_COMMIT},
                "https://b/Same.git": {"hash": COMFYUI_COMMIT},
                "https://u:secret@a/same": {"hash": COMFYUI_COMMIT},
            },
            "cnr_custom_nodes": {"some-node": "1.0"},
            "file_custom_nodes": [{"filename": "own.py", "disabled": False}, "x"],
            "pips": {"numpy==2.0": ""},
            "hg_custom_nodes": {"x": "1"},
        },
    )

    with pytest.raises(ConfigError) as info:
        read_snapshot(file)

    lines = str(info.value).split(f"{file}: ")[1:]
    for place, reason in (
        ("comfyui", "not 'v1.2.3'"),
        ("git_custom_nodes[https://host/short]", "no short hash, branch or tag, not '1111111'"),
        ("git_custom_nodes[https://host/upper]", "in lower case"),
        ("git_custom_nodes[https://host/none]", 'must be {"hash": commit, "disabled": true or false}'),
        ("git_custom_nodes[https://host/odd]", 'must be {"hash": commit, "disabled": true or false}'),
        ("git_custom_nodes[https://***@host/pack]", "not 'main'"),
        ("git_custom_nodes[/home/me/node]", "its URL must begin with https://"),
        ("git_custom_nodes[--upload-pack=x]", "its URL must begin with https://"),
        ("git_custom_nodes[ext::sh -c x]", "its URL must begin with https://"),
        ("git_custom_nodes[https://host/..]", "must end in a folder name, not in '..'"),
        ("https://a/same and https://b/Same.git", "both use custom_nodes/Same"),
        ("https://a/same and https://***@a/same", "both use custom_nodes/same"),
        ("cnr_custom_nodes[some-node]", "List the node under git_custom_nodes, with its repository's URL and a commit"),
        ("file_custom_nodes: {'filename': 'own.py'", "Put the file into a git repository"),
        ("file_custom_nodes: 'x'", "Put the file into a git repository"),
        ("pips", "Set it to {}. To pin a package, add it to a file for --constraints"),
        ("hg_custom_nodes", "not supported. List the nodes under git_custom_nodes"),
    ):
        assert [fault for fault in lines if fault.startswith(place) and reason in fault], (place, lines)
    assert len(lines) == 17
    assert "secret" not in str(info.value)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ([], "must be a JSON object"),
        ({"git_custom_nodes": ["x"]}, "git_custom_nodes: must be a JSON object"),
        ({"cnr_custom_nodes": 1}, "cnr_custom_nodes: must be a JSON object"),
        ({"file_custom_nodes": {"x": 1}}, "file_custom_nodes: must be a JSON list"),
        ({"pips": ["numpy"]}, "pips: must be a JSON object"),
        ('{"pips": {"a==1": "", "a==1": ""}}', "a==1 is a duplicate key"),
        (
            "custom_nodes:\n  comfyui: x\n",
            "is not JSON: .* If it is YAML, save it again, in the Manager's snapshot menu",
        ),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_an_invalid_structure_is_an_error(tmp_path: Path, content: object, fault: str) -> None:
    """JSON of another structure, and text that is not JSON, are errors that say what is wrong."""
    with pytest.raises(ConfigError, match=fault):
        read_snapshot(write_snapshot(tmp_path, content))


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """A file that does not exist, or is not UTF-8, is an error with the reason."""
    with pytest.raises(ConfigError, match=r"No such file or directory. Pass another one with --snapshot"):
        read_snapshot(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        read_snapshot(tmp_path / "bytes.json")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pa@ss@host/x?token=t#f", "https://***@host/x?***#f"),
        ("fatal: 'git+ssh://me@host/x' and https://host/y", "fatal: 'git+ssh://***@host/x' and https://host/y"),
        ("git@github.com:org/x", "git@github.com:org/x"),
    ],
)
def test_logins_are_not_shown(text: str, shown: str) -> None:
    """Logins and queries in URLs are replaced by asterisks; `git@` of an SSH address is not."""
    assert redacted(text) == shown
