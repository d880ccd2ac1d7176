"""Prices and availability of RunPod's GPU pools, from its catalogue or else from the dated table. No I/O.

The catalogue (GET /v2/catalog/gpus?include=AVAILABILITY&product=SERVERLESS) lists GPU types, each with its pool,
its memory in GB, `price.serverless` in USD per hour for one GPU, and `availability` (NONE, LOW, MEDIUM, HIGH).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from comfy_client.deploy.description import MIN_MEMORY_GB
from comfy_core.contract import JsonObject
from comfy_core.errors import ConfigError
from comfy_core.prices import AS_OF, POOLS
from comfy_core.validation import nearest

LEVELS = ("NONE", "LOW", "MEDIUM", "HIGH")
HOUR_S = 3600


@dataclass(frozen=True)
class Offer:
    """One pool of GPUs, with its price in USD per second. Values that are unknown are None."""

    pool: str
    gpus: tuple[str, ...] = ()
    memory_gb: int | None = None
    usd_per_s: float | None = None
    availability: str | None = None

    @property
    def sentence(self) -> str:
        """One line of text for the user."""
        price = (
            f"${self.usd_per_s:.5f} per second, ${self.usd_per_s * HOUR_S:.3f} per hour"
            if self.usd_per_s is not None
            else "price unknown"
        )
        free = f", availability {self.availability}" if self.availability else ""
        memory = f" ({self.memory_gb} GB)" if self.memory_gb else ""
        is_too_small = self.memory_gb is not None and self.memory_gb < MIN_MEMORY_GB
        warning = f"; less than the {MIN_MEMORY_GB} GB that Flux.1-dev needs" if is_too_small else ""
        return f"{self.pool}: {', '.join(self.gpus) or 'unknown GPUs'}{memory}, {price}{free}{warning}"


@dataclass(frozen=True)
class Offers:
    """The pools of a deployment in order of preference, and the source of their prices."""

    pools: tuple[Offer, ...]
    source: str

    @property
    def names(self) -> tuple[str, ...]:
        """The ids of the pools."""
        return tuple(offer.pool for offer in self.pools)


def make_offers(
    pools: Sequence[str], catalogue: Sequence[JsonObject] | None, *, is_by_price: bool, excluded: Iterable[str] = ()
) -> Offers:
    """Return the offers for `pools`. With `is_by_price` the cheapest is first, and unknown prices are last.

    `excluded` has the ids of GPUs that are not used. Raises ConfigError for a pool that has no other GPU in the
    catalogue.
    """
    live = _offers_by_pool(catalogue, frozenset(excluded)) if catalogue else {}
    unknown = [pool for pool in pools if live and pool not in live]
    if unknown:
        raise ConfigError(
            f"gpu.pools: unknown pool {unknown[0]}{nearest(unknown[0], live) or '.'} Pools, without gpu.excluded: "
            f"{', '.join(sorted(live))}."
        )
    found = [live.get(pool) or _offer_from_table(pool) for pool in pools]
    if is_by_price:
        found.sort(key=lambda offer: float("inf") if offer.usd_per_s is None else offer.usd_per_s)
    source = "RunPod's catalogue, now" if live else f"the table of {AS_OF}, as the catalogue was not available"
    return Offers(tuple(found), source)


def _offers_by_pool(catalogue: Sequence[JsonObject], excluded: frozenset[str]) -> Mapping[str, Offer]:
    """Return the pools of a catalogue by id.

    A pool has the price of its most expensive GPU, the memory of its smallest one, and the availability of the most
    available one.
    """
    offers: dict[str, Offer] = {}
    for gpu in catalogue:
        match gpu:
            case {"id": str(gpu_id), "pool": str(pool)} if gpu_id not in excluded:
                offers[pool] = _with_gpu(offers.get(pool) or Offer(pool), gpu)
    return offers


def _with_gpu(offer: Offer, gpu: JsonObject) -> Offer:
    name = gpu["name"] if isinstance(gpu.get("name"), str) else gpu["id"]
    memory = [size for size in (offer.memory_gb, gpu.get("memory")) if isinstance(size, int)]
    rates = [] if offer.usd_per_s is None else [offer.usd_per_s]
    match gpu.get("price"):
        case {"serverless": int() | float() as usd_per_h}:
            rates.append(usd_per_h / HOUR_S)
    levels = [level for level in (offer.availability, gpu.get("availability")) if level in LEVELS]
    return Offer(
        offer.pool,
        (*offer.gpus, name),
        min(memory, default=None),
        max(rates, default=None),
        max(levels, key=LEVELS.index, default=None),
    )


def _offer_from_table(pool: str) -> Offer:
    known = POOLS.get(pool)
    return Offer(pool, known.gpus, known.memory_gb, known.flex_usd_per_s) if known else Offer(pool)
