"""snapshot.json as values: which commits, archives and packages a ComfyUI consists of. It only reads the file.

What ComfyUI-Manager writes (4.3; older ones lack some keys):

    comfyui            the commit, or null where it saved the nodes alone
    git_custom_nodes   {address: {"hash": commit, "disabled": bool}}
    cnr_custom_nodes   {id: version}, nodes of registry.comfy.org
    file_custom_nodes  [{"filename", "disabled"}], files in custom_nodes/, one of which ComfyUI itself brings
    pips               what `pip freeze` said: {"name==version": ""}, {"name": address}; null as with comfyui

`cnr_sha256`, {id: sha256 of its archive}, is ours: the format has no hash for those. The Manager passes it over.
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
    """A commit of a git repository. Its address may hold a password: show it with redacted()."""

    url: str
    commit: str

    def __post_init__(self) -> None:
        if not re.fullmatch(_ADDRESS, self.url):
            raise ValueError("its address must begin with https://, http://, git://, ssh://, file:// or user@host:")
        if not re.fullmatch(r"[0-9a-f]{40}", self.commit):
            raise ValueError(f"its hash must be {COMMIT}, not {self.commit!r}")

    @property
    def folder(self) -> str:
        """The name of its folder in custom_nodes/, as the Manager chooses it."""
        return re.split(r"[/:]", self.url.rstrip("/"))[-1].removesuffix(".git")


@dataclass(frozen=True)
class RegistryNode:
    """A node of registry.comfy.org.

    Attributes:
        id: which is also its folder in custom_nodes/.
        version: one and no range.
        sha256: of its archive, or empty: then any archive is taken that the registry gives for that version.
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
    """A Python package of `pips`: of one version, or from an address."""

    name: str
    version: str = ""
    url: str = ""

    @property
    def requirement(self) -> str:
        """What pip is given."""
        return f"{self.name} @ {self.url}" if self.url else f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Snapshot:
    """What the file asks for.

    Attributes:
        comfyui: the commit, or empty where the file has none.
        repositories: the nodes that are git repositories.
        registry_nodes: the nodes of the registry.
        files: names of files that have to be in custom_nodes/.
        packages: what is to be installed beside the nodes' requirements.
        notices: what of the file is passed over, and why; a sentence each.
    """

    comfyui: str
    repositories: tuple[Repository, ...]
    registry_nodes: tuple[RegistryNode, ...]
    files: tuple[str, ...]
    packages: tuple[Package, ...]
    notices: tuple[str, ...]


class RestoreError(ComfyClientError):
    """A part of the snapshot cannot be had. The message names it, what happened, and the remedy."""

    def __init__(self, part: str, problem: str) -> None:
        super().__init__(f"{part}: {problem}")


class SnapshotError(ComfyClientError):
    """The snapshot was not restored. `errors` has one for each part that failed."""

    def __init__(self, errors: tuple[RestoreError, ...]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = errors


def redacted(text: str) -> str:
    """Return `text` with stars for the users, passwords and queries of its addresses."""
    return re.sub(r"(\w://[^\s?#'\"]*\?)[^\s#'\"]+", r"\1***", re.sub(r"(\w://)[^\s/]+@", r"\1***@", text))


def default_snapshot() -> Path:
    """Return the snapshot that ships with the worker."""
    return Path(__file__).parents[2] / "snapshot.json"


def read_snapshot(file: Path) -> Snapshot:
    """Return what a snapshot asks for. Raises ConfigError with every fault of it, each with its place."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"The snapshot {file} was not read: {reason}. Name another one with --snapshot") from error
    reader = _SnapshotReader()
    try:
        content = json.loads(text, object_pairs_hook=reader.json_object)
    except (ValueError, RecursionError) as error:
        if file.suffix in {".yaml", ".yml"} or re.search(r"^custom_nodes:", text, re.MULTILINE):
            raise ConfigError(_is_yaml(file)) from error
        raise ConfigError(f"The snapshot {file} is no JSON: {error}") from error
    if isinstance(content, dict) and "custom_nodes" in content:
        raise ConfigError(_is_yaml(file))
    snapshot = reader.snapshot(content)
    if reader.faults:
        raise ConfigError("; ".join(f"{file}: {fault}" for fault in reader.faults))
    return snapshot


def _is_yaml(file: Path) -> str:
    return (
        f"The snapshot {file} is one of YAML (`custom_nodes:`), which is not read. Save it as JSON: in the Manager's "
        "snapshot menu, or with `cm-cli save-snapshot --output snapshot.json`"
    )


class _SnapshotReader:
    """Reads a snapshot's JSON and notes what is wrong with it."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._notices: list[str] = []

    def json_object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object; a key that stands there twice would hide the first one."""
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                self.faults.append(f"{redacted(key)} stands there twice")
            seen.add(key)
        return dict(pairs)

    def snapshot(self, content: object) -> Snapshot:
        """Return the snapshot, as far as it has no faults."""
        if not isinstance(content, dict):
            self.faults.append("must be an object of JSON")
            content = {}
        for key in content.keys() - set(_KEYS):
            self._notices.append(f"{key}: not known here, and passed over")
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
                    self._notices.append(f"{place}: disabled, and not installed")
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
                self.faults.append(
                    f"{place}: its address must end in the name of a folder, not in {repository.folder!r}"
                )

    def _registry_nodes(self, found: object, hashes: object) -> Iterator[RegistryNode]:
        pinned = dict(self._entries("cnr_sha256", hashes))
        for name, version in self._entries("cnr_custom_nodes", found):
            sha256, place = pinned.pop(name, ""), f"cnr_custom_nodes[{name}]"
            if _MANAGER in name.lower():
                self._notices.append(f"{place}: not installed, as in the Manager's own restore")
            elif isinstance(version, str) and isinstance(sha256, str):
                yield from self._valid(place, RegistryNode, name, version, sha256)
            else:
                self.faults.append(f"{place}: its version, and its hash in cnr_sha256, must be texts")
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
                self.faults.append(f"{place}: must be name==version with an empty text or an address; take it out")
            elif re.fullmatch(_OF_THE_IMAGE, name.lower()):
                passed_over.append(name)
            elif url.startswith("file:"):
                self.faults.append(
                    f"{place}: a file of the machine that saved the snapshot ({url}), which is not here. Take it out, "
                    "or name an address or a version"
                )
            elif url and not re.fullmatch(r"((git\+)?https?|git\+ssh)://[!-~]+", url):
                self.faults.append(f"{place}: must have an address that begins with https:// or git+https://")
            elif not url and not re.fullmatch(r"[0-9][\w.!+-]*", version):
                self.faults.append(f"{place}: must have a version (name==1.2.3) or an address")
            else:
                yield Package(name, version, url)
        if passed_over:
            self._notices.append(f"pips: the image chooses its own {', '.join(passed_over)}")

    def _entries(self, key: str, found: object) -> Iterator[tuple[str, Any]]:
        if isinstance(found, dict):
            yield from found.items()
        elif found is not None:
            self.faults.append(f"{key}: must be an object of JSON")

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
            key = folder.casefold()  # some disks do not tell cases apart
            if key in first:
                self.faults.append(f"{first[key]} and {name} both go into custom_nodes/{folder}. Take one of them out")
            first.setdefault(key, name)


def _is_plain(node: dict[str, object]) -> bool:
    return isinstance(node.get("disabled", False), bool)
