"""Computes the plan of a deployment from the current state at RunPod. Changes nothing there.

The template and the endpoint are found by name, the registry credential and the network volume by id or name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from comfy_client.deploy.api import Kind, RestApi
from comfy_client.deploy.description import Description
from comfy_client.deploy.desired import ENDPOINT_TYPE, ResourceIds, make_endpoint, make_template
from comfy_client.deploy.diff import KEYS, Change, DeployStep, changes_of, patch_of
from comfy_client.deploy.offers import Offers, make_offers
from comfy_core.contract import JsonObject
from comfy_core.errors import ConfigError, RequestError
from comfy_core.validation import nearest

FLASHBOOT_SUFFIX = " -fb"
"""Suffix that GraphQL and the console add to the name of an endpoint with FlashBoot (docs.runpod.io)."""


CachedModels: TypeAlias = Callable[..., tuple[str, ...]]
"""`graphql.cached_models` without its first two arguments, which are bound: the API key and the URL."""


@dataclass(frozen=True)
class DeployPlan:
    """The steps of a deployment, in order. `existing` has the template and the endpoint, if they exist already."""

    steps: tuple[DeployStep, ...]
    offers: Offers
    existing: Mapping[Kind, JsonObject]


def make_plan(
    rest: RestApi, cached_models: CachedModels, description: Description, secrets: Mapping[str, str]
) -> DeployPlan:
    """Return the steps that bring RunPod to the described state. Raises ConfigError and RequestError."""
    existing = find_existing(rest, description.name)
    ids = _find_ids(rest, description)
    offers = make_offers(
        description.gpu_pools,
        _catalogue(rest),
        is_by_price=description.gpu_order == "price",
        excluded=description.gpu_excluded,
    )
    bodies: Mapping[Kind, JsonObject] = {
        "template": make_template(description, ids),
        "endpoint": make_endpoint(description, ids, offers.names, secrets),
    }
    steps = []
    for kind, wanted in bodies.items():
        found = existing.get(kind)
        if changes := changes_of(wanted, found, description.env):
            body = patch_of(wanted, found) if found else wanted
            steps.append(DeployStep("update" if found else "create", kind, description.name, changes, body))
    steps += _model_steps(cached_models, description, existing.get("endpoint"))
    return DeployPlan(tuple(steps), offers, existing)


def wanted_models(description: Description) -> tuple[str, ...]:
    """Return the cached model of a description as a tuple, which is empty if the description has none."""
    return (description.storage_cached_model,) if description.storage_cached_model else ()


def find_existing(rest: RestApi, name: str) -> dict[Kind, JsonObject]:
    """Return the template and the endpoint with this name, as far as they exist.

    Raises ConfigError if RunPod has several of one kind, or if the endpoint's type is wrong, and RequestError.
    """
    template = _single([each for each in rest.templates() if each.get("name") == name], "template", name)
    named = [each for each in rest.endpoints() if str(each.get("name", "")).removesuffix(FLASHBOOT_SUFFIX) == name]
    endpoint = _single(named, "endpoint", name)
    if endpoint and endpoint.get("type", ENDPOINT_TYPE) != ENDPOINT_TYPE:
        raise ConfigError(
            f"The endpoint {name} ({endpoint['id']}) has the type {endpoint['type']}, which cannot be changed. Choose "
            "another name in deploy.toml, or delete it"
        )
    found: Mapping[Kind, JsonObject | None] = {"template": template, "endpoint": endpoint}
    return {kind: resource for kind, resource in found.items() if resource}


def _single(named: Sequence[JsonObject], what: str, name: str) -> JsonObject | None:
    if len(named) > 1:
        ids = ", ".join(str(each.get("id")) for each in named)
        raise ConfigError(f"RunPod has {len(named)} {what}s with the name {name} ({ids}). Delete or rename all but one")
    return named[0] if named else None


def _find_ids(rest: RestApi, description: Description) -> ResourceIds:
    registry = volume = ""
    if description.registry:
        registry = str(_find_named(description.registry, rest.registries(), "registry", "registry credential")["id"])
    if description.storage_network_volume:
        found = _find_named(
            description.storage_network_volume, rest.network_volumes(), "storage.network_volume", "network volume"
        )
        volume, center = str(found["id"]), found.get("dataCenter")
        centers = description.storage_data_centers
        if centers and center not in centers:
            raise ConfigError(
                f"storage.network_volume: {description.storage_network_volume} is in {center}, which is not one of "
                f"storage.data_centers ({', '.join(centers)}). A worker runs where its volume is"
            )
    return ResourceIds(registry, volume)


def _find_named(wanted: str, existing: Sequence[JsonObject], setting: str, what: str) -> JsonObject:
    """Return the resource with the id or name `wanted`, which the key `setting` of deploy.toml has."""
    for key in ("id", "name"):
        found = [each for each in existing if each.get(key) == wanted]
        if len(found) > 1:
            ids = ", ".join(str(each.get("id")) for each in found)
            raise ConfigError(
                f"{setting}: RunPod has several with the name {wanted}; use one of their ids instead ({ids})"
            )
        if found:
            return found[0]
    names = [str(each.get("name")) for each in existing]
    raise ConfigError(
        f"{setting}: RunPod has no {what} {wanted!r}; existing: {', '.join(names) or 'none'}"
        f"{nearest(wanted, names) or '.'} Create it in RunPod's console, or remove the line"
    )


def _catalogue(rest: RestApi) -> list[JsonObject] | None:
    """Return the catalogue, or None if the call fails: missing prices must not stop a deployment."""
    try:
        return rest.catalogue()
    except RequestError:
        return None


def _model_steps(
    cached_models: CachedModels, description: Description, endpoint: JsonObject | None
) -> list[DeployStep]:
    if description.storage_cached_model is None:
        return []
    wanted = wanted_models(description)
    found = cached_models(endpoint["id"]) if endpoint else ()
    if found == wanted:
        return []
    change = Change(KEYS["modelReferences"], ", ".join(found), ", ".join(wanted))
    return [DeployStep("update", "cached model", description.name, (change,), {"modelReferences": list(wanted)})]
