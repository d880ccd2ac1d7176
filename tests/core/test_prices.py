"""The price table, the cost of a job, and the GPU that ComfyUI reports."""

from __future__ import annotations

import pytest

from comfy_core.comfyui.responses import SystemStats, read_system_stats
from comfy_core.prices import DEFAULT_POOL, POOLS, busy_s, job_usd, pool_of


def test_the_cheapest_pool_is_first() -> None:
    """Pools are sorted by price, and the default pool is one of them."""
    rates = [price.flex_usd_per_s for price in POOLS.values()]

    assert rates == sorted(rates)
    assert DEFAULT_POOL in POOLS


@pytest.mark.parametrize(("execution_s", "seconds"), [(0.0, 0), (0.2, 1), (1.0, 1), (9.0001, 9), (9.1, 10)])
def test_whole_seconds_are_billed(execution_s: float, seconds: int) -> None:
    """Each started second is billed as a whole second."""
    assert job_usd(execution_s, 0.5) == seconds * 0.5


@pytest.mark.parametrize(
    ("gpu", "pool"),
    [
        ("NVIDIA RTX A4000", "AMPERE_16"),
        ("NVIDIA RTX 2000 Ada Generation", "AMPERE_16"),
        ("NVIDIA L4", "AMPERE_24"),
        ("NVIDIA GeForce RTX 3090", "AMPERE_24"),
        ("NVIDIA GeForce RTX 4090", "ADA_24"),
        ("NVIDIA A40", "AMPERE_48"),
        ("NVIDIA RTX A6000", "AMPERE_48"),
        ("NVIDIA L40S", "ADA_48_PRO"),
        ("NVIDIA RTX 6000 Ada Generation", "ADA_48_PRO"),
        ("NVIDIA A100-SXM4-80GB", "AMPERE_80"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "BLACKWELL_96"),
        ("NVIDIA H100 80GB HBM3", "ADA_80_PRO"),
        ("NVIDIA H200", "HOPPER_141"),
        ("NVIDIA B200", "BLACKWELL_180"),
        ("NVIDIA GeForce RTX 5090", None),
        ("NVIDIA GH200 480GB", None),
        ("", None),
    ],
)
def test_a_gpu_belongs_to_the_pool_with_its_name(gpu: str, pool: str | None) -> None:
    """The driver's name of a GPU selects one pool, and a GPU that the table lacks selects none."""
    found = pool_of(gpu)

    assert (found.pool if found else None) == pool


@pytest.mark.parametrize(
    ("timings", "seconds"),
    [
        ({"total_s": 9.5, "queue_s": 2}, 7.5),
        ({"total_s": 9.5}, None),
        ({"total_s": "9.5", "queue_s": 0}, None),
        ({"total_s": 10**400, "queue_s": 0.5}, None),
        ({"total_s": 1.0, "queue_s": 2.0}, None),
    ],
)
def test_the_queue_is_not_busy_time(timings: dict[str, object], seconds: float | None) -> None:
    """The busy time of a job is its total time without the time in the queue; other timings have none."""
    assert busy_s(timings) == seconds


@pytest.mark.parametrize(
    ("device", "gpu"),
    [
        ("cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync", "NVIDIA GeForce RTX 4090"),
        ("cuda NVIDIA H200 : ", "NVIDIA H200"),
        ("cpu", None),
        ("mps", None),
    ],
)
def test_the_gpu_is_read_from_comfyui_s_device(device: str, gpu: str | None) -> None:
    """The GPU has the driver's name, without torch's device and allocator. A device without CUDA is no GPU."""
    assert read_system_stats({"devices": [{"name": device}]}) == SystemStats("unknown", gpu)
