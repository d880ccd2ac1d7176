"""Reads /object_info, which describes ComfyUI's node classes: from a ComfyUI, a saved file, or the simulator."""

from __future__ import annotations

import importlib
import importlib.resources
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import JsonObject
from comfy_core.errors import ConfigError
from comfy_core.files import read_json


@dataclass(frozen=True)
class NodeTypes:
    """The node classes of one ComfyUI.

    Attributes:
        entries: the /object_info entries by class.
        source: what they were read from, for the user.
        is_complete: whether a class that is not in `entries` does not exist in that ComfyUI.
        files: returns the files of model folders, by folder. None if they are not known.
    """

    entries: Mapping[str, JsonObject]
    source: str
    is_complete: bool = False
    files: Callable[[Collection[str]], Mapping[str, Sequence[str]]] | None = None


def from_comfyui(url: str, classes: Collection[str]) -> NodeTypes:
    """Return those of `classes` that a running ComfyUI has. Raises RequestError, and ConfigError for an invalid URL."""
    with closing(ComfyServer(url)) as server:
        entries = server.node_types(classes)

    def files(folders: Collection[str]) -> Mapping[str, Sequence[str]]:
        with closing(ComfyServer(url)) as server:
            return {folder: server.models(folder) for folder in folders}

    return NodeTypes(entries, f"ComfyUI at {url}", is_complete=True, files=files)


def from_file(file: Path) -> NodeTypes:
    """Return the node classes in a saved response of GET /object_info. Raises ConfigError."""
    entries = read_json(file)
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict) and "input" in entry for entry in entries.values()
    ):
        raise ConfigError(f"{file} is not a response of ComfyUI's /object_info: save http://HOST:8188/object_info")
    return NodeTypes(entries, str(file), is_complete=True)


def recorded() -> NodeTypes:
    """Return the node classes that the simulator has, recorded from the pinned ComfyUI."""
    recording = importlib.resources.files("simulators") / "comfyui" / "object_info.json"
    entries = json.loads(recording.read_text(encoding="utf-8"))
    # By name, because the client does not depend on the simulators.
    version = importlib.import_module("simulators.comfyui.version").pinned_version()
    return NodeTypes(entries, f"the simulator ({len(entries)} node classes, recorded from ComfyUI {version})")
