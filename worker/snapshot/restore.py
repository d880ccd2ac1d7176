"""Restores a snapshot: fetch everything into a temporary folder, move it to the target, then install the nodes.

On failure the target folder is removed. Packages that pip has installed until then stay.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from comfy_core.errors import ConfigError
from worker.snapshot.listing import RegistryNode, Repository, RestoreError, Snapshot, SnapshotError, redacted
from worker.snapshot.packages import Node, Python
from worker.snapshot.registry import Registry
from worker.snapshot.repository import Git, fetch_commit, remove_git
from worker.snapshot.retries import LOG

COMFYUI = "ComfyUI"
_NODES = "custom_nodes"


@dataclass(frozen=True)
class Sources:
    """What a restore reads from.

    Attributes:
        comfyui: ComfyUI's repository at the requested commit.
        git: fetches repositories.
        registry: fetches the registry's nodes.
        python: installs the nodes' requirements; None if no node may have any.
        keep_git: whether the `.git` folders are kept.
    """

    comfyui: Repository
    git: Git
    registry: Registry
    python: Python | None
    keep_git: bool = False


def restore(snapshot: Snapshot, target: Path, sources: Sources) -> None:
    """Create `target`, ComfyUI's folder, from a snapshot. It must not exist, or be empty.

    Raises ConfigError for an invalid target or Python, and SnapshotError with all errors of one stage: first fetching,
    then requirements, then scripts.
    """
    target = target.resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"--to: {target} already exists. Remove it, or pass a new folder")
    if sources.python:
        sources.python.require_pip()
        _raise(sources.python.conflicts(snapshot.packages))
    target.parent.mkdir(parents=True, exist_ok=True)
    # Next to the target, so that it can be renamed; inside a private folder that other users cannot enter.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
        scratch = Path(name)
        made = scratch / target.name
        names = _fetch(snapshot, made, sources)
        nodes = [Node(name, target / _NODES / name) for name in names]
        if not sources.keep_git:
            remove_git(made)
        made.rename(target)
        try:
            _install(nodes, snapshot, target, sources.python, scratch)
        except BaseException:
            shutil.rmtree(target)
            raise


def _fetch(snapshot: Snapshot, made: Path, sources: Sources) -> list[str]:
    """Fetch ComfyUI and all nodes; return the nodes' folders. Raises SnapshotError with all errors."""
    errors: list[RestoreError] = []
    with _noted(COMFYUI, errors):
        _fetch_repository(COMFYUI, sources.comfyui, made, sources.git)
    _raise(errors)  # without ComfyUI there is no folder for the nodes
    nodes = made / _NODES
    for repository in snapshot.repositories:
        with _noted(repository.folder, errors):
            _require_free(nodes / repository.folder)
            _fetch_repository(repository.folder, repository, nodes / repository.folder, sources.git)
    for node in snapshot.registry_nodes:
        with _noted(node.id, errors):
            _require_free(nodes / node.id)
            _fetch_registry_node(node, nodes / node.id, sources.registry)
    errors += [
        RestoreError(
            file,
            "it is a file in custom_nodes, of which the snapshot has only the name, and ComfyUI does not ship it. "
            "Put it into a git repository and list that under git_custom_nodes, or remove it",
        )
        for file in snapshot.files
        if not (nodes / file).is_file()
    ]
    _raise(errors)
    return [
        *(repository.folder for repository in snapshot.repositories),
        *(node.id for node in snapshot.registry_nodes),
    ]


def _fetch_repository(part: str, repository: Repository, folder: Path, git: Git) -> None:
    begun = time.monotonic()
    fetch_commit(part, repository, folder, git)
    shown = redacted(repository.url)
    LOG.info("%s: %s of %s, fetched and verified in %.1f s", part, repository.commit, shown, time.monotonic() - begun)


def _fetch_registry_node(node: RegistryNode, folder: Path, registry: Registry) -> None:
    begun = time.monotonic()
    sha256 = registry.fetch(node, folder)
    LOG.info("%s: %s of the registry, fetched in %.1f s", node.id, node.version, time.monotonic() - begun)
    if not node.sha256:
        LOG.warning(
            '%s: the snapshot has no hash of its archive, so its content is not checked. Pin it: "cnr_sha256": '
            '{"%s": "%s"}',
            *(node.id, node.id, sha256),
        )


def _require_free(folder: Path) -> None:
    if folder.exists():
        raise RestoreError(folder.name, "ComfyUI ships a node of that name. Remove it from the snapshot")


def _install(nodes: Sequence[Node], snapshot: Snapshot, target: Path, python: Python | None, scratch: Path) -> None:
    """Install the packages of nodes and snapshot, then run the nodes' scripts."""
    if python is None:
        needing = [node.name for node in nodes if node.requirements or node.script]
        needing += ["pips"] if snapshot.packages else []
        _raise([RestoreError(name, "it requires packages. Pass ComfyUI's Python with --python") for name in needing])
        return
    _raise(python.install(nodes, snapshot.packages, scratch))
    errors: list[RestoreError] = []
    for node in nodes:
        if node.script:
            with _noted(node.name, errors):
                python.run_script(node, target, scratch)
    _raise(errors)


@contextlib.contextmanager
def _noted(part: str, errors: list[RestoreError]) -> Iterator[None]:
    """Append a failure to `errors` and continue."""
    try:
        yield
    except RestoreError as error:
        errors.append(error)
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        errors.append(RestoreError(part, f"its files cannot be read or written ({reason})"))


def _raise(errors: Sequence[RestoreError]) -> None:
    if errors:
        raise SnapshotError(tuple(errors))
