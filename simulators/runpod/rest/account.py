"""The state of one RunPod account, and the effect of each REST call on it. No I/O. `graphql.py` changes it too."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from .shapes import (
    CATALOGUE,
    CREATE_ENDPOINT,
    CREATE_TEMPLATE,
    UPDATE_ENDPOINT,
    UPDATE_TEMPLATE,
    JsonObject,
    validation_errors,
)

CONTAINER = ("image", "args", "disk", "env", "ports", "registry")
CREATED_AT = "2026-11-25T20:00:00Z"


class RequestRefused(Exception):  # noqa: N818 - a response
    """A refused API call."""

    def __init__(self, status: int, detail: str, errors: list[str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors or []


class Account:
    """The objects of one account. Tests may set the attributes."""

    def __init__(
        self, new_endpoint_id: Callable[[], str] | None = None, queue_url: str = "https://api.runpod.ai/v2"
    ) -> None:
        self._numbers = itertools.count(1)
        self._new_endpoint_id = new_endpoint_id or (lambda: f"ep{next(self._numbers)}")
        self._queue_url = queue_url
        self.templates: dict[str, JsonObject] = {}
        self.endpoints: dict[str, JsonObject] = {}
        self.cached_models: dict[str, list[str]] = {}
        self.bound: dict[str, str] = {}
        """The id of the endpoint that a template is bound to, by the template's id."""
        self.volumes: list[JsonObject] = [
            {"id": "vol1", "name": "models", "size": 50, "dataCenter": "US-KS-2", "type": "STANDARD"}
        ]
        self.registries: list[JsonObject] = [{"id": "reg1", "name": "ghcr"}]
        self.gpus: list[JsonObject] = list(CATALOGUE)
        self.workers: list[JsonObject] = []

    def lists(self) -> Mapping[str, tuple[str, list[JsonObject]]]:
        """Return the lists by path: the key of the response, and its items."""
        return {
            "/templates": ("templates", list(self.templates.values())),
            "/serverless": ("endpoints", list(self.endpoints.values())),
            "/network-volumes": ("networkVolumes", self.volumes),
            "/registries": ("registries", self.registries),
        }

    def catalogue(self, query: Mapping[str, str]) -> JsonObject:
        """Return the GPU types, with their availability if the query includes it."""
        if query.get("include") == "AVAILABILITY":
            if not query.get("product"):
                raise RequestRefused(400, "include=AVAILABILITY requires product")
            return {"gpus": self.gpus}
        return {"gpus": [{key: item for key, item in gpu.items() if key != "availability"} for gpu in self.gpus]}

    def create_template(self, body: JsonObject) -> JsonObject:
        """Create a template."""
        _check(body, CREATE_TEMPLATE)
        if any(each["name"] == body["name"] for each in self.templates.values()):
            raise RequestRefused(400, "Template name must be unique")
        template_id = f"tpl{next(self._numbers)}"
        defaults = {"args": "", "disk": 20, "env": {}, "ports": [], "registry": None, "serverless": False, "mounts": {}}
        more = {
            "public": False,
            "category": "NVIDIA",
            "startSsh": True,
            "startJupyter": True,
            "allowedCudaVersions": [],
        }
        self.templates[template_id] = {"id": template_id, **defaults, **more, **copy.deepcopy(body)}
        return self.templates[template_id]

    def update_template(self, template_id: str, body: JsonObject) -> JsonObject:
        """Change a template. Existing endpoints do not change."""
        template = _found(self.templates, template_id)
        _check(body, UPDATE_TEMPLATE)
        template.update(copy.deepcopy(body))
        return template

    def delete_template(self, template_id: str) -> None:
        """Delete a template, unless an existing endpoint created it for itself."""
        _found(self.templates, template_id)
        if self.bound.get(template_id) in self.endpoints:
            raise RequestRefused(400, "Template is in use by a pod or serverless endpoint and cannot be deleted")
        del self.templates[template_id]

    def create_endpoint(self, body: JsonObject) -> JsonObject:
        """Create an endpoint, and the template that is bound to it."""
        _check(body, CREATE_ENDPOINT)
        container = self._template_container(body)
        if "image" not in {**container, **body}:
            raise RequestRefused(422, "Request validation failed.", ["body: 'image' is a required property"])
        endpoint_id = self._new_endpoint_id()
        body_settings = copy.deepcopy({key: item for key, item in body.items() if key != "templateId"})
        env = {**container.get("env", {}), **body_settings.get("env", {})}
        urls = {name: f"{self._queue_url}/{endpoint_id}/{path}" for name, path in _URLS.items()}
        endpoint = {**_DEFAULTS, **container, **body_settings, "id": endpoint_id, "env": env, "requestUrls": urls}
        endpoint["workers"] = {"min": 0, "max": 3, "idleTimeout": 10, **body_settings.get("workers", {})}
        if "gpu" in body_settings:
            endpoint["gpu"] = {"count": 1, "allowedCudaVersions": [], "minCudaVersion": None, **body_settings["gpu"]}
        _check_gpu(endpoint, self.gpus)
        self.endpoints[endpoint_id] = endpoint
        bound = self.create_template({"name": f"{body['name']}__template__{endpoint_id}", "image": endpoint["image"]})
        self.bound[bound["id"]] = endpoint_id
        return endpoint

    def update_endpoint(self, endpoint_id: str, body: JsonObject) -> JsonObject:
        """Change the given fields of an endpoint."""
        endpoint = _found(self.endpoints, endpoint_id)
        _check(body, UPDATE_ENDPOINT)
        changed = copy.deepcopy(endpoint) | self._template_container(body)
        for name, value in copy.deepcopy(body).items():
            if name in {"gpu", "workers"}:
                changed[name] = {**changed.get(name, {}), **value}
                if name == "gpu" and "pools" in value and "excludedTypes" not in value:
                    changed[name].pop("excludedTypes", None)
            elif name != "templateId":
                changed[name] = value
        _check_gpu(changed, self.gpus)
        if not changed["gpu"]["minCudaVersion"]:
            changed["gpu"]["minCudaVersion"] = None
        self.endpoints[endpoint_id] = changed
        return changed

    def delete_endpoint(self, endpoint_id: str) -> None:
        """Delete an endpoint without workers, and the template that is bound to it."""
        endpoint = _found(self.endpoints, endpoint_id)
        if endpoint["workers"]["max"]:
            raise RequestRefused(400, "endpoint has workers: set workers.min and workers.max to 0 before deleting it")
        del self.endpoints[endpoint_id]
        self.templates = {key: each for key, each in self.templates.items() if self.bound.get(key) != endpoint_id}
        self.cached_models.pop(endpoint_id, None)

    def _template_container(self, body: JsonObject) -> JsonObject:
        if "templateId" not in body:
            return {}
        template = self.templates.get(body["templateId"])
        if template is None:
            raise RequestRefused(404, "template not found")
        if not template["serverless"]:
            raise RequestRefused(422, "Request validation failed.", ["body.templateId: is not a serverless template"])
        return copy.deepcopy({key: template[key] for key in CONTAINER})


