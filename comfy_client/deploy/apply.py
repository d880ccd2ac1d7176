"""Applies a deployment plan (template, endpoint, cached model), waits for a worker, and destroys a deployment.

If a run is interrupted, the next run finds the existing resources by name and does the remaining steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from comfy_client.deploy.api import Kind, RestApi
from comfy_client.deploy.description import Description
from comfy_client.deploy.desired import endpoint_creation, template_creation
from comfy_client.deploy.plan import CachedModels, DeployPlan, find_existing, wanted_models
from comfy_client.providers.interface import Health
from comfy_core.contract import ErrorReport, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError, RequestError

ReportProgress: TypeAlias = Callable[[str], None]
"""Called with progress messages for the user."""

PROPAGATION_S = 30.0
"""How long a new endpoint may still be unknown to the queue API."""
PATIENCE_S = 60.0
"""How long errors of the queue API are tolerated."""
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 5.0
READY = frozenset({"idle", "busy"})
"""The values of `Health.why` with which a worker is ready."""
SERVER_ERROR = 500
DELETION_ORDER: tuple[Kind, ...] = ("endpoint", "template")
"""In this order, because a template that an endpoint uses cannot be deleted."""


class NotReady(ComfyClientError):  # noqa: N818 - an outcome, like WaitTimeout
    """No worker was ready in time. The endpoint exists, and a worker may still become ready."""

    exit_status = 5


def apply(
    rest: RestApi, cached_models: CachedModels, description: Description, plan: DeployPlan, report: ReportProgress
) -> JsonObject:
    """Apply a plan and return the endpoint.

    Raises RequestError, or ConfigError if RunPod has several resources with the name. The next run does the remaining
    steps.
    """
    name, existing = description.name, dict(plan.existing)
    for step in plan.steps:
        kind = step.what
        if kind == "cached model":
            continue
        if kind in existing:
            existing[kind] = rest.update(kind, str(existing[kind]["id"]), step.body)
        elif kind == "template":
            existing[kind] = _create_or_find(rest, kind, template_creation(name, step.body))
        else:
            existing[kind] = _create_or_find(
                rest, kind, endpoint_creation(name, step.body, str(existing["template"]["id"]))
            )
        report(f"{kind} {name} ({existing[kind]['id']}) {step.verb}d")
    endpoint = existing["endpoint"]
    if description.storage_cached_model is not None:
        # The models are read again: REST v2 has no field for them, and a PATCH of REST v2 may reset them.
        wanted = wanted_models(description)
        if cached_models(str(endpoint["id"]), wanted) != wanted:
            report(f"cached model set: {', '.join(wanted) or 'none'}")
    return endpoint


def _create_or_find(rest: RestApi, kind: Kind, body: JsonObject) -> JsonObject:
    """Create a resource and return it. After an error of the server or a lost response, look the resource up by name.

    Raises the error of the create if the resource does not exist, and ConfigError if there are several with the name.
    """
    try:
        return rest.create(kind, body)
    except RequestError as error:
        if error.is_unsent or (error.status is not None and error.status < SERVER_ERROR):
            raise
        found = find_existing(rest, body["name"]).get(kind)
        if found is None:
            raise
        return found


def queue_url(endpoint: JsonObject) -> str:
    """Return the base URL of the queue API from an endpoint's record, or an empty string if the record has none."""
    match endpoint.get("requestUrls"):
        case {"run": str(run)} if run.endswith(f"/{endpoint['id']}/run"):
            return run.removesuffix(f"/{endpoint['id']}/run")
    return ""


def client_variables(endpoint: JsonObject, default_url: str) -> Mapping[str, str]:
    """Return the variables that an application needs to use the endpoint, except RUNPOD_API_KEY."""
    url = queue_url(endpoint)
    other = {"RUNPOD_ENDPOINT_BASE_URL": url} if url not in ("", default_url) else {}
    return {"IMAGE_GENERATION_PROVIDER": "comfyui", "RUNPOD_COMFYUI_ENDPOINT_ID": str(endpoint["id"]), **other}


@dataclass(frozen=True)
class ReadyTimeouts:
    """Timeouts of `await_worker`, in seconds.

    Attributes:
        total_s: total time, after which NotReady is raised.
        without_job_s: time to wait for a worker while no job is queued. If the minimum number of workers is 0, RunPod
            may start one only for a job.
        stale_s: time to wait until workers with the old settings are gone. A busy worker stops after its job.
    """

    total_s: float
    without_job_s: float = 10.0
    stale_s: float = 120.0


