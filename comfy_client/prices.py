"""Dated table of RunPod serverless prices per GPU second, and the cost of a job. No I/O.

The prices are from docs/reference/runpod.md#gpu-pools-and-prices (RunPod's pricing page) and become outdated.
`comfy-client deploy` reads current prices from RunPod's catalogue. To set your own rate, use
SCENARIO_SHIM_GPU_USD_PER_S or `comfy-client batch --usd-per-s`.
"""

from __future__ import annotations

import math
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

DEFAULT_POOL = "ADA_24"
"""The pool of the RTX 4090, which deploy.toml lists first."""


def job_usd(execution_s: float, usd_per_s: float) -> float:
    """Return the cost in USD of `execution_s` seconds of a worker. RunPod bills whole seconds, rounded up.

    Source: docs/reference/runpod.md#gpu-pools-and-prices.

    Not included: the worker's cold start and idle time, which all its jobs share.
    """
    return math.ceil(round(execution_s, 3)) * usd_per_s