_URLS = {
    "run": "run",
    "runSync": "runsync",
    "status": "status/{job_id}",
    "stream": "stream/{job_id}",
    "cancel": "cancel/{job_id}",
    "retry": "retry/{job_id}",
    "purgeQueue": "purge-queue",
    "health": "health",
}
_DEFAULTS: JsonObject = {
    "args": "",
    "disk": 20,
    "ports": [],
    "registry": None,
    "dataCenterIds": [],
    "networkVolumes": [],
    "timeout": 0,
    "flashboot": "OFF",
    "createdAt": CREATED_AT,
}


def _found(items: Mapping[str, JsonObject], item_id: str) -> JsonObject:
    if item_id not in items:
        raise RequestRefused(404, "resource not found")
    return items[item_id]


def _check(body: Any, schema: JsonObject) -> None:  # noqa: ANN401 - any JSON value
    if errors := validation_errors(body, schema):
        raise RequestRefused(422, "Request validation failed.", errors)


def _check_gpu(endpoint: JsonObject, gpus: list[JsonObject]) -> None:
    gpu = endpoint.get("gpu") or {}
    if gpu.get("minCudaVersion") and gpu.get("allowedCudaVersions"):
        raise RequestRefused(400, "gpu.minCudaVersion and gpu.allowedCudaVersions are mutually exclusive")
    pools = {each["pool"] for each in gpus}
    for pool in gpu.get("pools", []):
        if pool not in pools:
            raise RequestRefused(400, f"unknown GPU pool {pool!r}")
    types = {each["id"] for each in gpus if each["pool"] in gpu.get("pools", [])}
    for excluded in gpu.get("excludedTypes", []):
        if excluded not in types:
            raise RequestRefused(400, f"gpu.excludedTypes: {excluded!r} is not a GPU type of the pools")
