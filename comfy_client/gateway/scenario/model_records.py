"""The list of models: Flux.1-dev, and the studio's models. It is the same for every caller."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_client.gateway.scenario.bridge.bridge import Bridge
from comfy_client.gateway.scenario.errors import bad_request, not_found
from comfy_client.gateway.scenario.mapping import known_models
from comfy_client.gateway.scenario.pagination import Query
from comfy_client.gateway.scenario.serializers import model_records
from comfy_client.gateway.scenario.studio_models import StudioModel
from comfy_core.contract import Fault, JsonObject

MAX_BULK = 200
_DEFAULT_SIZE = 100
MAX_PAGE_SIZE = 500
_FILTERS = ("privacy", "status", "type")


class ModelCatalog:
    """Flux.1-dev and the studio's models. All methods ignore the owner."""

    def __init__(self, models: Mapping[str, StudioModel], bridge: Bridge | None = None) -> None:
        self._bridge = bridge
        self._records = model_records(models, has_scenario=bridge is not None)
        self._known = known_models(models)

    def list(self, _owner: str, query: Query) -> JsonObject:
        """Return a page of models (`GET /models`, with `privacy`, `status`, `type` filters). Raises ShimError (400)."""
        size = query.get("pageSize") or str(_DEFAULT_SIZE)
        if not (size.isascii() and size.isdigit() and len(size) < 4 and 1 <= int(size) <= MAX_PAGE_SIZE):  # noqa: PLR2004 - digits of MAX_PAGE_SIZE
            raise bad_request([Fault("pageSize", f"must be a whole number from 1 to {MAX_PAGE_SIZE}")])
        begin = query.get("paginationToken") or "0"
        begin_at = int(begin) if begin.isascii() and begin.isdigit() and len(begin) < 10 else 0  # noqa: PLR2004 - no endless number
        filters = {name: query[name].split(",") for name in _FILTERS if query.get(name)}
        found = [each for each in self._records if all(each[name] in values for name, values in filters.items())]
        end_at = begin_at + int(size)
        more = {"nextPaginationToken": str(end_at)} if end_at < len(found) else {}
        return {"models": found[begin_at:end_at], **more}

    def list_public(self, owner: str, query: Query) -> JsonObject:
        """Return a page of the base models (`GET /models/public`)."""
        return self.list(owner, {**query, "privacy": "public"})

    async def get(self, _owner: str, model_id: str) -> JsonObject:
        """Return a model (`GET /models/{id}`), the shim's or Scenario's.

        Raises ShimError (404), which lists the available models if the shim has no key of Scenario.
        """
        for record in self._records:
            if record["id"] == model_id:
                return {"model": record}
        if self._bridge is not None:
            return await self._bridge.model(model_id)
        raise not_found("model", model_id, self._known)

    async def get_bulk(self, _owner: str, body: object) -> JsonObject:
        """Return models by id (`POST /models/get-bulk`), the shim's and then Scenario's. Unknown ids are ignored.

        Raises ShimError (400).
        """
        match body:
            case {"modelIds": [*ids]} if len(ids) <= MAX_BULK:
                found = [each for each in self._records if each["id"] in ids]
                others = [each for each in ids if all(record["id"] != each for record in found)]
                if self._bridge is not None and others:
                    found += await self._bridge.models(others)
                return {"models": found}
        raise bad_request([Fault("modelIds", f"must be a list of at most {MAX_BULK} model ids")])
