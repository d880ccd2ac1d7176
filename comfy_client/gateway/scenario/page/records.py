"""Renders a job as the web page shows it: Scenario's record, its caller, durations, costs and images. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_client.gateway.scenario.job_times import JobTimes, job_times
from comfy_client.gateway.scenario.models import ShimJob, Side
from comfy_client.gateway.scenario.serializers import iso, job_record
from comfy_client.gateway.scenario.settings import CostRules
from comfy_core.contract import JsonObject
from comfy_core.error_codes import ErrorCode


def page_job(job: ShimJob, caller_name: str, assets: Sequence[JsonObject], costs: CostRules) -> JsonObject:
    """Return a job of the web page. `assets` has the records of those images of the job that exist."""
    times = job_times(job) if job.status.is_final else JobTimes()
    facts: JsonObject = {
        "queueSeconds": times.queue_s,
        "runSeconds": times.run_s,
        "wholeSeconds": times.whole_s,
        **_cost(job),
        "remedy": _remedy(job),
    }
    return {
        "job": job_record(job, costs),
        "createdAt": iso(job.created_at),
        "side": job.side.value,
        "caller": {"id": job.owner, "name": caller_name},
        "prompt": job.prompt,
        "assets": list(assets),
        **{name: value for name, value in facts.items() if value is not None},
    }


def _cost(job: ShimJob) -> JsonObject:
    """Return `usd` of an own job, with `estimatedUsd` before it has ended, or `creativeUnits` of Scenario's."""
    if job.side is Side.SCENARIO:
        billing = job.scenario_record.get("billing")
        charged = billing.get("cuCost") if isinstance(billing, dict) else None
        return {"creativeUnits": job.scenario_units or charged}
    return {"usd": job.cost_usd} if job.status.is_final else {"estimatedUsd": round(job.estimate_usd, 5)}


def _remedy(job: ShimJob) -> str | None:
    """Return the remedy of a job's error, unless its message ends with it."""
    remedy = ErrorCode(job.error_code).remedy if job.error_code in set(ErrorCode) else ""
    return remedy if remedy and remedy not in job.error else None
