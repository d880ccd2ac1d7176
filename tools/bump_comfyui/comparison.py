"""Reads two versions of ComfyUI and their recordings, and returns the table of the differences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_core.models.folders import FOLDERS
from tools.bump_comfyui import declarations
from tools.bump_comfyui.changes import Change
from tools.bump_comfyui.messages import message_changes
from tools.bump_comfyui.readers import message_readers, places_of, route_places, sources
from tools.bump_comfyui.table import Section, page

RECORDINGS = Path(__file__).resolve().parents[2] / "tests" / "recordings"
NODE_SOURCES = ("nodes.py", "comfy_extras", "custom_nodes")
FILE_RULES = "comfy_core/comfyui/file_inputs.py"


@dataclass(frozen=True)
class Compared:
    """What is compared. Each pair is that of the pinned version and that of the new one.

    Attributes:
        titles: the versions and commits.
        sources: the checkouts of ComfyUI.
        recordings: the folders of the recordings.
        lists: the folders of the lock files.
        object_info: the file with the new version's complete /object_info.
    """

    titles: tuple[str, str]
    sources: tuple[Path, Path]
    recordings: tuple[Path, Path]
    lists: tuple[Path, Path]
    object_info: Path


def changed_packages(before: Path, after: Path) -> int:
    """Return how many packages of two folders of lock files differ."""
    return len(_package_changes(before, after))


def page_of(compared: Compared) -> str:
    """Return the page with the tables."""
    return page(f"ComfyUI {' to '.join(compared.titles)}", [*_sections(compared)])


def _sections(compared: Compared) -> Iterable[Section]:
    ours = sources()
    old, new = (_recordings(folder) for folder in compared.recordings)
    nodes = [json.loads((folder / "object_info.json").read_text()) for folder in compared.recordings]
    only_new = sorted(new.keys() - old.keys())
    note = f"Recorded for the first time, and not compared: {', '.join(only_new)}." if only_new else ""
    yield _section("Messages", message_changes(old, new), lambda change: message_readers(change, ours), note)
    yield _section("Node classes of the simulator and of our code", declarations.node_changes(*nodes), by_subject(ours))
    declared = json.loads(compared.object_info.read_text())
    added = declarations.new_classes(declared, _python(compared.sources[0], NODE_SOURCES))
    yield _section(
        "New node classes that name files",
        declarations.new_file_inputs(declared, added),
        lambda change: places_of(change.subject, {FILE_RULES: ours[FILE_RULES]}),
        f"Each must be in `{FILE_RULES}`. New classes: {', '.join(added) or 'none'}.",
    )
    folders = [declarations.folders_in((source / "folder_paths.py").read_text()) for source in compared.sources]
    flags = [declarations.flags_in((source / "comfy/cli_args.py").read_text()) for source in compared.sources]
    routes = [
        declarations.routes_in(_python(source, ("server.py", "app", "api_server"))) for source in compared.sources
    ]
    yield _section(
        "Model folders",
        declarations.set_changes(*folders),
        lambda change: ["comfy_core/models/folders.py"] if change.subject in FOLDERS else [],
    )
    yield _section("Command-line flags", declarations.set_changes(*flags), by_subject(ours))
    yield _section("Routes", declarations.set_changes(*routes), lambda change: route_places(change.subject, ours))
    yield Section("Packages", [(change, ()) for change in _package_changes(*compared.lists)])


def by_subject(ours: Mapping[str, str]) -> Callable[[Change], list[str]]:
    """Return a function that finds the places with the name of a change's subject."""
    return lambda change: places_of(change.subject, ours)


def _section(title: str, changes: Iterable[Change], readers: Callable[[Change], list[str]], note: str = "") -> Section:
    return Section(title, [(change, readers(change)) for change in changes], note)


def _recordings(folder: Path) -> dict[str, Any]:
    """Return the recordings in a folder by name, without the declarations of the nodes."""
    files = [file for file in sorted(folder.glob("*.json")) if file.stem != "object_info"]
    return {file.stem: json.loads(file.read_text()) for file in files}


def _python(checkout: Path, names: Iterable[str]) -> list[str]:
    """Return the texts of Python files: those named, and all in the folders named."""
    paths = [checkout / name for name in names]
    files = [file for path in paths for file in ([path] if path.suffix else sorted(path.rglob("*.py")))]
    return [file.read_text() for file in files]


def _package_changes(before: Path, after: Path) -> list[Change]:
    old, new = (
        {
            name: version
            for file in ("comfyui.txt", "torch.txt")
            for name, version in declarations.packages_in((folder / file).read_text()).items()
        }
        for folder in (before, after)
    )
    return declarations.value_changes(old, new)
