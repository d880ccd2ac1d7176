"""Uploads in parts of the simulated API, for images above the limit of `POST assets`."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web
from PIL import Image

from .records import OWNER, Asset, Record, new_id, now
from .responses import problem

MIN_PART_BYTES = 5 * 1024 * 1024
POLLS_UNTIL_IMPORTED = 2


@dataclass
class ScenarioUpload:
    """One upload. `polls` counts the requests for its status since it was completed."""

    body: Record
    upload_id: str = field(default_factory=lambda: new_id("upload"))
    status: str = "pending"
    parts: dict[int, bytes] = field(default_factory=dict)
    entity_id: str = ""
    problem: str = ""
    polls: int = 0
    created_at: str = field(default_factory=now)

    @property
    def part_count(self) -> int:
        """The number of parts that were announced."""
        return int(self.body.get("parts", 1))

    def record(self, base_url: str) -> Record:
        """Return `upload` in the responses."""
        urls = [
            {"number": number, "url": f"{base_url}/parts/{self.upload_id}/{number}", "expires": self.created_at}
            for number in range(1, self.part_count + 1)
        ]
        return {
            "id": self.upload_id,
            "status": self.status,
            "fileName": self.body["fileName"],
            "kind": self.body.get("kind", "image"),
            "source": "multipart",
            "createdAt": self.created_at,
            "updatedAt": now(),
            **({"parts": urls} if self.status == "pending" else {}),
            **({"entityId": self.entity_id} if self.entity_id else {}),
            **({"errorMessage": self.problem} if self.problem else {}),
            **OWNER,
        }


class ScenarioUploads:
    """The uploads. `add_asset` gets the asset of each imported one. `base_url` returns the server's URL."""

    def __init__(self, add_asset: Callable[[Asset], None], base_url: Callable[[], str]) -> None:
        self.by_id: dict[str, ScenarioUpload] = {}
        self._add_asset = add_asset
        self._base_url = base_url

    async def create(self, request: web.Request) -> web.Response:
        """Handle POST uploads."""
        body: Record = await request.json()
        if not body.get("fileName"):
            return problem(400, "fileName is required")
        upload = ScenarioUpload(body)
        self.by_id[upload.upload_id] = upload
        return self._response(upload)

    async def put_part(self, request: web.Request) -> web.Response:
        """Handle PUT to the URL of a part, which needs no key."""
        upload = self.by_id.get(request.match_info["upload"])
        if upload is None or upload.status != "pending":
            return web.Response(status=403, text="Access Denied")
        upload.parts[int(request.match_info["number"])] = await request.read()
        return web.Response()

    async def get(self, request: web.Request) -> web.Response:
        """Handle GET uploads/{id}. A completed upload is imported at the second request."""
        upload = self.by_id.get(request.match_info["upload"])
        if upload is None:
            return problem(404, "Upload not found")
        if upload.status == "validating":
            upload.polls += 1
            if upload.polls >= POLLS_UNTIL_IMPORTED:
                self._import(upload)
        return self._response(upload)

    async def act(self, request: web.Request) -> web.Response:
        """Handle POST uploads/{id}/action."""
        upload = self.by_id.get(request.match_info["upload"])
        if upload is None:
            return problem(404, "Upload not found")
        if (await request.json()).get("action") != "complete" or upload.status != "pending":
            return problem(400, "The upload cannot be completed")
        sizes = [len(upload.parts.get(number, b"")) for number in range(1, upload.part_count + 1)]
        if 0 in sizes or any(size < MIN_PART_BYTES for size in sizes[:-1]):
            return problem(400, "A part is missing or too small")
        upload.status = "validating"
        return self._response(upload)

    def _import(self, upload: ScenarioUpload) -> None:
        data = b"".join(data for _, data in sorted(upload.parts.items()))
        try:
            with Image.open(io.BytesIO(data)) as image:
                mime_type = Image.MIME[image.format or ""]
        except (OSError, KeyError):
            upload.status, upload.problem = "failed", "Not an image"
            return
        asset = Asset(data, mime_type, "uploaded", {"name": upload.body["fileName"]})
        self._add_asset(asset)
        upload.status, upload.entity_id = "imported", asset.asset_id

    def _response(self, upload: ScenarioUpload) -> web.Response:
        return web.json_response({"upload": upload.record(self._base_url())})
