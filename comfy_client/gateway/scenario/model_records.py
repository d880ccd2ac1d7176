"""The list of models: Flux.1-dev, and the studio's models. It is the same for every caller."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from comfy_client.gateway.scenario.bridge.bridge import Bridge
from comfy_client.gateway.scenario.errors import ShimError, bad_request, not_found
from comfy_client.gateway.scenario.mapping import known_models
from comfy_client.gateway.scenario.pagination import Query
from comfy_client.gateway.scenario.serializers import model_records
from comfy_client.gateway.scenario.studio_models import StudioModel
from comfy_core.contract import Fault, JsonObject

MAX_BULK = 200
_DEFAULT_SIZE = 100
MAX_PAGE_SIZE = 500
_FILTERS = ("privacy", "status", "type")
MAX_EMPTY_PAGES = 10
"""Pages of Scenario's models without a model that the shim lacks. The SDK stops at an empty page."""
_OF_SCENARIO = "scenario:"
"""The begin of the pagination tokens of Scenario's models."""

_log = logging.getLogger(__name__)


class ModelCatalog:
    """Flux.1-dev and the studio's models. All methods ignore the owner."""

    def __init__(self, models: Mapping[str, StudioModel], bridge: Bridge | None = None) -> None:
        self._bridge = bridge
        self._records = model_records(models, has_scenario=bridge is not None)
        self._known = known_models(models)

    def has(self, model_id: str) -> bool:
        """Return whether the shim has a model itself."""
        return any(each["id"] == model_id for each in self._records)

    async def list(self, _owner: str, query: Query) -> JsonObject:
        """Return a page of models (`GET /models`, with `privacy`, `status`, `type` filters). Raises ShimError (400).

        With the bridge, Scenario's models follow the shim's. They are left out if Scenario does not respond.
        """
        size = query.get("pageSize") or str(_DEFAULT_SIZE)
        if not (size.isascii() and size.isdigit() and len(size) < 4 and 1 <= int(size) <= MAX_PAGE_SIZE):  # noqa: PLR2004 - digits of MAX_PAGE_SIZE
            raise bad_request([Fault("pageSize", f"must be a whole number from 1 to {MAX_PAGE_SIZE}")])
        begin = query.get("paginationToken") or "0"
        if self._bridge is not None and begin.startswith(_OF_SCENARIO):
            return await self._page_of_scenario(self._bridge, query, begin.removeprefix(_OF_SCENARIO), int(size))
        begin_at = int(begin) if begin.isascii() and begin.isdigit() and len(begin) < 10 else 0  # noqa: PLR2004 - no endless number
        filters = {name: query[name].split(",") for name in _FILTERS if query.get(name)}
        found = [each for each in self._records if all(each[name] in values for name, values in filters.items())]
        end_at = begin_at + int(size)
        page = found[begin_at:end_at]
        if end_at < len(found):
            return {"models": page, "nextPaginationToken": str(end_at)}
        if self._bridge is None:
            return {"models": page}
        if len(page) == int(size):
            return {"models": page, "nextPaginationToken": _OF_SCENARIO}
        try:
            rest = await self._page_of_scenario(self._bridge, query, "", int(size) - len(page))
        except ShimError as error:
            _log.warning("GET /models without the models of Scenario: %s", error)
            return {"models": page}
        return {**rest, "models": page + rest["models"]}

    async def _page_of_scenario(self, bridge: Bridge, query: Query, token: str, size: int) -> JsonObject:
        """Return a page of Scenario's models, without those that the shim has itself. Raises ShimError."""
        parameters = {**query, "pageSize": str(size)}
        others: list[JsonObject] = []
        for _ in range(MAX_EMPTY_PAGES):
            parameters["paginationToken"] = token
            response = await bridge.model_page({name: value for name, value in parameters.items() if value})
            listed = [each for each in response.get("models") or [] if isinstance(each, dict)]
            others = [each for each in listed if not self.has(str(each.get("id")))]
            token = str(response.get("nextPaginationToken") or "")
            if others or not token:
                break
        return {"models": others, **({"nextPaginationToken": f"{_OF_SCENARIO}{token}"} if token else {})}

    async def list_public(self, owner: str, query: Query) -> JsonObject:
        """Return a page of the base models (`GET /models/public`)."""
        return await self.list(owner, {**query, "privacy": "public"})

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
