"""LoggedProvider writes the jobs of another provider into a log of jobs (job_log.py)."""

from __future__ import annotations

import re
from dataclasses import replace

from comfy_client.job_log import JobLog
from comfy_client.providers.interface import (
    GenerationRequest,
    GenerationResult,
    Health,
    JobState,
    JobStatus,
    Provider,
)
from comfy_core.contract import ErrorReport, JsonObject, shortened
from comfy_core.errors import JobError

_TEXT_INPUTS = ("prompt", "negative_prompt")
_OMITTED_INPUTS = frozenset({"overrides", "image", "images"})
_MAX_TEXT = 4096
_MAX_LOG_LINES = 100
_SECRETS_OF_URL = re.compile(r"(?<=//)[^/?#]*@|\?[^#]*")
"""Matches the user information and the query of a URL. The fragment may be the hash of a model."""


class LoggedProvider:
    """Implements Provider with the methods of `provider`. Writes its jobs to `log`: submit, end and result."""

    def __init__(self, provider: Provider, log: JobLog) -> None:
        self.name = provider.name
        self.jobs_outlive_process = provider.jobs_outlive_process
        self._provider = provider
        self._log = log
        self._states: dict[str, JobState] = {}
        """The last logged state of each job that has not ended."""

    def __repr__(self) -> str:
        return f"LoggedProvider({self._provider!r}, {self._log!r})"

    def __str__(self) -> str:
        return str(self._provider)

    def submit(self, request: GenerationRequest, wait_s: float | None = None) -> JobStatus:
        """Submit a job and log it."""
        status = self._provider.submit(request, wait_s)
        inputs = request_inputs(request.input)
        self._note(status, workflow=_workflow_name(request.input), inputs=inputs)
        return status

    def status(self, job_id: str) -> JobStatus:
        """Return a job's status, and log it if its state has changed."""
        status = self._provider.status(job_id)
        if status.state is not self._states.get(job_id):
            self._note(status)
        return status

    def result(self, status: JobStatus) -> GenerationResult:
        """Return a job's result, and log its inputs and cost."""
        try:
            result = self._provider.result(status)
        except JobError as error:
            self._note(replace(status, error=error.report))
            raise
        inputs = {name: _without_secrets(value) for name, value in result.inputs.items() if name not in _OMITTED_INPUTS}
        facts = {"inputs": inputs} if inputs else {}
        self._note(status, workflow=result.workflow, gpu=result.gpu, cost=result.cost, **facts)
        return result

    def cancel(self, job_id: str) -> None:
        """Cancel a job. The log has its end when its status is read."""
        self._provider.cancel(job_id)

    def retry(self, job_id: str) -> JobStatus:
        """Start a job again, and log its new state."""
        status = self._provider.retry(job_id)
        self._note(status)
        return status

    def health(self) -> Health:
        """Return the health of `provider`."""
        return self._provider.health()

    def missing_models(self) -> list[str] | None:
        """Return the missing models of `provider`."""
        return self._provider.missing_models()

    def purge_queue(self) -> int:
        """Remove the queued jobs of `provider`."""
        return self._provider.purge_queue()

    def pause_s(self, waited_s: float) -> float:
        """Return the polling interval of `provider`."""
        return self._provider.pause_s(waited_s)

    def close(self) -> None:
        """Close `provider` and the log."""
        self._provider.close()
        self._log.close()

    def _note(self, status: JobStatus, **values: object) -> None:
        facts = {
            "provider": self.name,
            "place": str(self._provider),
            "state": status.state.value,
            "error_code": status.error.code.value if status.error else "",
            "error": _logged_error(status.error).to_json() if status.error else "",
            "execution_s": status.execution_s,
            "cost": status.cost,
        }
        self._log.note(status.job_id, **{**facts, **values})
        if status.state.is_final:
            self._states.pop(status.job_id, None)
        else:
            self._states[status.job_id] = status.state


def _logged_error(report: ErrorReport) -> ErrorReport:
    """Return what the log has of an error report: code, message and `log_tail`, with limited lengths."""
    lines = [shortened(line) for line in report.log_tail[-_MAX_LOG_LINES:]]
    return ErrorReport(report.code, shortened(report.message, _MAX_TEXT), {"log_tail": lines} if lines else {})


def _workflow_name(request: JsonObject) -> str:
    """Return the name of a request's workflow; empty if it has none, "custom" for a graph."""
    match request.get("workflow", ""):
        case str(name) if not name.lstrip().startswith("{"):
            return shortened(name, 100)
    return "custom"


def request_inputs(request: JsonObject) -> JsonObject:
    """Return the inputs of a request that the log may have: its prompts, numbers and switches.

    Any other value may contain an image, a key or a URL. A prompt that may be a graph is left out.
    """
    texts = {name: request[name] for name in _TEXT_INPUTS if isinstance(request.get(name), str)}
    numbers = {name: value for name, value in request.items() if isinstance(value, int | float)}
    safe_texts = {name: shortened(text, _MAX_TEXT) for name, text in texts.items() if not text.lstrip().startswith("{")}
    return {**safe_texts, **numbers}


def _without_secrets(value: object) -> object:
    """Return an input of a result. URLs have no password and no query, and texts have a limit."""
    match value:
        case str() if value.startswith(("http://", "https://")):
            return shortened(_SECRETS_OF_URL.sub("", value), _MAX_TEXT)
        case str():
            return shortened(value, _MAX_TEXT)
        case list():
            return [_without_secrets(item) for item in value]
        case dict():
            return {key: _without_secrets(item) for key, item in value.items()}
    return value
