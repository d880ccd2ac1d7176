"""The price of one second of a worker: from the environment, else from RunPod's catalogue, else the dated table."""

from __future__ import annotations

from collections.abc import Mapping

from bench.endpoint.figures import Price
from comfy_client.deploy.api import RestApi
from comfy_client.deploy.offers import make_offers
from comfy_client.deploy.variables import REST_URL, value_of
from comfy_client.prices import AS_OF, POOLS
from comfy_client.providers import EnvironmentVariable
from comfy_core.errors import ComfyClientError, ConfigError
from comfy_core.validation import nearest

RATE = EnvironmentVariable(
    "COMFY_CLIENT_GPU_USD_PER_S",
    "What a second of a worker costs, in dollars.",
    "RunPod's catalogue where RUNPOD_API_KEY is set, else the table of prices, where it is absent",
)

SCENARIO = Price(0.0, "Scenario bills units of its own, and no seconds")


def find_price(pool: str, environment: Mapping[str, str]) -> Price:
    """Return the price of a pool of GPUs. Raises ConfigError for an unknown pool or an invalid rate."""
    if rate := environment.get(RATE.name, "").strip():
        try:
            usd_per_s = float(rate)
        except ValueError:
            usd_per_s = -1.0
        if not 0 < usd_per_s < 1:
            raise ConfigError(f"{RATE.name}={rate!r} is not a rate: give dollars per second, such as 0.00031")
        return Price(usd_per_s, RATE.name)
    if live := _of_catalogue(pool, environment):
        return live
    if pool not in POOLS:
        raise ConfigError(f"--pool {pool!r} is not in the table of prices{nearest(pool, POOLS)}; or set {RATE.name}")
    return Price(POOLS[pool].flex_usd_per_s, f"the table of {AS_OF}", pool)


def _of_catalogue(pool: str, environment: Mapping[str, str]) -> Price | None:
    """Return the price that RunPod's catalogue has now; None if no key is set or the request fails."""
    key = value_of(environment, "RUNPOD_API_KEY")
    if not key:
        return None
    api = RestApi(key, value_of(environment, "RUNPOD_REST_BASE_URL") or REST_URL)
    try:
        [offer] = make_offers([pool], api.catalogue(), is_by_price=False).pools
    except ConfigError:
        raise
    except ComfyClientError:
        return None
    finally:
        api.close()
    return Price(offer.usd_per_s, "RunPod's catalogue", pool) if offer.usd_per_s is not None else None
