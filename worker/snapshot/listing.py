"""Parses snapshot.json: the commits, archives and packages of a ComfyUI. Reads only the file.

The format of ComfyUI-Manager 4.3 (older versions lack some keys):

    comfyui            the commit, or null if only the nodes were saved
    git_custom_nodes   {url: {"hash": commit, "disabled": bool}}
    cnr_custom_nodes   {id: version}, nodes of registry.comfy.org
    file_custom_nodes  [{"filename", "disabled"}], files in custom_nodes/, one of which ComfyUI itself ships
    pips               output of `pip freeze`: {"name==version": ""}, {"name": url}; null if comfyui is

`cnr_sha256`, {id: sha256 of its archive}, is our addition, because the format has no hash for archives. The Manager
ignores it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from comfy_core.errors import ComfyClientError, ConfigError

COMMIT = (
    "the 40 hexadecimal digits of a commit in lower case (git rev-parse HEAD shows them): no short hash, branch or tag"
)

_KEYS = ("comfyui", "git_custom_nodes", "cnr_custom_nodes", "cnr_sha256", "file_custom_nodes", "pips")
_ADDRESS = r"((https?|git|ssh|file)://|[\w.-]+@[\w.-]+:)[!-~]+"
_FOLDER = r"\w[\w.+-]*"
_MANAGER = "comfyui-manager"
_OF_THE_IMAGE = r"(torch|torchvision|torchaudio|nvidia-.*)"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Repository:
    """A commit of a git repository. Its URL may contain a password: show it only through redacted()."""

    url: str
    commit: str

    def __post_init__(self) -> None:
        if not re.fullmatch(_ADDRESS, self.url):
            raise ValueError("its URL must begin with https://, http://, git://, ssh://, file:// or user@host:")
        if not re.fullmatch(r"[0-9a-f]{40}", self.commit):
            raise ValueError(f"its hash must be {COMMIT}, not {self.commit!r}")

    @property
    def folder(self) -> str:
        """Name of its folder in custom_nodes/, as chosen by the Manager."""
        return re.split(r"[/:]", self.url.rstrip("/"))[-1].removesuffix(".git")


@dataclass(frozen=True)
class RegistryNode:
    """A node of registry.comfy.org.

    Attributes:
        id: also the name of its folder in custom_nodes/.
        version: one version, not a range.
        sha256: hash of its archive; if empty, any archive that the registry returns for the version is accepted.
    """

    id: str
    version: str
    sha256: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(_FOLDER, self.id):
            raise ValueError("its id must be a name of letters, digits, dots and dashes")
        if not re.fullmatch(r"[0-9]\w*(\.\w+)*([+-][\w.+-]+)?", self.version):
            raise ValueError(f"its version must be one such as 1.2.3, not {self.version!r}")
        if not re.fullmatch(r"([0-9a-f]{64})?", self.sha256):
            raise ValueError(f"its sha256 must be 64 hexadecimal digits in lower case, not {self.sha256!r}")


@dataclass(frozen=True)
class Package:
    """A Python package of `pips`: a version, or a URL."""

    name: str
    version: str = ""
    url: str = ""

    @property
    def requirement(self) -> str:
        """The requirement to pass to pip."""
        return f"{self.name} @ {self.url}" if self.url else f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Snapshot:
    """The content of the file.

    Attributes:
        comfyui: the commit, or empty if the file has none.
        repositories: nodes that are git repositories.
        registry_nodes: nodes of the registry.
        files: names of files that must exist in custom_nodes/.
        packages: packages to install in addition to the nodes' requirements.
        notices: one sentence for each entry that is ignored.
    """

    comfyui: str
    repositories: tuple[Repository, ...]
    registry_nodes: tuple[RegistryNode, ...]
    files: tuple[str, ...]
    packages: tuple[Package, ...]
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
        if file.suffix in {".yaml", ".yml"} or re.search(r"^custom_nodes:", text, re.MULTILINE):
            raise ConfigError(_is_yaml(file)) from error
        raise ConfigError(f"The snapshot {file} is not JSON: {error}") from error
    if isinstance(content, dict) and "custom_nodes" in content:
        raise ConfigError(_is_yaml(file))
    snapshot = reader.snapshot(content)
    if reader.faults:
        raise ConfigError("; ".join(f"{file}: {fault}" for fault in reader.faults))
    return snapshot


def _is_yaml(file: Path) -> str:
    return (
        f"The snapshot {file} is YAML (`custom_nodes:`), which is not supported. Save it as JSON: in the Manager's "
        "snapshot menu, or with `cm-cli save-snapshot --output snapshot.json`"
    )


class _SnapshotReader:
    """Reads a snapshot's JSON and collects its faults."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._notices: list[str] = []

    def json_object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object; a duplicate key is a fault, because json would silently drop the first value."""
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                self.faults.append(f"{redacted(key)} is a duplicate key")
            seen.add(key)
        return dict(pairs)

    def snapshot(self, content: object) -> Snapshot:
        """Return the valid parts of the snapshot."""
        if not isinstance(content, dict):
            self.faults.append("must be a JSON object")
            content = {}
        for key in content.keys() - set(_KEYS):
            self._notices.append(f"{key}: unknown key, ignored")
        snapshot = Snapshot(
            comfyui=self._comfyui(content.get("comfyui")),
            repositories=tuple(self._repositories(content.get("git_custom_nodes"))),
            registry_nodes=tuple(self._registry_nodes(content.get("cnr_custom_nodes"), content.get("cnr_sha256"))),
            files=tuple(self._files(content.get("file_custom_nodes"))),
            packages=tuple(self._packages(content.get("pips"))),
            notices=(),
        )
        self._refuse_shared_folders(snapshot)
        return Snapshot(**{**vars(snapshot), "notices": tuple(self._notices)})

    def _comfyui(self, commit: object) -> str:
        if commit is None:
            return ""
        if isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{40}", commit):
            return commit
        self.faults.append(f"comfyui: must be {COMMIT}, not {commit!r}")
        return ""

    def _repositories(self, found: object) -> Iterator[Repository]:
        for url, node in self._entries("git_custom_nodes", found):
            place = f"git_custom_nodes[{redacted(url)}]"
            match node:
                case {"disabled": True}:
                    self._notices.append(f"{place}: disabled, not installed")
                case _ if _MANAGER in url.lower():
                    self._notices.append(f"{place}: not installed, as in the Manager's own restore")
                case {"hash": str(commit), "disabled": False} | {"hash": str(commit)} if _is_plain(node):
                    yield from self._with_folder(place, self._valid(place, Repository, url, commit))
                case _:
                    self.faults.append(f'{place}: must be {{"hash": commit, "disabled": true or false}}, not {node!r}')

    def _with_folder(self, place: str, repositories: Iterator[Repository]) -> Iterator[Repository]:
        for repository in repositories:
            if re.fullmatch(_FOLDER, repository.folder):
                yield repository
            else:
                self.faults.append(f"{place}: its URL must end in a folder name, not in {repository.folder!r}")

    def _registry_nodes(self, found: object, hashes: object) -> Iterator[RegistryNode]:
        pinned = dict(self._entries("cnr_sha256", hashes))
        for name, version in self._entries("cnr_custom_nodes", found):
            sha256, place = pinned.pop(name, ""), f"cnr_custom_nodes[{name}]"
            if _MANAGER in name.lower():
                self._notices.append(f"{place}: not installed, as in the Manager's own restore")
            elif isinstance(version, str) and isinstance(sha256, str):
                yield from self._valid(place, RegistryNode, name, version, sha256)
            else:
                self.faults.append(f"{place}: its version, and its hash in cnr_sha256, must be strings")
        self.faults.extend(f"cnr_sha256[{name}]: no node of that id is in cnr_custom_nodes" for name in pinned)

    def _files(self, found: object) -> Iterator[str]:
        if not isinstance(found, list | None):
            self.faults.append("file_custom_nodes: must be a list")
        for number, node in enumerate(found if isinstance(found, list) else []):
            match node:
                case {"disabled": True}:
                    pass
                case {"filename": str(name)} if re.fullmatch(_FOLDER, name):
                    yield name
                case _:
                    self.faults.append(
                        f'file_custom_nodes[{number}]: must be {{"filename": name, "disabled": true or false}}'
                    )

    def _packages(self, found: object) -> Iterator[Package]:
        passed_over: list[str] = []
        for line, url in self._entries("pips", found):
            name, _, version = line.partition("==")
            place = f"pips[{redacted(line)}]"
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or not isinstance(url, str):
                self.faults.append(f"{place}: must be name==version with an empty string or a URL; remove it")
            elif re.fullmatch(_OF_THE_IMAGE, name.lower()):
                passed_over.append(name)
            elif url.startswith("file:"):
                self.faults.append(
                    f"{place}: a local file of the machine that saved the snapshot ({url}). Remove it, or use a URL or "
                    "a version"
                )
            elif url and not re.fullmatch(r"((git\+)?https?|git\+ssh)://[!-~]+", url):
                self.faults.append(f"{place}: must have a URL that begins with https:// or git+https://")
            elif not url and not re.fullmatch(r"[0-9][\w.!+-]*", version):
                self.faults.append(f"{place}: must have a version (name==1.2.3) or a URL")
            else:
                yield Package(name, version, url)
        if passed_over:
            self._notices.append(f"pips: ignored {', '.join(passed_over)}, which the image provides")

    def _entries(self, key: str, found: object) -> Iterator[tuple[str, Any]]:
        if isinstance(found, dict):
            yield from found.items()
        elif found is not None:
            self.faults.append(f"{key}: must be a JSON object")

    def _valid(self, place: str, make: Callable[..., _T], *values: str) -> Iterator[_T]:
        try:
            yield make(*values)
        except ValueError as error:
            self.faults.append(f"{place}: {error}")

    def _refuse_shared_folders(self, snapshot: Snapshot) -> None:
        first: dict[str, str] = {}
        named = [(node.folder, redacted(node.url)) for node in snapshot.repositories]
        named += [(node.id, f"{node.id} of the registry") for node in snapshot.registry_nodes]
        for folder, name in named:
            key = folder.casefold()  # some disks are case-insensitive
            if key in first:
                self.faults.append(f"{first[key]} and {name} both use custom_nodes/{folder}. Remove one of them")
            first.setdefault(key, name)


def _is_plain(node: dict[str, object]) -> bool:
    return isinstance(node.get("disabled", False), bool)
