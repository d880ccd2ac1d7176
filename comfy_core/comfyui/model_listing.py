"""Lists the model files of a ComfyUI through its own requests. Hashes and free space are not known there."""

from __future__ import annotations

from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import JsonObject
from comfy_core.request.models_task import require_folder

_NO_MODELS = frozenset({"configs", "custom_nodes"})
"""Folders of ComfyUI's list that have no models."""


def listed_models(server: ComfyServer, folder: str = "") -> list[JsonObject]:
    """Return the files of all model folders, or of one, each with `folder` and `name`, and `bytes` if it is known.

    Raises JobError (invalid_input) for an unknown folder, and RequestError.
    """
    folders = [each for each in server.model_folders() if each not in _NO_MODELS]
    if folder:
        require_folder(folder, folders)
    return [
        {"folder": each, "name": name, **facts}
        for each in ([folder] if folder else folders)
        for name, facts in _files(server, each).items()
    ]


def _files(server: ComfyServer, folder: str) -> dict[str, JsonObject]:
    """Return what ComfyUI reports about each file of a folder. Of equal names, the first is the one that it loads."""
    found: dict[str, JsonObject] = {}
    for each in server.model_files(folder):
        match each:
            case {"name": str(name), "size": int(size)}:
                found.setdefault(name.replace("\\", "/"), {"bytes": size})
            case str(name):
                found.setdefault(name.replace("\\", "/"), {})
    return found
