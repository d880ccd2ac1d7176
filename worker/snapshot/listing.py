"""Parses snapshot.json: the commits of ComfyUI and its custom nodes. Reads no other file.

The format of ComfyUI-Manager 4.3 (older versions lack some keys):

    comfyui            the commit, or null if only the nodes were saved
    comfyui_version    the version of that commit; ComfyUI-Manager does not write this key
    git_custom_nodes   {url: {"hash": commit, "disabled": bool}}
    cnr_custom_nodes   {id: version}, nodes of registry.comfy.org
    file_custom_nodes  [{"filename", "disabled"}], files in custom_nodes/, one of which ComfyUI itself ships
    pips               output of `pip freeze`: {"name==version": ""}, {"name": url}; null if `comfyui` is null

Only commits are restored. Entries of the last three keys that would have to be installed are faults, because nothing in
the file pins their content.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_core.errors import ComfyClientError, ConfigError

COMMIT = (
    "the 40 hexadecimal digits of a commit in lower case (git rev-parse HEAD shows them): no short hash, branch or tag"
)

_PARTS = {"git_custom_nodes": dict, "cnr_custom_nodes": dict, "file_custom_nodes": list, "pips": dict}
_COMMIT = r"[0-9a-f]{40}"
_URL = r"((https?|git|ssh|file)://|[\w.-]+@[\w.-]+:)[!-~]+"
_MANAGER = "comfyui-manager"


@dataclass(frozen=True)
class Repository:
    """A commit of a git repository. Its URL may contain a password: show it only through redacted()."""

    url: str
    commit: str

    def __post_init__(self) -> None:
        if not re.fullmatch(_URL, self.url):
            raise ValueError("its URL must begin with https://, http://, git://, ssh://, file:// or user@host:")
        if not re.fullmatch(_COMMIT, self.commit):
            raise ValueError(f"its hash must be {COMMIT}, not {self.commit!r}")

    @property
    def folder(self) -> str:
        """Name of the repository's folder in custom_nodes/, derived from the URL as ComfyUI-Manager does."""
        return re.split(r"[/:]", self.url.rstrip("/"))[-1].removesuffix(".git")


@dataclass(frozen=True)
class Snapshot:
    """The content of snapshot.json.

    Attributes:
        comfyui: the commit, or empty if the file has none.
        comfyui_version: the version of that commit, or empty if the file has none.
        nodes: repositories of the custom nodes to install.
        notices: one sentence for each entry that is ignored.
    """

    comfyui: str
    comfyui_version: str
    nodes: tuple[Repository, ...]
    notices: tuple[str, ...]


class RestoreError(ComfyClientError):
    """A part of the snapshot could not be restored. The message names the part, the problem and the remedy."""

    def __init__(self, part: str, problem: str) -> None:
        super().__init__(f"{part}: {problem}")


