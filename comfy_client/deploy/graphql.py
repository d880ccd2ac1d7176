"""Cached models, which REST v2 has no field for: RunPod's GraphQL API, which is retired early in 2027.

`saveEndpoint` replaces the whole endpoint: what is left out falls back to a default. So all that is read is sent back,
with the models changed. Source: `update --model-reference` of runpodctl (internal/api/endpoints.go) and
`set-endpoint-gpus` of runpod-mcp (src/tools/endpoint-gpus.ts), which do the same; docs/reference/runpod.md#graphql.
"""

from __future__ import annotations

from typing import Any

from comfy_client.deploy.api import TIMEOUT_S, TIMES, check_address, checked_key
from comfy_client.deploy.responses import api_error
from comfy_client.deploy.variables import GRAPHQL_URL
from comfy_core.contract import JsonObject
from comfy_core.errors import RequestError
from comfy_core.http import HttpApi, retries

KEPT = (
    "id",
    "name",
    "gpuIds",
    "gpuCount",
    "workersMin",
    "workersMax",
    "idleTimeout",
    "scalerType",
    "scalerValue",
    "executionTimeoutMs",
    "flashBootType",
    "type",
    "locations",
    "templateId",
    "allowedCudaVersions",
    "minCudaVersion",
    "compliance",
)
"""The fields of an endpoint that are sent back as they are; null ones are left out, which means the same."""
READ = (
    f"query {{ myself {{ endpoints {{ {' '.join(KEPT)} modelReferences networkVolumeIds {{ networkVolumeId }} }} }} }}"
)
WRITE = "mutation Save($input: EndpointInput!) { saveEndpoint(input: $input) { id modelReferences } }"


class CachedModels:
    """The cached models of endpoints, by one key. Both calls may be repeated, and are."""

    def __init__(self, api_key: str, url: str = GRAPHQL_URL) -> None:
        check_address("RUNPOD_GRAPHQL_URL", url, GRAPHQL_URL)
        headers = {"Authorization": f"Bearer {checked_key(api_key)}"}
        self._hidden = (api_key,)
        self._api = HttpApi(url, name="RunPod (GraphQL)", headers=headers, policies={"": retries(TIMES)})

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def read(self, endpoint_id: str) -> tuple[str, ...]:
        """Return the models that RunPod caches for an endpoint. Raises RequestError."""
        return tuple(self._found(endpoint_id).get("modelReferences") or ())

    def write(self, endpoint_id: str, models: tuple[str, ...]) -> None:
        """Set the models, and nothing else, of an endpoint. Raises RequestError."""
        found = self._found(endpoint_id)
        kept = {name: found[name] for name in KEPT if found.get(name) is not None}
        volumes = [{"networkVolumeId": each["networkVolumeId"]} for each in found.get("networkVolumeIds") or ()]
        wanted = {**kept, "networkVolumeIds": volumes or None, "modelReferences": list(models)}
        self._call(WRITE, "set the cached model", {"input": wanted})

    def _found(self, endpoint_id: str) -> JsonObject:
        match self._call(READ, "read the cached model"):
            case {"myself": {"endpoints": list(endpoints)}}:
                for endpoint in endpoints:
                    if isinstance(endpoint, dict) and endpoint.get("id") == endpoint_id:
                        return endpoint
        raise RequestError(f"RunPod's GraphQL API does not list the endpoint {endpoint_id}", is_transient=True)

    def _call(self, query: str, what: str, variables: JsonObject | None = None) -> Any:  # noqa: ANN401 - any JSON value
        body = {"query": query, "variables": variables or {}}
        try:
            answer = self._api.json("POST", "", timeout_s=TIMEOUT_S, json=body)
        except RequestError as error:
            raise api_error(error, what, self._hidden) from error
        match answer:
            case {"errors": [{"message": str(message)}, *_]}:
                raise RequestError(f"RunPod's GraphQL API refuses to {what}: {message[:300]}")
            case {"data": dict(data)}:
                return data
        raise RequestError(f"RunPod's GraphQL API answered without data to {what}", is_transient=True)
