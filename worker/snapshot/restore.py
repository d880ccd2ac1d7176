"""A restore from top to bottom: everything is fetched beside its place and moved there, then the nodes are installed.

Nothing half done is left: the folder is removed where a part of it fails. What pip has installed until then stays.
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
    """What a restore works with.

    Attributes:
        comfyui: its repository, at the commit that is wanted.
        git: how repositories are fetched.
        registry: where the registry's nodes are.
        python: where the nodes' requirements go, or None where no node may have any.
        keep_git: whether the `.git` folders stay.
    """

    comfyui: Repository
    git: Git
    registry: Registry
    python: Python | None
    keep_git: bool = False


def restore(snapshot: Snapshot, target: Path, sources: Sources) -> None:
    """Make `target`, ComfyUI's folder, from a snapshot. It must be empty, or not there.

    Raises ConfigError for a wrong target or Python, and SnapshotError with everything that failed of one stage: first
    fetching, then requirements, then scripts.
    """
    target = target.resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"--to: {target} is there already. Remove it, or name a new folder")
    if sources.python:
        sources.python.require_pip()
        _raise(sources.python.conflicts(snapshot.packages))
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that it is moved in one step; inside a folder of its own, which others may not enter.
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
    """Fetch ComfyUI, and every node into it; return the nodes' folders. Raises SnapshotError with all that failed."""
    errors: list[RestoreError] = []
    with _noted(COMFYUI, errors):
        _fetch_repository(COMFYUI, sources.comfyui, made, sources.git)
    _raise(errors)  # where it is not there, neither is a place for the nodes
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
            "the snapshot has it as a file in custom_nodes and has nothing but its name; ComfyUI does not bring it. "
            "Put it into a git repository of yours and name that under git_custom_nodes, or take it out",
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
            '%s: the snapshot has no hash of its archive, so another one would be taken too. Pin it: "cnr_sha256": '
            '{"%s": "%s"}',
            *(node.id, node.id, sha256),
        )


def _require_free(folder: Path) -> None:
    if folder.exists():
        raise RestoreError(folder.name, "ComfyUI brings a node of that name itself. Take it out of the snapshot")


def _install(nodes: Sequence[Node], snapshot: Snapshot, target: Path, python: Python | None, scratch: Path) -> None:
    """Install what the nodes and the snapshot need in Python, then run the nodes' scripts."""
    if python is None:
        needing = [node.name for node in nodes if node.requirements or node.script]
        needing += ["pips"] if snapshot.packages else []
        _raise(
            [
                RestoreError(name, "it needs something installed. Name the Python that ComfyUI runs on with --python")
                for name in needing
            ]
        )
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
    """Go on after a failure, which is noted in `errors`."""
    try:
        yield
    except RestoreError as error:
        errors.append(error)
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        errors.append(RestoreError(part, f"its place on the disk cannot be read or written ({reason})"))


def _raise(errors: Sequence[RestoreError]) -> None:
    if errors:
        raise SnapshotError(tuple(errors))
