"""Computes the plan of a deployment from the current state at RunPod. Resources are found by name. Read-only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from comfy_client.deploy.api import RestApi
from comfy_client.deploy.description import Description
from comfy_client.deploy.desired import ENDPOINT_TYPE, ResourceIds, make_endpoint, make_template
from comfy_client.deploy.diff import KEYS, Change, DeployStep, changes_of, patch_of
from comfy_client.deploy.graphql import CachedModels
from comfy_client.deploy.offers import Offers, make_offers
from comfy_core.contract import JsonObject
from comfy_core.errors import ConfigError, RequestError
from comfy_core.validation import nearest

FLASHBOOT_SUFFIX = " -fb"
"""Suffix that GraphQL and the console add to the name of an endpoint with FlashBoot (docs.runpod.io)."""


@dataclass(frozen=True)
class RunPodApis:
    """The two RunPod APIs that a deployment uses."""

    rest: RestApi
    models: CachedModels

    def close(self) -> None:
        """Close the connections."""
        self.rest.close()
        self.models.close()


@dataclass(frozen=True)
class DeployPlan:
    """The steps of a deployment, in order. `endpoint` is the existing endpoint with its old settings, or None."""

    steps: tuple[DeployStep, ...]
    offers: Offers
    template_id: str | None
    endpoint: JsonObject | None

    def step(self, what: str) -> DeployStep | None:
        """Return the step for `what`, or None."""
        return next((step for step in self.steps if step.what == what), None)


def make_plan(runpod: RunPodApis, description: Description, secrets: Mapping[str, str]) -> DeployPlan:
    """Return the steps that bring RunPod to the described state. Raises ConfigError and RequestError."""
    template = find_template(runpod.rest, description.name)
    endpoint = find_endpoint(runpod.rest, description.name)
    ids = _find_ids(runpod.rest, description)
    offers = make_offers(
        description.pools,
        _catalogue(runpod.rest),
        is_by_price=description.is_by_price,
        excluded=description.excluded_gpus,
    )
    shown = dict(description.env)
    pairs: tuple[tuple[Literal["template", "endpoint"], JsonObject, JsonObject | None], ...] = (
        ("template", make_template(description, ids), template),
        ("endpoint", make_endpoint(description, ids, offers.names, secrets), endpoint),
    )
    steps = [
        DeployStep("update", what, description.name, changes, patch_of(wanted, found))
        if found
        else DeployStep("create", what, description.name, changes, wanted)
        for what, wanted, found in pairs
        if (changes := changes_of(wanted, found, shown))
    ]
    steps += _model_steps(runpod.models, description, endpoint)
    return DeployPlan(tuple(steps), offers, template["id"] if template else None, endpoint)


def wanted_models(description: Description) -> tuple[str, ...]:
    """Return the cached models of a description."""
    return (description.cached_model,) if description.cached_model else ()


def find_template(rest: RestApi, name: str) -> JsonObject | None:
    """Return the template with this name, or None. Raises ConfigError if there are several."""
    return _only([each for each in rest.templates() if each.get("name") == name], "template", name)


def find_endpoint(rest: RestApi, name: str) -> JsonObject | None:
    """Return the endpoint with this name, or None. Raises ConfigError if there are several, or its type is wrong."""
    named = [each for each in rest.endpoints() if str(each.get("name", "")).removesuffix(FLASHBOOT_SUFFIX) == name]
    endpoint = _only(named, "endpoint", name)
    if endpoint is not None and endpoint.get("type", ENDPOINT_TYPE) != ENDPOINT_TYPE:
        raise ConfigError(
            f"The endpoint {name} ({endpoint['id']}) has the type {endpoint['type']}, which cannot be changed. Choose "
            "another name in deploy.toml, or delete it"
        )
    return endpoint


def _only(named: Sequence[JsonObject], what: str, name: str) -> JsonObject | None:
    if len(named) > 1:
        ids = ", ".join(str(each.get("id")) for each in named)
        raise ConfigError(f"RunPod has {len(named)} {what}s with the name {name} ({ids}). Delete or rename all but one")
    return named[0] if named else None


def _find_ids(rest: RestApi, description: Description) -> ResourceIds:
    registry = volume = ""
    if description.registry:
        registry = str(_named(description.registry, rest.registries(), "registry", "registry credential")["id"])
    if description.network_volume:
        found = _named(description.network_volume, rest.network_volumes(), "storage.network_volume", "network volume")
        volume, where = str(found["id"]), found.get("dataCenter")
        if description.data_centers and where not in description.data_centers:
            raise ConfigError(
                f"storage.network_volume: {description.network_volume} is in {where}, which is not one of "
                f"storage.data_centers ({', '.join(description.data_centers)}). A worker runs where its volume is"
            )
    return ResourceIds(registry, volume)


def _named(wanted: str, existing: Sequence[JsonObject], path: str, what: str) -> JsonObject:
    for key in ("id", "name"):
        found = [each for each in existing if each.get(key) == wanted]
        if len(found) > 1:
            ids = ", ".join(str(each.get("id")) for each in found)
            raise ConfigError(
                f"{path}: RunPod has several with the name {wanted}; use one of their ids instead ({ids})"
            )
        if found:
            return found[0]
    names = [str(each.get("name")) for each in existing]
    raise ConfigError(
        f"{path}: RunPod has no {what} {wanted!r}; existing: {', '.join(names) or 'none'}"
        f"{nearest(wanted, names) or '.'} Create it in RunPod's console, or remove the line"
    )


def _catalogue(rest: RestApi) -> list[JsonObject] | None:
    """Return the catalogue, or None if the call fails: missing prices must not stop a deployment."""
    try:
        return rest.catalogue()
    except RequestError:
        return None


def _model_steps(models: CachedModels, description: Description, endpoint: JsonObject | None) -> list[DeployStep]:
    if description.cached_model is None:
        return []
    wanted = wanted_models(description)
    found = models.read(endpoint["id"]) if endpoint else ()
    if found == wanted:
        return []
    change = Change(KEYS["modelReferences"], ", ".join(found), ", ".join(wanted))
    return [DeployStep("update", "cached model", description.name, (change,), {"modelReferences": list(wanted)})]
