"""Multipart uploads of large images: create, PUT each part, complete.

Source: docs/reference/scenario.md#uploads.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

from comfy_client.gateway.scenario.asset_storage import AssetStorage, new_id
from comfy_client.gateway.scenario.assets import Assets
from comfy_client.gateway.scenario.errors import TOO_LARGE, TOO_MANY, ShimError, bad_request, not_found, storing
from comfy_client.gateway.scenario.models import ShimUpload
from comfy_client.gateway.scenario.serializers import PartUrl, upload_record
from comfy_core.contract import Fault, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.files import write_atomically
from comfy_core.images.codec import MAX_BYTES

MAX_PARTS = 100
MAX_PENDING = 20
"""Maximum number of uncompleted uploads per key."""
MAX_PENDING_BYTES = 4 * MAX_BYTES
"""Maximum total size of the parts of uncompleted uploads per key."""
UPLOAD_LIFE_S = 3600.0
"""How long an uncompleted upload is kept."""
SWEEP_S = 300.0
"""How often expired uploads are removed."""
SMALLER_IMAGE_ADVICE = "Send a smaller image, or use JPEG or WebP"


class Uploads:
    """The uploads in `storage`. Until an upload is completed, its parts are files below `directory`."""

    def __init__(self, storage: AssetStorage, assets: Assets, directory: Path, part_of: PartUrl) -> None:
        self._storage = storage
        self._store = storage.store
        self._assets = assets
        self._directory = directory
        self._part_of = part_of
        self._part_sizes: dict[str, dict[int, int]] = {}
        """Upload id to part number to bytes, for uncompleted uploads. Includes parts that are being written."""

    def create(self, owner: str, body: object) -> JsonObject:
        """Start an upload (`POST /uploads`) and return the URLs of its parts. Raises ShimError: 400, 429, 507."""
        fields = body if isinstance(body, dict) else {}
        if faults := _faults(fields):
            raise bad_request(faults)
        if len(self._store.pending_uploads(owner)) >= MAX_PENDING:
            raise ShimError(
                TOO_MANY,
                f"{MAX_PENDING} uploads of this key are not completed. Complete them, or wait until they are removed, "
                f"{UPLOAD_LIFE_S / 60:.0f} minutes after their start",
                code=ErrorCode.RATE_LIMITED,
                headers={"Retry-After": str(round(SWEEP_S))},
            )
        now = self._storage.clock()
        options = fields.get("assetOptions")
        upload = ShimUpload(
            id=new_id("upload"),
            owner=owner,
            created_at=now,
            updated_at=now,
            file_name=str(fields["fileName"])[:255],
            content_type=str(fields.get("contentType", "image/png"))[:100],
            parts=int(fields.get("parts", 1)),
            bytes=int(fields.get("fileSize", 0)),
            options={"hide": isinstance(options, dict) and bool(options.get("hide"))},
        )
        self._store.add(upload)
        return self._response(upload)

    def owner_of_part(self, upload_id: str, number: int) -> str:
        """Return the owner of a part's upload. Raises ShimError: 404, or 400 if the upload is not pending."""
        return self._pending(upload_id, number).owner

    def max_part_bytes(self, upload_id: str, number: int) -> int:
        """Return the maximum size of a part in bytes. Raises ShimError as `owner_of_part` does."""
        upload = self._pending(upload_id, number)
        others = sum(size for part, size in self._part_sizes.get(upload.id, {}).items() if part != number)
        all_others = others + sum(
            sum(self._part_sizes.get(each.id, {}).values())
            for each in self._store.pending_uploads(upload.owner)
            if each.id != upload.id
        )
        return max(0, min(MAX_BYTES - others, MAX_PENDING_BYTES - all_others))

    async def put_part(self, upload_id: str, number: int, data: bytes) -> None:
        """Store one part, or replace it. The signed URL authorises the caller. Raises ShimError."""
        if len(data) > self.max_part_bytes(upload_id, number):
            raise ShimError(
                TOO_LARGE,
                f"The parts have more than {MAX_BYTES:,} bytes. {SMALLER_IMAGE_ADVICE}",
                code=ErrorCode.PAYLOAD_TOO_LARGE,
            )
        sizes = self._part_sizes.setdefault(upload_id, {})
        previous = sizes.get(number, 0)
        sizes[number] = len(data)
        try:
            with storing(self._directory):
                await asyncio.to_thread(self._write, upload_id, number, data)
        except ShimError:
            sizes[number] = previous
            raise

    async def act(self, owner: str, upload_id: str, body: object) -> JsonObject:
        """Complete an upload: join its parts, validate the image, and create an asset.

        If the image is invalid, the upload becomes `failed` with the reason. An upload that is not pending does not
        change. A missing part raises ShimError (400).
        """
        upload = self._find(owner, upload_id)
        if not isinstance(body, dict) or body.get("action") != "complete":
            raise bad_request([Fault("action", "must be complete")])
        if upload.state != "pending":
            return self._response(upload)
        upload = self._change(upload, state="validating")
        try:
            data = await asyncio.to_thread(self._join_parts, upload)
            asset = await self._assets.add(owner, data, upload.file_name, is_hidden=bool(upload.options.get("hide")))
        except JobError as error:
            upload = self._change(upload, state="failed", error=error.report.message)
        except BaseException:
            self._change(upload, state="pending")
            raise
        else:
            upload = self._change(upload, state="imported", asset_id=asset.id)
        await self._remove_parts(upload.id)
        return self._response(upload)

    def has(self, owner: str, upload_id: str) -> bool:
        """Return whether an owner created an upload here."""
        return self._store.upload(upload_id, owner) is not None

    def get(self, owner: str, upload_id: str) -> JsonObject:
        """Return an upload (`GET /uploads/{id}`). Raises ShimError (404)."""
        return self._response(self._find(owner, upload_id))

    def resume(self) -> None:
        """Reset uploads whose completion was interrupted by a crash, and remove parts that no pending upload needs."""
        for folder in self._directory.iterdir() if self._directory.is_dir() else ():
            upload = self._store.upload(folder.name)
            if upload is not None and upload.state == "validating":
                upload = self._change(upload, state="pending")
            if upload is None or upload.state != "pending":
                shutil.rmtree(folder, ignore_errors=True)
            else:
                sizes = {int(file.name): file.stat().st_size for file in folder.iterdir() if file.name.isdigit()}
                self._part_sizes[upload.id] = sizes

    async def sweep(self) -> None:
        """Fail the uploads that were not completed within UPLOAD_LIFE_S, and remove parts that are not needed."""
        for upload in self._store.stale_uploads(self._storage.clock() - UPLOAD_LIFE_S):
            why = f"The upload was not completed within {UPLOAD_LIFE_S / 60:.0f} minutes. Start another upload"
            self._change(upload, state="failed", error=why)
        for folder in await asyncio.to_thread(lambda: list(self._directory.glob("*"))):
            found = self._store.upload(folder.name)
            if found is None or found.state not in ("pending", "validating"):
                await self._remove_parts(folder.name)

    async def _remove_parts(self, upload_id: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self._directory / upload_id, ignore_errors=True)
        self._part_sizes.pop(upload_id, None)

    def _pending(self, upload_id: str, number: int) -> ShimUpload:
        upload = self._store.upload(upload_id)
        if upload is None or not 1 <= number <= upload.parts:
            raise not_found("upload part", f"{upload_id}/{number}")
        if upload.state != "pending":
            raise bad_request([Fault("", f"is too late: the upload is already {upload.state}")])
        return upload

    def _find(self, owner: str, upload_id: str) -> ShimUpload:
        upload = self._store.upload(upload_id, owner)
        if upload is None:
            raise not_found("upload", upload_id)
        return upload

    def _response(self, upload: ShimUpload) -> JsonObject:
        return {"upload": upload_record(upload, self._part_of)}

    def _change(self, upload: ShimUpload, **changes: str) -> ShimUpload:
        changed = replace(upload, updated_at=self._storage.clock(), **changes)  # type: ignore[arg-type] # only strings
        self._store.add(changed)
        return changed

    def _write(self, upload_id: str, number: int, data: bytes) -> None:
        write_atomically(self._directory / upload_id / str(number), data)

    def _join_parts(self, upload: ShimUpload) -> bytes:
        files = [self._directory / upload.id / str(number) for number in range(1, upload.parts + 1)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise bad_request(
                [Fault("", f"completes the upload too early: the parts {', '.join(missing)} are missing")]
            )
        return b"".join(file.read_bytes() for file in files)


def _faults(fields: JsonObject) -> list[Fault]:
    faults = []
    parts, size = fields.get("parts", 1), fields.get("fileSize", 0)
    if not isinstance(fields.get("fileName"), str) or not fields["fileName"].strip():
        faults.append(Fault("fileName", "is missing"))
    if not (isinstance(parts, int) and not isinstance(parts, bool) and 1 <= parts <= MAX_PARTS):
        faults.append(Fault("parts", f"must be a whole number from 1 to {MAX_PARTS}"))
    if not (isinstance(size, int | float) and 0 <= size <= MAX_BYTES):
        faults.append(Fault("fileSize", f"must be at most {MAX_BYTES:,} bytes. {SMALLER_IMAGE_ADVICE}"))
    if fields.get("kind", "image") not in ("image", "asset"):
        faults.append(Fault("kind", "must be image; other files are not supported"))
    if fields.get("url"):
        faults.append(Fault("url", "is not supported. Upload the image, or send its URL as `image` of img2img"))
    return faults
