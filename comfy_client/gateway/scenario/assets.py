"""Assets (generated and uploaded images) in Scenario's JSON format. A caller only sees its own assets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from comfy_client.gateway.scenario.asset_storage import AssetStorage, new_id
from comfy_client.gateway.scenario.bodies import Attached, decode_base64_in_pieces
from comfy_client.gateway.scenario.bridge.assets import AssetBridge
from comfy_client.gateway.scenario.errors import bad_request, not_found
from comfy_client.gateway.scenario.filters import Filter
from comfy_client.gateway.scenario.models import ShimAsset
from comfy_client.gateway.scenario.pagination import Query, fetch_page, parse_page_query
from comfy_client.gateway.scenario.serializers import AssetUrl, asset_record
from comfy_core.contract import OUTPUT_FORMATS, Fault, JsonObject, is_asset_id
from comfy_core.request.encoded import decode_base64

MAX_BULK = 200
MAX_DELETED = 100
_MAX_TAGS = 100
_TAG_FIELDS = ("add", "delete")
UNKNOWN_ASSET_ADVICE = (
    "The shim only has assets that were generated or uploaded here with this key. If this is an asset of Scenario, set "
    "SCENARIO_SHIM_UPSTREAM_API_KEY, so that the shim copies it (docs/bridge.md), or download it there, upload it here "
    "(POST /assets), and use the new id"
)


@dataclass(frozen=True)
class StoredImage:
    """An image file with its media type and name."""

    data: bytes
    mime_type: str
    name: str


class Assets:
    """The assets in `storage`.

    Args:
        url_of: returns the URL of an asset's image.
        bridge: copies assets of Scenario on first use; None if the shim has no key of Scenario.
    """

    def __init__(self, storage: AssetStorage, url_of: AssetUrl, bridge: AssetBridge | None = None) -> None:
        self._storage = storage
        self._bridge = bridge
        self._store = storage.store
        self._url_of = url_of

    async def upload(self, owner: str, body: object) -> JsonObject:
        """Store an image sent as base64 or a data URL (`POST /assets`). Raises ShimError, or JobError."""
        match body:
            case {"name": str(name), "image": str(image), **rest} if name.strip():
                data = await asyncio.to_thread(decode_image, image, "image")
                asset = await self.add(owner, data, name, is_hidden=bool(rest.get("hide")))
                return {"asset": self.record(asset)}
        raise bad_request([Fault("", "must have the strings name and image (base64 or a data URL)")])

    async def add(self, owner: str, data: bytes, name: str, *, is_hidden: bool = False) -> ShimAsset:
        """Store an uploaded image. Raises JobError if the image is invalid or too large, or ShimError (507)."""
        image = await self._storage.checked(data, form="as_sent")
        now = self._storage.clock()
        async with self._storage.stored(image) as sha256:
            asset = ShimAsset(
                id=new_id("asset"),
                owner=owner,
                created_at=now,
                updated_at=now,
                sha256=sha256,
                mime_type=image.mime_type,
                width=image.width,
                height=image.height,
                bytes=len(image.data),
                name=name[:255],
                type="uploaded",
                source="uploaded",
                is_hidden=is_hidden,
            )
            self._store.add(asset)
        return asset

    def record(self, asset: ShimAsset) -> JsonObject:
        """Return an asset as JSON."""
        return asset_record(asset, self._url_of, has_scenario=self._bridge is not None)

    async def get(self, owner: str, asset_id: str) -> JsonObject:
        """Return one asset (`GET /assets/{id}`). Raises ShimError (404)."""
        return {"asset": self.record(await self.find(owner, asset_id))}

    async def find(self, owner: str, asset_id: str) -> ShimAsset:
        """Return an asset that the owner may see. Raises ShimError (404)."""
        if self._bridge is not None and is_asset_id(asset_id):
            await self._bridge.copied(asset_id)
        asset = self._store.asset(asset_id, owner)
        if asset is None:
            advice = UNKNOWN_ASSET_ADVICE if self._bridge is None else "Scenario has no image with this id either"
            raise not_found("asset", asset_id, advice)
        return asset

    async def copy_missing(self, asset_ids: Iterable[str]) -> None:
        """Copy those assets of Scenario that the shim does not have, if it has a key of Scenario. Raises ShimError."""
        if self._bridge is not None:
            await self._bridge.copy_missing(each for each in asset_ids if is_asset_id(each))

    def list(self, owner: str, query: Query) -> JsonObject:
        """Return a page of assets (`GET /assets`), without hidden ones."""
        page = parse_page_query(ShimAsset, owner, query, only=Filter().where("is_hidden = ?", 0))
        rows, next_page = fetch_page(self._store, ShimAsset, page)
        return {"assets": [self.record(row) for row in rows], **next_page}

    async def get_bulk(self, owner: str, body: object) -> JsonObject:
        """Return assets by id (`POST /assets/get-bulk`). Unknown ids are ignored. Raises ShimError (400)."""
        ids = _ids(body, MAX_BULK)
        await self.copy_missing(ids)
        rows = [self._store.asset(each, owner) for each in ids]
        return {"assets": [self.record(row) for row in rows if row is not None]}

    async def delete(self, owner: str, body: object) -> JsonObject:
        """Delete assets by id (`DELETE /assets`), and the image files that nothing else uses. Unknown ids are ignored.

        With a key of Scenario, the assets and ids that the shim does not have are first deleted there. If that fails,
        nothing is deleted here. Raises ShimError.
        """
        ids = _ids(body, MAX_DELETED)
        rows = [row for each in ids if (row := self._store.asset(each, owner)) is not None]
        if self._bridge is not None:
            unknown = [each for each in ids if is_asset_id(each) and self._store.asset(each) is None]
            await self._bridge.delete(rows, unknown)
        self._store.delete_assets([row.id for row in rows])
        await self._storage.delete_unused(*(row.sha256 for row in rows))
        return {}

    async def update_tags(self, owner: str, asset_id: str, body: object) -> JsonObject:
        """Add and remove tags (`PUT /assets/{id}/tags`).

        Raises ShimError: 404, or 400 for invalid lists or too many tags. With `strict`, adding an existing tag or
        removing a missing tag also raises ShimError (400). Tags of an asset that is also at Scenario are first changed
        there. If that fails, they do not change here.
        """
        asset = await self.find(owner, asset_id)
        change = _tag_change(asset, body)
        if self._bridge is not None:
            await self._bridge.change_tags(asset, {name: tags for name in _TAG_FIELDS if (tags := _tags(body, name))})
            asset = await self.find(owner, asset_id)  # It may have changed during the call.
            change = _tag_change(asset, body)
        self._store.add(replace(asset, tags=change.tags, updated_at=self._storage.clock()))
        return {"added": change.added, "deleted": change.deleted}

    async def download(self, owner: str, asset_id: str, body: object) -> JsonObject:
        """Return an asset's download URL, optionally in another format (`POST /assets/{id}/download`).

        Raises ShimError: 404, or 400 for an unsupported format.
        """
        asset = await self.find(owner, asset_id)
        wanted = body.get("targetFormat") if isinstance(body, dict) else None
        if wanted is None:
            return {"url": self._url_of(asset.id), "mimeType": asset.mime_type}
        name = {"jpg": "jpeg"}.get(str(wanted), str(wanted))
        if name not in OUTPUT_FORMATS:
            raise bad_request([Fault("targetFormat", f"must be one of {', '.join(OUTPUT_FORMATS)}")])
        return {"url": f"{self._url_of(asset.id)}&format={name}", "mimeType": OUTPUT_FORMATS[name]}

    async def image(self, asset_id: str, *, output_format: str = "", width: int = 0) -> StoredImage:
        """Return an asset's image, converted if `output_format` or `width` is given. Raises ShimError (404).

        The owner is not checked: the signed URL authorises the caller.
        """
        asset = self._store.asset(asset_id)
        if asset is None:
            raise not_found("asset", asset_id)
        try:
            data = await asyncio.to_thread(self._storage.blobs.get, asset.sha256)
        except FileNotFoundError:
            raise not_found("image of asset", asset_id) from None
        if not output_format and not width:
            return StoredImage(data, asset.mime_type, asset.name)
        wanted = output_format or asset.mime_type.partition("/")[2]
        wanted = wanted if wanted in OUTPUT_FORMATS else "png"
        changed = await self._storage.converted(data, wanted, width)
        return StoredImage(changed.data, changed.mime_type, f"{asset.name.rpartition('.')[0] or asset.name}.{wanted}")


def decode_image(text: str, field: str) -> bytes:
    """Return the bytes of base64 or of a data URL. Raises ShimError (400)."""
    try:
        return decode_base64_in_pieces(text.data) if isinstance(text, Attached) else decode_base64(text)
    except ValueError as error:
        why = str(error) if str(error).startswith("is ") else "is not base64"
        raise bad_request([Fault(field, why)]) from None


def _ids(body: object, maximum: int) -> Sequence[str]:
    match body:
        case {"assetIds": [*ids]} if all(isinstance(each, str) for each in ids):
            if len(ids) > maximum:
                raise bad_request([Fault("assetIds", f"has {len(ids)} ids; the maximum is {maximum}")])
            return list(dict.fromkeys(ids))
    raise bad_request([Fault("assetIds", "must be a list of asset ids")])


@dataclass(frozen=True)
class _TagChange:
    """The tags of an asset after a change, and the tags that the change adds and deletes."""

    tags: tuple[str, ...]
    added: list[str]
    deleted: list[str]


def _tag_change(asset: ShimAsset, body: object) -> _TagChange:
    """Return the result of a tags request. Raises ShimError (400)."""
    added, deleted = (_tags(body, name) for name in _TAG_FIELDS)
    if isinstance(body, dict) and body.get("strict"):
        faults = [Fault("add", f"has {tag[:40]!r}, which the asset already has") for tag in added if tag in asset.tags]
        faults += [
            Fault("delete", f"has {tag[:40]!r}, which the asset does not have")
            for tag in deleted
            if tag not in asset.tags
        ]
        if faults:
            raise bad_request(faults)
    tags = tuple(dict.fromkeys(tag for tag in (*asset.tags, *added) if tag not in deleted))
    if len(tags) > _MAX_TAGS:
        raise bad_request([Fault("add", f"would result in {len(tags)} tags; an asset can have at most {_MAX_TAGS}")])
    return _TagChange(
        tags, [tag for tag in added if tag not in asset.tags], [tag for tag in deleted if tag in asset.tags]
    )


def _tags(body: object, name: str) -> list[str]:
    """Return a list of tags in a tags request. Raises ShimError (400)."""
    value = body.get(name) if isinstance(body, dict) else None
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, str) and 0 < len(each) <= 64 for each in value):  # noqa: PLR2004 - a tag's length
        raise bad_request([Fault(name, "must be a list of strings of at most 64 characters")])
    return list(dict.fromkeys(value))
