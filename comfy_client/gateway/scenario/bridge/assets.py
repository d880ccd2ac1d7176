"""Assets on both sides: copies Scenario's assets here on first use, and uploads own assets to Scenario once.

A copy keeps Scenario's id, record and tags, and belongs to SHARED_OWNER. An own asset has another id at Scenario, which
its AssetLink stores. Only images are copied. Other assets stay at Scenario, and calls that name
them are forwarded.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import logging
from collections.abc import Collection, Iterable
from urllib.parse import quote
from weakref import WeakValueDictionary

from comfy_client.gateway.scenario.asset_storage import AssetStorage
from comfy_client.gateway.scenario.bridge.upstream import Upstream, UpstreamCall, UpstreamRefused, json_object
from comfy_client.gateway.scenario.errors import NOT_FOUND, UNREACHABLE, ShimError
from comfy_client.gateway.scenario.models import SHARED_OWNER, AssetLink, ShimAsset, Side
from comfy_core.contract import JsonObject
from comfy_core.errors import JobError
from comfy_core.images.codec import MAX_BYTES

SMALL_UPLOAD_BYTES = 4_000_000
"""Images above this size are uploaded in parts (docs/reference/scenario.md#uploads)."""
PART_BYTES = 5 * 1024 * 1024
TRANSFERS_AT_ONCE = 8
UPLOAD_POLL_S = 0.5
UPLOAD_PATIENCE_S = 120.0

_log = logging.getLogger(__name__)


class AssetBridge:
    """Copies assets between Scenario's API `upstream` and the shim's `storage`."""

    def __init__(self, upstream: Upstream, storage: AssetStorage) -> None:
        self._upstream = upstream
        self._storage = storage
        self._store = storage.store
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._slots = asyncio.Semaphore(TRANSFERS_AT_ONCE)

    async def copy_missing(self, asset_ids: Iterable[str]) -> None:
        """Copy those assets that the shim does not have. Ids that Scenario does not have either are ignored.

        Raises ShimError if Scenario does not respond or refuses.
        """
        missing = [each for each in dict.fromkeys(asset_ids) if self._store.asset(each) is None]
        await asyncio.gather(*(self.copied(each) for each in missing))

    async def copied(self, asset_id: str) -> ShimAsset | None:
        """Return the copy of an asset of Scenario, made now if necessary. None if it is not there or not an image."""
        async with self._locks.setdefault(asset_id, asyncio.Lock()), self._slots:
            if (known := self._store.asset(asset_id)) is not None:
                return known
            try:
                _, response = await self._upstream.json(UpstreamCall("GET", f"/assets/{quote(asset_id, safe='')}"))
            except UpstreamRefused as refusal:
                if refusal.status == NOT_FOUND:
                    return None
                raise
            record = json_object(response.get("asset"))
            if record.get("kind") != "image" or not record.get("url"):
                return None
            return await self._store_copy(asset_id, str(record["url"]), record)

    async def _store_copy(self, asset_id: str, url: str, record: JsonObject) -> ShimAsset | None:
        data = await self._upstream.download(url, MAX_BYTES)
        try:
            image = await self._storage.checked(data, flatten=False)
        except JobError as error:
            _log.warning("asset %s of Scenario was not copied: %s", asset_id, error)
            return None
        metadata = json_object(record.get("metadata"))
        tags = record.get("tags")
        async with self._storage.stored(image) as sha256:
            asset = ShimAsset(
                id=asset_id,
                owner=SHARED_OWNER,
                created_at=_time(record.get("createdAt"), self._storage.clock()),
                updated_at=_time(record.get("updatedAt"), self._storage.clock()),
                sha256=sha256,
                mime_type=image.mime_type,
                width=image.width,
                height=image.height,
                bytes=len(image.data),
                name=str(metadata.get("name") or asset_id)[:255],
                type=str(metadata.get("type", "")),
                source=str(record.get("source", "")),
                job_id=str(metadata.get("inferenceId", "")),
                model_id=str(metadata.get("modelId", "")),
                tags=tuple(str(tag) for tag in tags) if isinstance(tags, list) else (),
                side=Side.SCENARIO,
                scenario_record=record,
            )
            self._store.add(asset)
        return asset

    async def scenario_ids(self, owner: str, asset_ids: Collection[str]) -> dict[str, str]:
        """Return Scenario's id of each own asset among `asset_ids` that `owner` may see. Uploads assets without one."""
        own = [
            asset
            for each in sorted(asset_ids)
            if (asset := self._store.asset(each, owner)) is not None and asset.side is Side.OWN
        ]
        links = await asyncio.gather(*(self.linked(asset) for asset in own))
        return {link.id: link.scenario_id for link in links}

    async def linked(self, asset: ShimAsset) -> AssetLink:
        """Return the link of an own asset to its copy at Scenario, which is uploaded now if necessary."""
        async with self._locks.setdefault(asset.id, asyncio.Lock()), self._slots:
            if (known := self._store.link(asset.id)) is not None:
                return known
            scenario_id = await self._upload(asset)
            link = AssetLink(asset.id, scenario_id, self._storage.clock())
            await self._storage.write(lambda: self._store.add(link))
        if asset.tags:
            body = json.dumps({"add": list(asset.tags)}).encode()
            await self._upstream.json(UpstreamCall("PUT", f"/assets/{scenario_id}/tags", "", body, "application/json"))
        return link

    async def _upload(self, asset: ShimAsset) -> str:
        """Upload an own asset to Scenario and return its id there."""
        data = await asyncio.to_thread(self._storage.blobs.get, asset.sha256)
        if len(data) > SMALL_UPLOAD_BYTES:
            return await self._upload_in_parts(asset, data)
        image = await asyncio.to_thread(lambda: base64.b64encode(data).decode("ascii"))
        body = json.dumps({"name": asset.name, "image": f"data:{asset.mime_type};base64,{image}"}).encode()
        _, response = await self._upstream.json(UpstreamCall("POST", "/assets", "", body, "application/json"))
        if not (scenario_id := json_object(response.get("asset")).get("id")):
            raise _unreadable("upload")
        return str(scenario_id)

    async def _upload_in_parts(self, asset: ShimAsset, data: bytes) -> str:
        count = -(-len(data) // PART_BYTES)
        body = {"fileName": asset.name, "contentType": asset.mime_type, "kind": "image", "parts": count}
        upload = await self._upload_call("POST", "/uploads", {**body, "fileSize": len(data)})
        for number, part in enumerate(upload.get("parts", [])):
            await self._upstream.put_part(part["url"], data[number * PART_BYTES : (number + 1) * PART_BYTES])
        upload = await self._upload_call("POST", f"/uploads/{upload['id']}/action", {"action": "complete"})
        give_up_at = asyncio.get_running_loop().time() + UPLOAD_PATIENCE_S
        while not upload.get("entityId"):
            if upload.get("status") == "failed" or asyncio.get_running_loop().time() > give_up_at:
                why = upload.get("errorMessage") or f"it is {upload.get('status')} after {UPLOAD_PATIENCE_S:g} s"
                raise ShimError(UNREACHABLE, f"Scenario did not import {asset.id}: {why}. Send the request again")
            await asyncio.sleep(UPLOAD_POLL_S)
            upload = await self._upload_call("GET", f"/uploads/{upload['id']}", None)
        return str(upload["entityId"])

    async def _upload_call(self, method: str, path: str, body: JsonObject | None) -> JsonObject:
        content = json.dumps(body).encode() if body is not None else None
        _, response = await self._upstream.json(UpstreamCall(method, path, "", content, "application/json"))
        upload = json_object(response.get("upload"))
        if not upload.get("id"):
            raise _unreadable("upload in parts")
        return upload


def _unreadable(what: str) -> ShimError:
    return ShimError(UNREACHABLE, f"Scenario's response to an {what} has no id. Send the request again")


def _time(value: object, otherwise: float) -> float:
    """Return Scenario's time as seconds since 1970."""
    try:
        return dt.datetime.fromisoformat(str(value)).timestamp()
    except (ValueError, OverflowError):
        return otherwise
