"""Finds the price of one second of a worker: in the environment, in RunPod's catalogue, or in the table of prices."""

from __future__ import annotations

from collections.abc import Mapping

from bench.endpoint.figures import Price
from comfy_client.deploy.api import RestApi
from comfy_client.deploy.offers import make_offers
from comfy_client.deploy.variables import API_KEY, REST_BASE_URL
from comfy_client.providers import GPU_USD_PER_S
from comfy_core.errors import ComfyClientError, ConfigError
from comfy_core.prices import AS_OF, POOLS
from comfy_core.validation import nearest

SCENARIO_PRICE = Price(0.0, "Scenario bills units of its own, not seconds")


def find_price(pool: str, environment: Mapping[str, str]) -> Price:
    """Return the price of a pool of GPUs. Raises ConfigError for an unknown pool or an invalid rate."""
    if usd_per_s := GPU_USD_PER_S.read(environment):
        return Price(usd_per_s, GPU_USD_PER_S.name)
    if live := _catalogue_price(pool, environment):
        return live
    if pool not in POOLS:
        raise ConfigError(
            f"--pool {pool!r} is not in the table of prices{nearest(pool, POOLS)}; or set {GPU_USD_PER_S.name}"
        )
    return Price(POOLS[pool].flex_usd_per_s, f"the table of {AS_OF}", pool)


def _catalogue_price(pool: str, environment: Mapping[str, str]) -> Price | None:
    """Return the current price in RunPod's catalogue; None if no key is set or the request fails."""
    key = API_KEY.read(environment)
    if not key:
        return None
    api = RestApi(key, REST_BASE_URL.read(environment))
    try:
        [offer] = make_offers([pool], api.catalogue(), is_by_price=False).pools
    except ConfigError:
        raise
    except ComfyClientError:
        return None
    finally:
        api.close()
    return Price(offer.usd_per_s, "RunPod's catalogue", pool) if offer.usd_per_s is not None else None
