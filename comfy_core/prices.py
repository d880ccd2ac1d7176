"""Dated table of RunPod serverless prices per GPU second, and the cost of a job. No I/O.

The prices are from docs/reference/runpod.md#gpu-pools-and-prices (RunPod's pricing page) and become outdated.
`comfy-client deploy` reads current prices from RunPod's catalogue. WORKER_GPU_USD_PER_S and COMFY_CLIENT_GPU_USD_PER_S
set another price.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

AS_OF = "2026-08-20"
"""The date on which the table was read from RunPod's pricing page."""


@dataclass(frozen=True)
class PoolPrice:
    """One pool of GPUs. `flex_usd_per_s` is the price of on-demand workers, `active_usd_per_s` of always-on workers."""

    pool: str
    gpus: tuple[str, ...]
    memory_gb: int
    flex_usd_per_s: float
    active_usd_per_s: float | None = None


POOLS: Mapping[str, PoolPrice] = {
    price.pool: price
    for price in (
        PoolPrice("AMPERE_16", ("A4000", "A4500", "RTX 4000 Ada", "RTX 2000 Ada"), 16, 0.00016, 0.00011),
        PoolPrice("AMPERE_24", ("L4", "A5000", "RTX 3090"), 24, 0.00019, 0.00013),
        PoolPrice("ADA_24", ("RTX 4090",), 24, 0.00031, 0.00021),
        PoolPrice("AMPERE_48", ("A6000", "A40"), 48, 0.00034, 0.00024),
        PoolPrice("ADA_48_PRO", ("L40", "L40S", "RTX 6000 Ada"), 48, 0.00053, 0.00037),
        PoolPrice("AMPERE_80", ("A100",), 80, 0.00076, 0.00060),
        PoolPrice("BLACKWELL_96", ("RTX PRO 6000",), 96, 0.00111),
        PoolPrice("ADA_80_PRO", ("H100",), 80, 0.00116, 0.00093),
        PoolPrice("HOPPER_141", ("H200",), 141, 0.00155, 0.00124),
        PoolPrice("BLACKWELL_180", ("B200",), 180, 0.00240, 0.00190),
    )
}
"""RunPod's pools by id, cheapest first. The pool of the RTX 5090 is missing, because its price is unknown.

Source: docs/reference/runpod.md#gpu-pools-and-prices.
"""

_MAX_JOB_S = 7 * 86_400.0

DEFAULT_POOL = "ADA_24"
"""The pool of the RTX 4090, which deploy.toml lists first."""


def pool_of(gpu: str) -> PoolPrice | None:
    """Return the pool of a GPU, given its name in the driver, such as `NVIDIA GeForce RTX 4090`. None if unknown."""
    return next((pool for pool in POOLS.values() if any(re.search(rf"\b{name}\b", gpu) for name in pool.gpus)), None)


def busy_s(timings: Mapping[str, object]) -> float | None:
    """Return how long a job kept its worker busy, from the result's `timings`. None if they do not have it.

    The time in ComfyUI's queue is left out: a worker with two jobs runs the other one in that time.
    """
    match timings:
        case {"total_s": int() | float() as total_s, "queue_s": int() | float() as queue_s} if (
            0 <= queue_s <= total_s < _MAX_JOB_S
        ):
            return total_s - queue_s
    return None


def job_usd(seconds: float, usd_per_s: float) -> float:
    """Return the cost in USD of `seconds` seconds of a worker. RunPod bills whole seconds, rounded up.

    Source: docs/reference/runpod.md#gpu-pools-and-prices.

    Not included: the worker's cold start and idle time, which all its jobs share.
    """
    return round(math.ceil(round(seconds, 3)) * usd_per_s, 9)
