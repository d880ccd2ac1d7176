"""Restores a snapshot: fetch everything into a temporary folder, move it to the target, then install the nodes.

On failure the target folder is removed. Packages that pip has installed until then stay.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from comfy_core.errors import ConfigError
from worker.snapshot.listing import Repository, RestoreError, SnapshotError, redacted
from worker.snapshot.packages import Python, has_script, needs_python
from worker.snapshot.repository import Git, fetch_commit, remove_git

_LOG = logging.getLogger(__name__)
_NODES = "custom_nodes"


@dataclass(frozen=True)
class Restore:
    """The restore of one snapshot. `run` performs it.

    Attributes:
        comfyui: ComfyUI's repository at the requested commit.
        comfyui_version: the version that this commit must have; empty if any will do.
        nodes: the nodes' repositories.
        git: fetches repositories.
        python: installs the nodes' requirements. If it is None, a node with requirements is an error.
        keep_git: whether the `.git` folders are kept.
    """

    comfyui: Repository
    comfyui_version: str
    nodes: tuple[Repository, ...]
    git: Git
    python: Python | None
    keep_git: bool = False

    def run(self, target: Path) -> None:
        """Create `target`, ComfyUI's folder. The folder must not exist, or it must be empty.

        Raises ConfigError for an invalid target or Python, and SnapshotError with all errors of one stage: first
        fetching, then requirements, then scripts.
        """
        target = target.resolve()
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise ConfigError(f"--to: {target} already exists. Remove it, or pass a new folder")
        if self.python:
            self.python.require_pip()
        target.parent.mkdir(parents=True, exist_ok=True)
        # Next to the target, so that it can be renamed; inside a private folder that other users cannot enter.
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
            scratch = Path(name)
            self._fetch(scratch / target.name)
            (scratch / target.name).rename(target)
            try:
                self._install(target, scratch)
            except BaseException:
                shutil.rmtree(target)
                raise

    def _fetch(self, comfyui_folder: Path) -> None:
        """Fetch ComfyUI and all nodes into `comfyui_folder`. Raises SnapshotError with all errors."""
        errors: list[RestoreError] = []
        with _collect_error("ComfyUI", errors):
            self._fetch_one("ComfyUI", self.comfyui, comfyui_folder)
            self._require_version(comfyui_folder)
        _raise_if_any(errors)  # without ComfyUI there is no folder for the nodes
        for node in self.nodes:
            folder = comfyui_folder / _NODES / node.folder
            with _collect_error(node.folder, errors):
                if folder.exists():
                    raise RestoreError(node.folder, "ComfyUI ships a node of that name. Remove it from the snapshot")
                self._fetch_one(node.folder, node, folder)
        _raise_if_any(errors)
        if not self.keep_git:
            remove_git(comfyui_folder)

    def _fetch_one(self, part: str, repository: Repository, folder: Path) -> None:
        begun = time.monotonic()
        fetch_commit(part, repository, folder, self.git)
        shown, duration_s = redacted(repository.url), time.monotonic() - begun
        _LOG.info("%s: %s of %s, fetched and verified in %.1f s", part, repository.commit, shown, duration_s)

    def _require_version(self, comfyui_folder: Path) -> None:
        """Raise RestoreError if ComfyUI's version is not `comfyui_version`."""
        if not self.comfyui_version:
            return
        text = (comfyui_folder / "comfyui_version.py").read_text(encoding="utf-8")
        if f'__version__ = "{self.comfyui_version}"' not in text:
            raise RestoreError(
                "ComfyUI", f"the commit is not version {self.comfyui_version}. Correct comfyui or comfyui_version"
            )

    def _install(self, target: Path, scratch: Path) -> None:
        """Install the nodes' requirements, then run the nodes' install.py. Raises SnapshotError."""
        nodes = [target / _NODES / node.folder for node in self.nodes]
        if self.python is None:
            advice = "it requires packages. Pass ComfyUI's Python with --python"
            _raise_if_any([RestoreError(node.name, advice) for node in nodes if needs_python(node)])
            return
        _raise_if_any(self.python.install(nodes, scratch))
        errors: list[RestoreError] = []
        for node in filter(has_script, nodes):
            with _collect_error(node.name, errors):
                self.python.run_script(node, target, scratch)
        _raise_if_any(errors)


@contextlib.contextmanager
def _collect_error(part: str, errors: list[RestoreError]) -> Iterator[None]:
    """Catch a RestoreError or OSError of the block, and append it to `errors`."""
    try:
        yield
    except RestoreError as error:
        errors.append(error)
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        errors.append(RestoreError(part, f"its files cannot be read or written ({reason})"))


def _raise_if_any(errors: Sequence[RestoreError]) -> None:
    if errors:
        raise SnapshotError(tuple(errors))
