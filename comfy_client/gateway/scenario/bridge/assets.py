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
from dataclasses import replace
from pathlib import Path
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
PAGE_SIZE = 100
"""Assets on one page of Scenario's list."""
MAX_CLOCK_ERROR_S = 3600.0
"""Maximum difference between Scenario's clock and the shim's."""
MAX_STEM, MAX_SUFFIX = 150, 10
"""Maximum characters of a name and its suffix at Scenario, besides the own id."""

_log = logging.getLogger(__name__)


class NotCopied(ShimError):  # noqa: N818 - the state of an asset
    """Scenario sent an image that cannot be read."""


class AssetBridge:
    """Copies assets between Scenario's API `upstream` and the shim's `storage`."""

    def __init__(self, upstream: Upstream, storage: AssetStorage) -> None:
        self._upstream = upstream
        self._storage = storage
        self._store = storage.store
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._slots = asyncio.Semaphore(TRANSFERS_AT_ONCE)

    async def copy_missing(self, asset_ids: Iterable[str]) -> None:
        """Copy those assets that the shim does not have.

        Ids that Scenario does not have and images that cannot be read are ignored. Raises ShimError if Scenario does
        not respond or refuses.
        """
        missing = [each for each in dict.fromkeys(asset_ids) if self._store.asset(each) is None]
        await asyncio.gather(*(self._copied_if_readable(each) for each in missing))

    async def _copied_if_readable(self, asset_id: str) -> None:
        try:
            await self.copied(asset_id)
        except NotCopied as error:
            _log.warning("%s", error)

    async def copied(self, asset_id: str, record: JsonObject | None = None) -> ShimAsset | None:
        """Return the copy of an asset of Scenario, made now if necessary. None if it is not there or not an image.

        `record` is Scenario's record of the asset, if the caller has it. Raises ShimError, and NotCopied if Scenario's
        image cannot be read.
        """
        async with self._locks.setdefault(asset_id, asyncio.Lock()), self._slots:
            if (known := self._store.asset(asset_id)) is not None:
                return known
            record = record or await self._record(asset_id)
            if record.get("kind") != "image" or not record.get("url"):
                return None
            return await self._store_copy(asset_id, str(record["url"]), record)

    async def _record(self, asset_id: str) -> JsonObject:
        """Return Scenario's record of an asset. It is empty if Scenario does not have the asset."""
        try:
            _, response = await self._upstream.json(UpstreamCall("GET", _asset_path(asset_id)))
        except UpstreamRefused as refusal:
            if refusal.status == NOT_FOUND:
                return {}
            raise
        return json_object(response.get("asset"))

    async def _store_copy(self, asset_id: str, url: str, record: JsonObject) -> ShimAsset:
        data = await self._upstream.download(url, MAX_BYTES)
        try:
            image = await self._storage.checked(data, form="as_sent")
        except JobError as error:
            reason = f"Asset {asset_id} of Scenario was not copied: {error.report.message}"
            raise NotCopied(UNREACHABLE, reason, code=error.code) from error
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
                is_hidden=record.get("isHidden") is True,
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
        """Return the link of an own asset to its copy at Scenario, which is uploaded now if necessary.

        The link is stored before the upload, so that a copy whose id was lost is found instead of uploaded again.
        """
        async with self._locks.setdefault(asset.id, asyncio.Lock()), self._slots:
            known = self._store.link(asset.id)
            if known is not None and known.scenario_id:
                return known
            scenario_id = "" if known is None else await self._lost_upload(known)
            if known is None:
                known = AssetLink(asset.id, "", self._storage.clock())
                self._store.add(known)
            scenario_id = scenario_id or await self._upload(asset, known)
            await self._change_tags_at(scenario_id, {"add": list(asset.tags)} if asset.tags else {})
            link = replace(known, scenario_id=scenario_id)
            await self._storage.write(lambda: self._store.add(link))
            return link

    async def _lost_upload(self, link: AssetLink) -> str:
        """Return Scenario's id of a copy whose upload did not end here, or an empty text. Its name has the own id."""
        if link.upload_id and (scenario_id := await self._imported(link.upload_id)):
            return scenario_id
        since = dt.datetime.fromtimestamp(link.created_at - MAX_CLOCK_ERROR_S, dt.UTC)
        query = f"&createdAfter={quote(since.isoformat(timespec='milliseconds'))}"
        records, token = await self.library_page("", query)
        while True:
            for record in records:
                if f"({link.id})" in str(json_object(record.get("metadata")).get("name")):
                    return str(record.get("id", ""))
            if not (token and records):
                return ""
            records, token = await self.library_page(token, query)

    async def library_page(self, token: str = "", query: str = "") -> tuple[list[JsonObject], str]:
        """Return a page of Scenario's asset records, oldest first, and the token of the next page or an empty text.

        Raises ShimError.
        """
        page = f"&paginationToken={quote(token, safe='')}" if token else ""
        order = f"pageSize={PAGE_SIZE}&sortBy=createdAt&sortDirection=asc"
        _, response = await self._upstream.json(UpstreamCall("GET", "/assets", f"{order}{query}{page}"))
        return list(map(json_object, response.get("assets") or [])), str(response.get("nextPaginationToken") or "")

    async def scenario_id(self, asset: ShimAsset) -> str:
        """Return the asset's id at Scenario, or an empty text if it is not there. Nothing is uploaded."""
        if asset.side is Side.SCENARIO:
            return asset.id
        link = self._store.link(asset.id)
        if link is None:
            return ""
        return link.scenario_id or await self._lost_upload(link)

    async def change_tags(self, asset: ShimAsset, changes: JsonObject) -> None:
        """Change the tags of an asset at Scenario, if it is there. Raises ShimError."""
        if scenario_id := await self.scenario_id(asset):
            try:
                await self._change_tags_at(scenario_id, changes)
            except UpstreamRefused as refusal:
                if refusal.status != NOT_FOUND:
                    raise

    async def _change_tags_at(self, scenario_id: str, changes: JsonObject) -> None:
        if changes:
            body = json.dumps(changes).encode()
            await self._upstream.json(
                UpstreamCall("PUT", f"{_asset_path(scenario_id)}/tags", "", body, "application/json")
            )

    async def delete(self, assets: Iterable[ShimAsset], unknown_ids: Iterable[str]) -> None:
        """Delete at Scenario the assets that are there, and the ids that the shim does not have. Raises ShimError."""
        ids = [scenario_id for each in assets if (scenario_id := await self.scenario_id(each))]
        ids += unknown_ids
        if not ids:
            return
        body = json.dumps({"assetIds": ids}).encode()
        try:
            await self._upstream.json(UpstreamCall("DELETE", "/assets", "", body, "application/json"))
        except UpstreamRefused as refusal:
            if refusal.status != NOT_FOUND or len(ids) > 1:  # A single missing asset is already deleted.
                raise

    async def _upload(self, asset: ShimAsset, link: AssetLink) -> str:
        """Upload an own asset to Scenario and return its id there."""
        data = await asyncio.to_thread(self._storage.blobs.get, asset.sha256)
        if len(data) > SMALL_UPLOAD_BYTES:
            return await self._upload_in_parts(asset, data, link)
        image = await asyncio.to_thread(lambda: base64.b64encode(data).decode("ascii"))
        body = {"name": _name_at_scenario(asset), "image": f"data:{asset.mime_type};base64,{image}"}
        content = json.dumps({**body, **({"hide": True} if asset.is_hidden else {})}).encode()
        _, response = await self._upstream.json(UpstreamCall("POST", "/assets", "", content, "application/json"))
        if not (scenario_id := json_object(response.get("asset")).get("id")):
            raise _unreadable("upload")
        return str(scenario_id)

    async def _upload_in_parts(self, asset: ShimAsset, data: bytes, link: AssetLink) -> str:
        """Upload an image in parts and return its id at Scenario. The upload's id is stored before its completion."""
        count = -(-len(data) // PART_BYTES)
        body = {"fileName": _name_at_scenario(asset), "contentType": asset.mime_type, "kind": "image", "parts": count}
        upload = await self._upload_call("POST", "/uploads", {**body, "fileSize": len(data)})
        for number, part in enumerate(upload.get("parts", [])):
            await self._upstream.put_part(part["url"], data[number * PART_BYTES : (number + 1) * PART_BYTES])
        self._store.add(replace(link, upload_id=upload["id"]))
        await self._upload_call("POST", f"/uploads/{upload['id']}/action", {"action": "complete"})
        if scenario_id := await self._imported(upload["id"]):
            return scenario_id
        raise ShimError(UNREACHABLE, f"Scenario did not import {asset.id}. Send the request again")

    async def _imported(self, upload_id: str) -> str:
        """Wait until Scenario has imported a completed upload, and return the asset's id.

        Empty if the upload was never completed, failed, or is unknown. Raises ShimError after UPLOAD_PATIENCE_S.
        """
        give_up_at = asyncio.get_running_loop().time() + UPLOAD_PATIENCE_S
        while True:
            try:
                upload = await self._upload_call("GET", f"/uploads/{upload_id}", None)
            except UpstreamRefused as refusal:
                if refusal.status == NOT_FOUND:
                    return ""
                raise
            if upload.get("entityId"):
                return str(upload["entityId"])
            if upload.get("status") in ("pending", "failed"):
                _log.warning("upload %s of Scenario is %s: %s", upload_id, upload["status"], upload.get("errorMessage"))
                return ""
            if asyncio.get_running_loop().time() > give_up_at:
                why = f"Scenario has not imported upload {upload_id} after {UPLOAD_PATIENCE_S:g} s"
                raise ShimError(UNREACHABLE, f"{why}. Send the request again")
            await asyncio.sleep(UPLOAD_POLL_S)

    async def _upload_call(self, method: str, path: str, body: JsonObject | None) -> JsonObject:
        content = json.dumps(body).encode() if body is not None else None
        _, response = await self._upstream.json(UpstreamCall(method, path, "", content, "application/json"))
        upload = json_object(response.get("upload"))
        if not upload.get("id"):
            raise _unreadable("upload in parts")
        return upload


def _asset_path(asset_id: str) -> str:
    return f"/assets/{quote(asset_id, safe='')}"


def _name_at_scenario(asset: ShimAsset) -> str:
    """Return the name of an own asset's copy, such as `knight (asset_x).png`: people and `_lost_upload` look for it."""
    name = Path(asset.name)
    return f"{name.stem[:MAX_STEM]} ({asset.id}){name.suffix[:MAX_SUFFIX]}"


def _unreadable(what: str) -> ShimError:
    return ShimError(UNREACHABLE, f"Scenario's response to an {what} has no id. Send the request again")


def _time(value: object, otherwise: float) -> float:
    """Return Scenario's time as seconds since 1970."""
    try:
        return dt.datetime.fromisoformat(str(value)).timestamp()
    except (ValueError, OverflowError):
        return otherwise
