"""Provider for this project's worker on RunPod serverless."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from comfy_client.providers.interface import GenerationRequest, GenerationResult, JobStatus
from comfy_client.providers.results import read_result
from comfy_client.providers.runpod_provider import RunPodProvider
from comfy_core.contract import ALIASES, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.request.models_task import is_models_task, read_models_request
from comfy_core.request.reading import default_workflow, read_request
from comfy_core.workflow_folder import WorkflowFolder
from comfy_core.workflows import Workflow


class WorkerProvider(RunPodProvider):
    """A RunPod endpoint that runs this project's worker.

    Requests for `workflows` are validated before they are sent, so that a mistake costs no cold start. Those of a
    WorkflowFolder are sent as part of the request, because the worker does not have them. Other workflow names are sent
    unchecked: the worker may have workflows of its own.
    """

    name = "comfyui"

    def submit(self, request: GenerationRequest, wait_s: float | None = None) -> JobStatus:
        """Validate a request and submit it: see RunPodEndpoint.submit. Raises JobError if the request is invalid."""
        if is_models_task(request.input):
            read_models_request(request.input)
            return self._endpoint.submit(request, wait_s)
        request = replace(request, input=with_own_template(request.input, self._workflows))
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


def with_own_template(request: JsonObject, workflows: Mapping[str, Workflow]) -> JsonObject:
    """Return the input of a request with the template that it names, if that is in a WorkflowFolder.

    Raises JobError (invalid_workflow) if the template's files are invalid.
    """
    if not isinstance(workflows, WorkflowFolder):
        return request
    name = request.get("workflow") or default_workflow(request)
    name = ALIASES.get(name, name) if isinstance(name, str) else ""
    if not workflows.is_own(name):
        return request
    template = workflows[name]
    x_name = re.sub(r"[^\w.-]+", "_", name).lstrip(".-")[:64] or "custom"
    return {**request, "workflow": template.graph, "inputs_schema": {**template.schema, "x-name": x_name}}
