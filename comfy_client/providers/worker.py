"""This project's worker on RunPod serverless."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_client.providers.interface import GenerationRequest, GenerationResult, Health, JobStatus
from comfy_client.providers.results import read_result
from comfy_client.providers.runpod_endpoint import RunPodEndpoint
from comfy_core.contract import ErrorCode
from comfy_core.errors import JobError
from comfy_core.request.reading import read_request
from comfy_core.workflows import Workflow

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0


class WorkerProvider:
    """A RunPod endpoint that runs this project's worker.

    Args:
        endpoint: where it is.
        workflows: requests for these are checked before they are sent: a fault costs no cold start. Another name, as of
            a workflow that the worker alone has, is left to the worker to check.
        name: as IMAGE_GENERATION_PROVIDER has it.
    """

    jobs_outlive_process = True

    def __init__(self, endpoint: RunPodEndpoint, workflows: Mapping[str, Workflow], name: str = "comfyui") -> None:
        self._endpoint = endpoint
        self._workflows = workflows
        self.name = name

    def __repr__(self) -> str:
        return f"WorkerProvider({self._endpoint!r})"

    def __str__(self) -> str:
        return f"endpoint {self._endpoint.endpoint_id} at RunPod"

    def submit(self, request: GenerationRequest, wait_s: float | None = None) -> JobStatus:
        """Send a job: see RunPodEndpoint.submit. Raises JobError (invalid_input) before anything is sent."""
        if self._workflows:
            try:
                read_request(request.input, self._workflows)
            except JobError as error:
                if error.code is not ErrorCode.UNKNOWN_WORKFLOW:
                    raise
        return self._endpoint.submit(request, wait_s)

    def status(self, job_id: str) -> JobStatus:
        """Return how a job stands."""
        return self._endpoint.status(job_id)

    def result(self, status: JobStatus) -> GenerationResult:
        """Return what a job made, with its pictures fetched and checked."""
        return read_result(status, self.name)

    def cancel(self, job_id: str) -> None:
        """End a job."""
        self._endpoint.cancel(job_id)

    def retry(self, job_id: str) -> JobStatus:
        """Queue a job anew that failed or timed out."""
        return self._endpoint.retry(job_id)

    def health(self) -> Health:
        """Return how many jobs and workers there are."""
        return self._endpoint.health()

    def missing_models(self) -> None:
        """Return None: only a worker knows its models."""

    def purge_queue(self) -> int:
        """Drop all jobs that wait."""
        return self._endpoint.purge_queue()

    def pause_s(self, waited_s: float) -> float:
        """Return a tenth of the wait so far, so that polling adds no more to it than that; 0.25 s to 5 s."""
        return min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, waited_s / 10))

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()
