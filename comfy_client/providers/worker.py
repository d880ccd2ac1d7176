"""Provider for this project's worker on RunPod serverless."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_client.providers.interface import GenerationRequest, GenerationResult, Health, JobStatus
from comfy_client.providers.results import read_result
from comfy_client.providers.runpod_endpoint import RunPodEndpoint
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.request.reading import read_request
from comfy_core.workflows import Workflow


class WorkerProvider:
    """A RunPod endpoint that runs this project's worker.

    Args:
        endpoint: the RunPod endpoint.
        workflows: requests for these are validated before they are sent, so that a mistake costs no cold start. Other
            workflow names are sent unchecked: the worker may have workflows of its own.
        name: the value of IMAGE_GENERATION_PROVIDER that selects this provider.
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
        """Validate and submit a job: see RunPodEndpoint.submit. Raises JobError (invalid_input) before sending."""
        if self._workflows:
            try:
                read_request(request.input, self._workflows)
            except JobError as error:
                if error.code is not ErrorCode.UNKNOWN_WORKFLOW:
                    raise
        return self._endpoint.submit(request, wait_s)

    def status(self, job_id: str) -> JobStatus:
        """Return a job's status."""
        return self._endpoint.status(job_id)

    def result(self, status: JobStatus) -> GenerationResult:
        """Return a job's result, with its images downloaded and verified."""
        return read_result(status, self.name)

    def cancel(self, job_id: str) -> None:
        """Cancel a job."""
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
        """Remove all queued jobs."""
        return self._endpoint.purge_queue()

    def pause_s(self, waited_s: float) -> float:
        """Return the polling interval of RunPodEndpoint."""
        return self._endpoint.pause_s(waited_s)

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()
