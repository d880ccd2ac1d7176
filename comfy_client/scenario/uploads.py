"""Large pictures that come in parts (reference/scenario.md 4.5): made, put part by part, completed, imported."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

from comfy_client.contract import Fault, JsonObject
from comfy_client.errors import JobError
from comfy_client.images import MAX_BYTES
from comfy_client.scenario.assets import Assets
from comfy_client.scenario.errors import TOO_LARGE, ShimError, bad_request, not_found
from comfy_client.scenario.keeper import Keeper, new_id
from comfy_client.scenario.records import PartAddress, upload_record
from comfy_client.scenario.rows import UploadRow

MOST_PARTS = 100
KEPT_S = 86_400.0
"""How long an upload that was not completed is kept."""


class Uploads:
    """The uploads that `keeper` keeps; their parts are files below `directory`, until they are completed."""

    def __init__(self, keeper: Keeper, assets: Assets, directory: Path, part_of: PartAddress) -> None:
        self._keeper = keeper
        self._store = keeper.store
        self._assets = assets
        self._directory = directory
        self._part_of = part_of

    def create(self, owner: str, body: object) -> JsonObject:
        """Begin an upload (`POST /uploads`) and return where its parts go."""
        given = body if isinstance(body, dict) else {}
        faults = []
        parts, size = given.get("parts", 1), given.get("fileSize", 0)
        if not isinstance(given.get("fileName"), str) or not given["fileName"].strip():
            faults.append(Fault("fileName", "is missing"))
        if not (isinstance(parts, int) and not isinstance(parts, bool) and 1 <= parts <= MOST_PARTS):
            faults.append(Fault("parts", f"must be a whole number from 1 to {MOST_PARTS}"))
        if not (isinstance(size, int | float) and 0 <= size <= MAX_BYTES):
            faults.append(Fault("fileSize", f"must be at most {MAX_BYTES:,} bytes"))
        if given.get("kind", "image") not in ("image", "asset"):
            faults.append(Fault("kind", "must be image: nothing else is kept here"))
        if given.get("url"):
            faults.append(Fault("url", "cannot be imported: upload the picture, or give img2img its address as image"))
        if faults:
            raise bad_request(faults)
        now = self._keeper.clock()
        options = given.get("assetOptions")
        upload = UploadRow(
            id=new_id("upload"),
            owner=owner,
            created_at=now,
            updated_at=now,
            file_name=str(given["fileName"])[:255],
            content_type=str(given.get("contentType", "image/png"))[:100],
            parts=int(parts),
            bytes=int(size),
            options=options if isinstance(options, dict) else {},
        )
        self._store.add(upload)
        return self._answer(upload)

    async def put_part(self, upload_id: str, number: int, data: bytes) -> None:
        """Keep one part; a part may be put again. Whoever puts it has its signed address."""
        upload = self._store.upload(upload_id)
        if upload is None or not 1 <= number <= upload.parts:
            raise not_found("part of an upload", f"{upload_id}/{number}")
        if upload.state != "pending":
            raise bad_request([Fault("", f"comes too late: the upload is {upload.state}")])
        if len(data) > MAX_BYTES:
            raise ShimError(TOO_LARGE, f"The part has {len(data):,} bytes; at most {MAX_BYTES:,} are taken")
        await asyncio.to_thread(self._write, upload_id, number, data)

    async def act(self, owner: str, upload_id: str, body: object) -> JsonObject:
        """Complete an upload: join its parts, check the picture, and make it an asset.

        A picture that is none makes the upload `failed`, with the reason; a part that is missing is a ShimError (400).
        """
        upload = self._row(owner, upload_id)
        if not isinstance(body, dict) or body.get("action") != "complete":
            raise bad_request([Fault("action", "must be complete")])
        if upload.state != "pending":
            return self._answer(upload)
        upload = self._changed(upload, state="validating")
        try:
            data = await asyncio.to_thread(self._joined, upload)
            asset = await self._assets.add(owner, data, upload.file_name, is_hidden=bool(upload.options.get("hide")))
        except JobError as error:
            upload = self._changed(upload, state="failed", error=error.report.message)
        except BaseException:
            self._changed(upload, state="pending")
            raise
        else:
            upload = self._changed(upload, state="imported", asset_id=asset.id)
        await asyncio.to_thread(shutil.rmtree, self._directory / upload.id, ignore_errors=True)
        return self._answer(upload)

    def get(self, owner: str, upload_id: str) -> JsonObject:
        """Return how an upload stands (`GET /uploads/{id}`)."""
        return self._answer(self._row(owner, upload_id))

    def resume(self) -> None:
        """Let uploads that a kill left half-way be completed again, and remove the parts of those that nobody did."""
        if not self._directory.is_dir():
            return
        for folder in self._directory.iterdir():
            upload = self._store.upload(folder.name)
            if upload is not None and upload.state == "validating":
                upload = self._changed(upload, state="pending")
            if upload is None or upload.state != "pending" or upload.created_at < self._keeper.clock() - KEPT_S:
                shutil.rmtree(folder, ignore_errors=True)

    def _row(self, owner: str, upload_id: str) -> UploadRow:
        upload = self._store.upload(upload_id, owner)
        if upload is None:
            raise not_found("upload", upload_id)
        return upload

    def _answer(self, upload: UploadRow) -> JsonObject:
        return {"upload": upload_record(upload, self._part_of)}

    def _changed(self, upload: UploadRow, **changes: str) -> UploadRow:
        changed = replace(upload, updated_at=self._keeper.clock(), **changes)  # type: ignore[arg-type] # texts alone
        self._store.add(changed)
        return changed

    def _write(self, upload_id: str, number: int, data: bytes) -> None:
        folder = self._directory / upload_id
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{number}.part"
        part.write_bytes(data)
        part.replace(folder / str(number))

    def _joined(self, upload: UploadRow) -> bytes:
        files = [self._directory / upload.id / str(number) for number in range(1, upload.parts + 1)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise bad_request([Fault("", f"comes too early: the parts {', '.join(missing)} are missing")])
        if sum(file.stat().st_size for file in files) > MAX_BYTES:
            raise ShimError(TOO_LARGE, f"The picture has more than {MAX_BYTES:,} bytes")
        return b"".join(file.read_bytes() for file in files)
