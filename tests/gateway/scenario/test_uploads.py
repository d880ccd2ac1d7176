"""`sweep` of multipart uploads: incomplete ones expire, and parts without an upload are removed."""

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
    """Uploads whose clock is `now`, which the test sets."""

    def __init__(self, directory: Path) -> None:
        self.now = 1_000_000.0
        self.parts = directory / "uploads"
        self.store = Store(directory)
        storage = AssetStorage(self.store, FolderBlobs(directory / "pictures"), clock=lambda: self.now)
        assets = Assets(storage, lambda asset_id: asset_id)
        self.uploads = Uploads(storage, assets, self.parts, lambda *_: ("", 0.0))

    def begin(self) -> str:
        """Create an upload of one part; return the upload's id."""
        return str(self.uploads.create("owner", {"fileName": "a.png"})["upload"]["id"])


def test_an_incomplete_upload_expires(tmp_path: Path) -> None:
    """An hour after its start an incomplete upload is `failed`, has no parts, and accepts none.

    A younger upload keeps its part.
    """
    setup = UploadsWithClock(tmp_path)
    old = setup.begin()
    asyncio.run(setup.uploads.put_part(old, 1, b"x" * 100))
    setup.now += UPLOAD_LIFE_S - 1
    asyncio.run(setup.uploads.sweep())
    young = setup.begin()
    asyncio.run(setup.uploads.put_part(young, 1, b"x" * 100))
    assert (setup.parts / old).is_dir()
    setup.now += 2
    asyncio.run(setup.uploads.sweep())

    expired = setup.uploads.get("owner", old)["upload"]
    assert expired["status"] == "failed"
    assert "60 minutes" in expired["errorMessage"]
    assert [folder.name for folder in setup.parts.iterdir()] == [young]
    with pytest.raises(ShimError, match="too late"):
        asyncio.run(setup.uploads.put_part(old, 1, b"x"))
    setup.store.close()


def test_parts_without_an_upload_are_removed(tmp_path: Path) -> None:
    """The folder of parts of an unknown upload is deleted."""
    setup = UploadsWithClock(tmp_path)
    (setup.parts / "upload_none").mkdir(parents=True)
    (setup.parts / "upload_none" / "1").write_bytes(b"x")
    asyncio.run(setup.uploads.sweep())

    assert list(setup.parts.iterdir()) == []
    setup.store.close()
