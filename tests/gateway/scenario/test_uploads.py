"""Multipart uploads that are never completed are removed while the shim runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from comfy_client.gateway.scenario.asset_storage import AssetStorage
from comfy_client.gateway.scenario.assets import Assets
from comfy_client.gateway.scenario.blobs import FolderBlobs
from comfy_client.gateway.scenario.errors import ShimError
from comfy_client.gateway.scenario.store import Store
from comfy_client.gateway.scenario.uploads import UPLOAD_LIFE_S, Uploads


class UploadsWithClock:
    """Uploads with a clock that the test sets."""

    def __init__(self, directory: Path) -> None:
        self.now = 1_000_000.0
        self.parts = directory / "uploads"
        self.store = Store(directory)
        storage = AssetStorage(self.store, FolderBlobs(directory / "pictures"), clock=lambda: self.now)
        assets = Assets(storage, lambda asset_id: asset_id)
        self.uploads = Uploads(storage, assets, self.parts, lambda *_: ("", 0.0))

    def begin(self) -> str:
        """Begin an upload of one part; return its id."""
        return str(self.uploads.create("owner", {"fileName": "a.png"})["upload"]["id"])


def test_an_incomplete_upload_expires(tmp_path: Path) -> None:
    """An hour after its start it is `failed` with the reason, and its parts are deleted; a younger upload is kept."""
    scene = UploadsWithClock(tmp_path)
    old = scene.begin()
    asyncio.run(scene.uploads.put_part(old, 1, b"x" * 100))
    scene.now += UPLOAD_LIFE_S - 1
    asyncio.run(scene.uploads.sweep())
    young = scene.begin()
    asyncio.run(scene.uploads.put_part(young, 1, b"x" * 100))
    assert (scene.parts / old).is_dir()
    scene.now += 2
    asyncio.run(scene.uploads.sweep())

    ended = scene.uploads.get("owner", old)["upload"]
    assert ended["status"] == "failed"
    assert "60 minutes" in ended["errorMessage"]
    assert [folder.name for folder in scene.parts.iterdir()] == [young]
    with pytest.raises(ShimError, match="too late"):
        asyncio.run(scene.uploads.put_part(old, 1, b"x"))
    scene.store.close()


def test_parts_without_an_upload_are_removed(tmp_path: Path) -> None:
    """A part that was written too late is deleted by the next sweep."""
    scene = UploadsWithClock(tmp_path)
    (scene.parts / "upload_none").mkdir(parents=True)
    (scene.parts / "upload_none" / "1").write_bytes(b"x")
    asyncio.run(scene.uploads.sweep())

    assert list(scene.parts.iterdir()) == []
    scene.store.close()
