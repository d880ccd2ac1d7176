"""Base class of the providers that send jobs to a RunPod serverless endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from comfy_client.providers.interface import Health, JobStatus
from comfy_client.providers.results import job_cost
from comfy_client.providers.runpod_endpoint import RunPodEndpoint
from comfy_core.workflows import Workflow


class RunPodProvider:
    """Implements the methods of Provider that are the same for all workers on an endpoint.

    Args:
        endpoint: the RunPod endpoint.
        workflows: the templates that requests may name.
        usd_per_s: the price of one second of a worker, for the cost of results; see `read_result`.
    """

    jobs_outlive_process = True

    def __init__(
        self, endpoint: RunPodEndpoint, workflows: Mapping[str, Workflow], *, usd_per_s: float | None = None
    ) -> None:
        self._endpoint = endpoint
        self._workflows = workflows
        self._usd_per_s = usd_per_s

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._endpoint!r})"

    def __str__(self) -> str:
        return f"endpoint {self._endpoint.endpoint_id} at RunPod"

    def status(self, job_id: str) -> JobStatus:
        """Return a job's status, with its cost if it has ended."""
        status = self._endpoint.status(job_id)
        return replace(status, cost=job_cost(status, self._usd_per_s)) if status.state.is_final else status

    def cancel(self, job_id: str) -> None:
        """Cancel a job. worker-comfyui does not stop sampling (docs/reference/runpod.md#the-stock-worker)."""
        self._endpoint.cancel(job_id)

    def retry(self, job_id: str) -> JobStatus:
        """Queue a failed or timed out job again."""
        return self._endpoint.retry(job_id)

    def health(self) -> Health:
        """Return the numbers of jobs and workers."""
        return self._endpoint.health()

    def missing_models(self) -> None:
        """Return None: only a job on a worker could list its models."""

    def purge_queue(self) -> int:
        """Remove all queued jobs and return how many were removed."""
        return self._endpoint.purge_queue()

    def pause_s(self, waited_s: float) -> float:
        """Return a tenth of `waited_s`, from 0.25 s to 5 s. Polling delays a result by at most 10 %, or by 0.25 s."""
        return min(5.0, max(0.25, waited_s / 10))

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()
