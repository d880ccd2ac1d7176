"""Reads and sets cached models through RunPod's GraphQL API, since REST v2 has no field for them.

RunPod retires the GraphQL API early in 2027. `saveEndpoint` replaces the whole endpoint, and resets omitted fields to
their defaults. So all fields are read and sent back, with only the models changed.

Source: `update --model-reference` of runpodctl (internal/api/endpoints.go) and
`set-endpoint-gpus` of runpod-mcp (src/tools/endpoint-gpus.ts), which do the same; docs/reference/runpod.md#graphql.
"""

from __future__ import annotations

from typing import Any

from comfy_client.deploy.api import TIMEOUT_S, TIMES, check_url, checked_key
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
"""The fields of an endpoint that are sent back unchanged. Null fields are omitted, which means the same."""
READ = (
    f"query {{ myself {{ endpoints {{ {' '.join(KEPT)} modelReferences networkVolumeIds {{ networkVolumeId }} }} }} }}"
)
WRITE = "mutation Save($input: EndpointInput!) { saveEndpoint(input: $input) { id modelReferences } }"


class CachedModels:
    """The cached models of an account's endpoints. Both calls are safe to repeat, and are retried."""

    def __init__(self, api_key: str, url: str = GRAPHQL_URL.default) -> None:
        check_url(GRAPHQL_URL, url)
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
        """Set the cached models of an endpoint, and change nothing else. Raises RequestError."""
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
            response = self._api.json("POST", "", timeout_s=TIMEOUT_S, json=body)
        except RequestError as error:
            raise api_error(error, what, self._hidden) from error
        match response:
            case {"errors": [{"message": str(message)}, *_]}:
                raise RequestError(f"RunPod's GraphQL API refused to {what}: {message[:300]}")
            case {"data": dict(data)}:
                return data
        raise RequestError(f"The response of RunPod's GraphQL API has no data: {what}", is_transient=True)
