"""Tasks of both clients: submit a request, and wait for its result."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_client import coroutines
from comfy_client.input_images import with_texts
from comfy_client.job import Done, JobPoller, Observer
from comfy_client.providers.interface import NO_OPTIONS, GenerationRequest, GenerationResult, JobOptions
from comfy_core.contract import ALIASES
from comfy_core.errors import ComfyClientError
from comfy_core.graphs import Graph
from comfy_core.workflows import Workflow, default_directory, load_workflows

if TYPE_CHECKING:
    from comfy_client.client import Client

CANCEL_PATIENCE_S = 5.0
"""How long an interrupted call retries to cancel its job."""


def make_request(
    workflow: str | Graph | None = None,
    *,
    options: JobOptions = NO_OPTIONS,
    **inputs: Any,  # noqa: ANN401 - types depend on the workflow's schema
) -> GenerationRequest:
    """Return the request for a workflow by name, or for a whole graph in ComfyUI's API format.

    The images of a shipped workflow, and `images` (`{name: image}`) for graphs, may have any type of `ImageInput`. An
    image of another workflow may have any type but `str`, which is sent unchanged, unless the input is called `image`.
    Inputs that are None are omitted. Raises JobError (invalid_image).
    """
    texts = with_texts(inputs, _image_inputs(workflow))
    return GenerationRequest({"workflow": workflow, **texts} if workflow is not None else texts, options)


def _image_inputs(workflow: str | Graph | None) -> tuple[str, ...]:
    """Return the names of a shipped workflow's images; of any other workflow only `image`."""
    found = _shipped_workflows().get(ALIASES.get(workflow, workflow)) if isinstance(workflow, str) else None
    return found.image_inputs if found else ("image",)


@functools.cache
def _shipped_workflows() -> Mapping[str, Workflow]:
    return load_workflows(default_directory())


@dataclass(frozen=True)
class Outcome:
    """The outcome of one request of `map`: a result or an error."""

    request: GenerationRequest | Mapping[str, Any]
    result: GenerationResult | None = None
    error: ComfyClientError | None = None

    def unwrap(self) -> GenerationResult:
        """Return the result, or raise the error."""
        if self.result is None:
            raise self.error or RuntimeError("neither result nor error")
        return self.result


def run_task(
    client: Client,
    request: GenerationRequest,
    timeout_s: float | None = None,
    observer: Observer | None = None,
    *,
    may_hold: bool = True,
) -> coroutines.Task[GenerationResult]:
    """Submit a job and return its result. Ctrl-C, or closing the task, cancels a job that already has an id.

    The submit may wait for the result, unless there is an observer or `may_hold` is False. A submit that waits blocks a
    thread, and the job has no id until the submit returns.
    """
    timeout_s = client.timeout_s if timeout_s is None else timeout_s
    begun_at = time.monotonic()
    wait_s = min(client.sync_wait_s, timeout_s) if may_hold and observer is None else 0.0
    status = client.provider.submit(request, wait_s)
    poller = JobPoller(client.provider, status.job_id, status)
    left_s = max(0.0, begun_at + timeout_s - time.monotonic())
    try:
        if observer is None:
            return (yield from poller.wait(left_s))
        return (yield from _observed(poller, left_s, observer))
    except (GeneratorExit, KeyboardInterrupt):
        with contextlib.suppress(ComfyClientError):
            coroutines.run(poller.cancel(CANCEL_PATIENCE_S))
        raise


def _observed(poller: JobPoller, timeout_s: float, observer: Observer) -> coroutines.Task[GenerationResult]:
    for item in poller.events(timeout_s):
        if isinstance(item, coroutines.Sleep):
            yield item
            continue
        observer(item)
        if isinstance(item, Done):
            return item.result
    raise AssertionError("events end with Done, or raise")


def outcome_task(
    client: Client, request: GenerationRequest | Mapping[str, Any], wait_timeout_s: float | None
) -> coroutines.Task[Outcome]:
    """Run one request of `map` and return its outcome. A ComfyClientError becomes part of the outcome."""
    try:
        prepared = request if isinstance(request, GenerationRequest) else make_request(**request)
        return Outcome(request, result=(yield from run_task(client, prepared, wait_timeout_s, may_hold=False)))
    except ComfyClientError as error:
        return Outcome(request, error=error)
