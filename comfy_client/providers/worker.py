"""Provider for this project's worker on RunPod serverless."""

from __future__ import annotations

from comfy_client.providers.interface import GenerationRequest, GenerationResult, JobStatus
from comfy_client.providers.results import read_result
from comfy_client.providers.runpod_provider import RunPodProvider
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.request.reading import read_request


class WorkerProvider(RunPodProvider):
    """A RunPod endpoint that runs this project's worker.

    Requests for `workflows` are validated before they are sent, so that a mistake costs no cold start. Other workflow
    names are sent unchecked: the worker may have workflows of its own.
    """

    name = "comfyui"

    def submit(self, request: GenerationRequest, wait_s: float | None = None) -> JobStatus:
        """Validate a request and submit it: see RunPodEndpoint.submit. Raises JobError if the request is invalid."""
        if self._workflows:
            try:
                read_request(request.input, self._workflows)
            except JobError as error:
                if error.code is not ErrorCode.UNKNOWN_WORKFLOW:
                    raise
        return self._endpoint.submit(request, wait_s)

    def result(self, status: JobStatus) -> GenerationResult:
        """Return a job's result, with all files downloaded and verified. Raises the errors of `read_result`."""
        return read_result(status, self.name, self._usd_per_s)