class SnapshotError(ComfyClientError):
    """The snapshot was not restored. `errors` has one error for each failed part."""

    def __init__(self, errors: tuple[RestoreError, ...]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = errors


def redacted(text: str) -> str:
    """Return `text` with users, passwords and queries of URLs replaced by stars."""
    return re.sub(r"(\w://[^\s?#'\"]*\?)[^\s#'\"]+", r"\1***", re.sub(r"(\w://)[^\s/]+@", r"\1***@", text))


def default_snapshot() -> Path:
    """Return the snapshot that ships with the worker."""
    return Path(__file__).parents[2] / "snapshot.json"


def read_snapshot(file: Path) -> Snapshot:
    """Return the content of a snapshot. Raises ConfigError with every fault and its location."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"The snapshot {file} cannot be read: {reason}. Pass another one with --snapshot") from error
    reader = _SnapshotReader()
    try:
        content = json.loads(text, object_pairs_hook=reader.json_object)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"The snapshot {file} is not JSON: {error}. If it is YAML, save it again, in the Manager's snapshot menu "
            "or with `cm-cli save-snapshot --output snapshot.json`"
        ) from error
    snapshot = reader.snapshot(content)
    if reader.faults:
        raise ConfigError("; ".join(f"{file}: {fault}" for fault in reader.faults))
    return snapshot


class _SnapshotReader:
    """Reads a snapshot's JSON and collects its faults."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._notices: list[str] = []

    def json_object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object; a duplicate key is a fault, because json would silently drop the first value."""
        counts = Counter(key for key, _ in pairs)
        self.faults += [f"{redacted(key)} is a duplicate key" for key, count in counts.items() if count > 1]
        return dict(pairs)

    def snapshot(self, content: object) -> Snapshot:
        """Return the valid parts of the snapshot."""
        if not isinstance(content, dict):
            self.faults.append("must be a JSON object")
            content = {}
        for key in content.keys() - {"comfyui", "comfyui_version", *_PARTS}:
            if "node" in key:
                self.faults.append(f"{key}: not supported. List the nodes under git_custom_nodes")
            else:
                self._notices.append(f"{key}: unknown key, ignored")
        comfyui = content.get("comfyui") or ""
        if comfyui and not re.fullmatch(_COMMIT, str(comfyui)):
            self.faults.append(f"comfyui: must be {COMMIT}, not {comfyui!r}")
        parts = {key: content.get(key) or kind() for key, kind in _PARTS.items()}
        for key, kind in _PARTS.items():
            if not isinstance(parts[key], kind):
                self.faults.append(f"{key}: must be a JSON {'object' if kind is dict else 'list'}")
                parts[key] = kind()
        nodes = tuple(self._repositories(parts["git_custom_nodes"]))
        self._reject_unpinned(parts)
        return Snapshot(comfyui, str(content.get("comfyui_version") or ""), nodes, tuple(self._notices))

    def _repositories(self, found: dict[str, Any]) -> Iterator[Repository]:
        urls: dict[str, str] = {}  # by folder in lower case, because some disks are case-insensitive
        for url, node in found.items():
            shown = redacted(url)
            entry = f"git_custom_nodes[{shown}]"
            match node:
                case {"disabled": True}:
                    self._notices.append(f"{entry}: disabled, not installed")
                case _ if _MANAGER in url.lower():
                    self._notices.append(f"{entry}: not installed, as in the Manager's own restore")
                case {"hash": str(commit), **others} if isinstance(others.get("disabled", False), bool):
                    try:
                        repository = Repository(url, commit)
                    except ValueError as error:
                        self.faults.append(f"{entry}: {error}")
                        continue
                    folder = repository.folder
                    if not re.fullmatch(r"\w[\w.+-]*", folder):
                        self.faults.append(f"{entry}: its URL must end in a folder name, not in {folder!r}")
                    elif (first := urls.setdefault(folder.casefold(), url)) != url:
                        self.faults.append(
                            f"{redacted(first)} and {shown} both use custom_nodes/{folder}. Remove one of them"
                        )
                    yield repository
                case _:
                    self.faults.append(f'{entry}: must be {{"hash": commit, "disabled": true or false}}, not {node!r}')

    def _reject_unpinned(self, parts: Mapping[str, Any]) -> None:
        for name in parts["cnr_custom_nodes"]:
            if _MANAGER in name.lower():
                self._notices.append(f"cnr_custom_nodes[{name}]: not installed, as in the Manager's own restore")
            else:
                self.faults.append(
                    f"cnr_custom_nodes[{name}]: not supported, because the registry publishes no hash of a version. "
                    "List the node under git_custom_nodes, with its repository's URL and a commit, or remove it"
                )
        for node in parts["file_custom_nodes"]:
            match node:
                case {"disabled": True} | {"filename": "websocket_image_save.py"}:  # ComfyUI ships this file
                    pass
                case _:
                    self.faults.append(
                        f"file_custom_nodes: {node!r} is not supported, because the snapshot has only the file's name. "
                        "Put the file into a git repository and list that under git_custom_nodes, or remove it"
                    )
        if parts["pips"]:
            self.faults.append(
                "pips: not supported, because the nodes' own requirements.txt are installed. Set it to {}. To pin a "
                "package, add it to a file for --constraints"
            )
