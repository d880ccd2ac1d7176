"""HTTP client for the calls of RunPod's REST API v2 that a deployment needs.

All calls except the two creates are safe to repeat, and are retried after server errors. A create is retried only if it
certainly did not arrive, or RunPod returned 429. Callers look for a resource by name before they create it.
Source of the calls: docs/reference/runpod.md#rest-v2 and https://api.runpod.io/v2/openapi.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from comfy_client.deploy.responses import api_error
from comfy_client.deploy.variables import REST_BASE_URL
from comfy_core.contract import JsonObject
from comfy_core.errors import RequestError
from comfy_core.http import HttpApi, retries

Kind: TypeAlias = Literal["template", "endpoint"]
PATHS: Mapping[Kind, str] = {"template": "/templates", "endpoint": "/serverless"}
REST_TIMEOUT_S = 60.0
RETRIES = 3
RATE_LIMITED = frozenset({429})
NOT_FOUND = 404


class RestApi:
    """RunPod's REST API v2, called with one API key.

    The key and the secrets in `hidden` are removed from error messages. The methods that call RunPod raise
    RequestError, or its subclass Unauthorized if RunPod rejects the key.
    """

    def __init__(self, api_key: str, base_url: str = REST_BASE_URL.default, hidden: tuple[str, ...] = ()) -> None:
        headers = {"Authorization": f"Bearer {api_key}"}
        self._hidden = (api_key, *hidden)
        if_unsent = retries(RETRIES, statuses=RATE_LIMITED, is_repeatable=False)
        self._create_calls = HttpApi(base_url, name="RunPod", headers=headers, policies={"/": if_unsent})
        self._repeatable_calls = HttpApi(base_url, name="RunPod", headers=headers, policies={"/": retries(RETRIES)})

    def close(self) -> None:
        """Close the connections."""
        self._create_calls.close()
        self._repeatable_calls.close()

    def templates(self) -> list[JsonObject]:
        """Return the account's templates."""
        return self._list("/templates", "templates", "list the templates")

    def endpoints(self) -> list[JsonObject]:
        """Return the account's serverless endpoints."""
        return self._list("/serverless", "endpoints", "list the endpoints")

    def registries(self) -> list[JsonObject]:
        """Return the credentials for container registries, each with `id` and `name`."""
        return self._list("/registries", "registries", "list the registries' credentials")

    def network_volumes(self) -> list[JsonObject]:
        """Return the network volumes, each with `id`, `name`, `size` in GB and `dataCenter`."""
        return self._list("/network-volumes", "networkVolumes", "list the network volumes")

    def workers(self, endpoint_id: str) -> list[JsonObject]:
        """Return an endpoint's workers, each with `id`, `status`, `isStale` and `gpuTypeId`."""
        return self._list(f"/serverless/{endpoint_id}/workers", "workers", "list the endpoint's workers")

    def catalogue(self) -> list[JsonObject]:
        """Return the GPU types with their pool, price and availability for serverless."""
        params = {"include": "AVAILABILITY", "product": "SERVERLESS"}
        return self._list("/catalog/gpus", "gpus", "read the catalogue of GPUs", params)

    def create(self, kind: Kind, body: JsonObject) -> JsonObject:
        """Create a template or an endpoint and return it.

        Retried only after 429, or if the request certainly did not arrive.
        """
        return self._object(self._create_calls, "POST", PATHS[kind], f"create the {kind} {body['name']}", body)

    def update(self, kind: Kind, resource_id: str, body: JsonObject) -> JsonObject:
        """Change the given fields and return the resource. RunPod then replaces workers that have the old settings."""
        return self._object(self._repeatable_calls, "PATCH", f"{PATHS[kind]}/{resource_id}", f"update the {kind}", body)

    def delete(self, kind: Kind, resource_id: str) -> None:
        """Delete a template, or an endpoint with its workers and jobs. No error if it does not exist.

        Raises RequestError, with status 400 for a template that an endpoint uses.
        """
        try:
            self._repeatable_calls.call("DELETE", f"{PATHS[kind]}/{resource_id}", timeout_s=REST_TIMEOUT_S)
        except RequestError as error:
            if error.status != NOT_FOUND:
                raise api_error(error, f"delete the {kind}", self._hidden) from error

    def _list(self, path: str, key: str, what: str, params: dict[str, str] | None = None) -> list[JsonObject]:
        response = self._call(self._repeatable_calls, "GET", path, what, params=params)
        items = response.get(key) if isinstance(response, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) and "id" in item for item in items):
            raise RequestError(f"RunPod's response has no {key!r}: {what}", is_transient=True)
        return items

    def _object(self, api: HttpApi, method: str, path: str, what: str, body: JsonObject) -> JsonObject:
        match self._call(api, method, path, what, body=body):
            case {"id": str()} as found:
                return dict(found)
        raise RequestError(f"RunPod's response has no id: {what}", is_transient=True)

    def _call(
        self,
        api: HttpApi,
        method: str,
        path: str,
        what: str,
        *,
        body: JsonObject | None = None,
        params: dict[str, str] | None = None,
    ) -> Any:  # noqa: ANN401 - any JSON value
        try:
            return api.json(method, path, timeout_s=REST_TIMEOUT_S, json=body, params=params)
        except RequestError as error:
            raise api_error(error, what, self._hidden) from error