def await_worker(
    health: Callable[[], Health], count_stale: Callable[[], int], timeouts: ReadyTimeouts, report: ReportProgress
) -> None:
    """Wait until a worker is ready, or until it is clear that RunPod starts a worker only for a job.

    For up to `timeouts.stale_s`, also wait until no worker has old settings. `count_stale` returns how many have them.
    `report` receives progress messages. Raises NotReady at the deadline, and RequestError if the queue API keeps
    failing or does not know the endpoint.
    """
    begun_at = responded_at = time.monotonic()
    sentence = reported = "the endpoint was not polled yet"
    pause_s = FIRST_PAUSE_S
    while (waited_s := time.monotonic() - begun_at) < timeouts.total_s:
        why = ""
        try:
            state = health()
            responded_at, why, sentence = time.monotonic(), state.why, state.sentence
        except RequestError as error:
            is_new = error.code is ErrorCode.ENDPOINT_NOT_FOUND and waited_s < PROPAGATION_S
            if not is_new and not (error.is_transient and time.monotonic() - responded_at < PATIENCE_S):
                raise
            sentence = "the queue API does not know the endpoint yet" if is_new else f"retrying: {error}"
        if why in READY and waited_s < timeouts.stale_s and (count := count_stale()):
            why, sentence = "stale", f"workers with the old settings: {count}; RunPod replaces them"
        if sentence != reported:
            reported = sentence
            report(f"{waited_s:4.0f} s  {sentence}")
        if why in READY or (why == "no_worker" and waited_s >= timeouts.without_job_s):
            return
        time.sleep(min(pause_s, max(0.0, begun_at + timeouts.total_s - time.monotonic())))
        pause_s = min(MAX_PAUSE_S, pause_s * 1.5)
    raise _not_ready(timeouts.total_s, sentence)


def count_stale_workers(rest: RestApi, endpoint_id: str) -> int:
    """Return how many workers have old settings, or 0 if that cannot be read."""
    try:
        return sum(worker.get("isStale") is True for worker in rest.workers(endpoint_id))
    except RequestError:
        return 0


def _not_ready(timeout_s: float, sentence: str) -> NotReady:
    message = (
        f"No worker was ready within {timeout_s:g} s: {sentence}. The endpoint is deployed. To continue "
        "waiting, run the command again with --image"
    )
    return NotReady(message, ErrorReport(ErrorCode.QUEUE_TIMEOUT, message, {"after_s": timeout_s}))


@dataclass(frozen=True)
class DestroyPlan:
    """The template and the endpoint to delete, as far as they exist. `stays` describes what is not deleted."""

    existing: Mapping[Kind, JsonObject]
    stays: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """The deletions, as text for the user."""
        more = {"endpoint": ", its workers and queued jobs", "template": ""}
        return [
            f"delete {kind} {self.existing[kind]['name']} ({self.existing[kind]['id']}){more[kind]}"
            for kind in DELETION_ORDER
            if kind in self.existing
        ]


def plan_destroy(rest: RestApi, description: Description) -> DestroyPlan:
    """Return which resources of a deployment exist, and what is not deleted. Raises ConfigError and RequestError."""
    stays = [f"the image {description.image} in its registry"]
    if description.registry:
        stays.append(f"the registry's credential {description.registry} at RunPod")
    if description.storage_network_volume:
        stays.append(
            f"the network volume {description.storage_network_volume}, which is billed monthly until you delete it"
        )
    return DestroyPlan(find_existing(rest, description.name), tuple(stays))


def destroy(rest: RestApi, plan: DestroyPlan, report: ReportProgress) -> None:
    """Set the endpoint's numbers of workers to 0, then delete the endpoint and the template. Raises RequestError."""
    for kind in DELETION_ORDER:
        if kind not in plan.existing:
            continue
        resource = plan.existing[kind]
        if any(resource.get("workers", {}).get(bound) for bound in ("min", "max")):
            rest.update(kind, resource["id"], {"workers": {"min": 0, "max": 0}})
            report("workers set to 0")
        rest.delete(kind, resource["id"])
        report(f"{kind} {resource['id']} deleted")
