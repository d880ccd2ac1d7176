"""GenerationResult.cost: from the worker, from a price of the client's, or None."""

from __future__ import annotations

import pytest

from comfy_client.providers.interface import JobState, JobStatus
from comfy_client.providers.results import read_result

OUTPUT = {"images": [], "texts": ["a text"], "gpu": "NVIDIA L4", "cost": 0.0019}
TIMINGS = {"total_s": 12.2, "queue_s": 2.5}


@pytest.mark.parametrize(
    ("changes", "usd_per_s", "cost"),
    [
        ({}, None, 0.0019),
        ({"cost": None}, None, None),
        ({"cost": 0}, None, 0),
        ({"cost": "free"}, None, None),
        ({"cost": -1.0}, None, None),
        ({"cost": 10**400}, None, None),
        ({"timings": TIMINGS}, 0.001, 0.01),
        ({}, 0.001, 0.013),
    ],
)
def test_the_cost_is_the_worker_s_or_that_of_the_client_s_price(
    changes: dict[str, object], usd_per_s: float | None, cost: float | None
) -> None:
    """A price of the client's is multiplied by the worker's busy time, or else by RunPod's time.

    Without such a price, the cost is the one that the worker computed.
    """
    status = JobStatus("j1", JobState.SUCCEEDED, output={**OUTPUT, **changes}, execution_s=12.5)
    result = read_result(status, "comfyui", usd_per_s)

    assert (result.cost, result.gpu) == (cost, "NVIDIA L4")
