"""The route `/shim/overview` of the web page: the endpoint's health, costs, callers and the routing table."""

from __future__ import annotations

import asyncio

from comfy_client.client import Client
from comfy_client.gateway.scenario.auth import Callers
from comfy_client.gateway.scenario.bridge.bridge import Bridge
from comfy_client.gateway.scenario.models import SHARED_OWNER
from comfy_client.gateway.scenario.page.search import JobSearch
from comfy_core.contract import JsonObject
from comfy_core.errors import ComfyClientError


class Overview:
    """What the web page shows besides the jobs. `bridge` is None if the shim has no key of Scenario."""

    def __init__(self, client: Client, search: JobSearch, callers: Callers, bridge: Bridge | None) -> None:
        self._client = client
        self._search = search
        self._callers = callers
        self._bridge = bridge

    async def read(self, owner: str) -> JsonObject:
        """Return the overview for a caller (`GET /shim/overview`). An administrator's has the costs of all callers."""
        is_admin = self._callers.is_admin(owner)
        health, costs = await asyncio.gather(self._health(), self._search.costs(None if is_admin else owner))
        others = await self._search.owners() if is_admin else []
        shared = [SHARED_OWNER] if self._bridge else []
        return {
            "health": health,
            "cost": {
                "jobs": costs.own_jobs,
                "seconds": round(costs.seconds, 1),
                "usd": None if costs.usd is None else round(costs.usd, 4),
            },
            "scenario": {"jobs": costs.forwarded_jobs, "creative_units": round(costs.units, 2)},
            "caller": {**self._caller(owner), "isAdmin": is_admin},
            "callers": [self._caller(each) for each in dict.fromkeys([owner, *sorted(others), *shared])],
            "hasScenario": self._bridge is not None,
            "routing": self._routing(),
        }

    async def _health(self) -> JsonObject:
        try:
            health = await asyncio.to_thread(self._client.health)
        except ComfyClientError as error:
            return {"why": "unreachable", "sentence": str(error), "workers": {}}
        return {"why": health.why, "sentence": health.sentence, "workers": dict(health.workers)}

    def _caller(self, owner: str) -> JsonObject:
        return {"id": owner, "name": self._callers.name(owner)}

    def _routing(self) -> list[JsonObject]:
        """Return the rules of the routing table."""
        rules = {} if self._bridge is None else self._bridge.table.rules
        return [{"capability": name, "side": rule.side.value, "percent": rule.percent} for name, rule in rules.items()]
