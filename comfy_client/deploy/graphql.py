"""Reads and sets the cached models of an endpoint through RunPod's GraphQL API. REST v2 has no field for them.

RunPod retires the GraphQL API early in 2027. From then on a deployment with `storage.cached_model` fails. This module
is the only one that uses GraphQL, and can then be deleted together with that key of deploy.toml.

Source: `update --model-reference` of runpodctl (internal/api/endpoints.go) and
`set-endpoint-gpus` of runpod-mcp (src/tools/endpoint-gpus.ts), which do the same; docs/reference/runpod.md#graphql.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

from comfy_client.deploy.api import REST_TIMEOUT_S, RETRIES
from comfy_client.deploy.responses import api_error
from comfy_core.contract import JsonObject
from comfy_core.errors import RequestError
from comfy_core.http import HttpApi, retries

KEPT_FIELDS = (
    "id name gpuIds gpuCount workersMin workersMax idleTimeout scalerType scalerValue executionTimeoutMs flashBootType "
    "type locations templateId allowedCudaVersions minCudaVersion compliance"
)
"""The fields of an endpoint that are sent back unchanged, because `saveEndpoint` resets omitted fields to their
defaults. Fields that are null are not sent back, which has the same effect."""
READ = f"query {{ myself {{ endpoints {{ {KEPT_FIELDS} modelReferences networkVolumeIds {{ networkVolumeId }} }} }} }}"
WRITE = "mutation Save($input: EndpointInput!) { saveEndpoint(input: $input) { id modelReferences } }"

RETIRED = (
    "RunPod retires its GraphQL API early in 2027. If it is gone, remove storage.cached_model from deploy.toml, and "
    "set the model in RunPod's console"
)


def cached_models(api_key: str, url: str, endpoint_id: str, wanted: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Replace the models that RunPod caches for an endpoint by `wanted`, and return the models before the change.

    If `wanted` is None, nothing is changed. The endpoint's other settings never change. The calls are safe to repeat,
    and are retried. Raises RequestError.
    """
    headers = {"Authorization": f"Bearer {api_key}"}
    with closing(HttpApi(url, name="RunPod (GraphQL)", headers=headers, policies={"": retries(RETRIES)})) as api:
        endpoint = _endpoint(_call(api, api_key, READ, "read the cached model"), endpoint_id)
        before = tuple(endpoint.get("modelReferences") or ())
        if wanted not in (None, before):
            kept = {name: endpoint[name] for name in KEPT_FIELDS.split() if endpoint.get(name) is not None}
            volumes = [{"networkVolumeId": each["networkVolumeId"]} for each in endpoint.get("networkVolumeIds") or ()]
            new = {**kept, "networkVolumeIds": volumes or None, "modelReferences": list(wanted)}
            _call(api, api_key, WRITE, "set the cached model", {"input": new})
    return before


def _endpoint(data: JsonObject, endpoint_id: str) -> JsonObject:
    match data:
        case {"myself": {"endpoints": list(endpoints)}}:
            for endpoint in endpoints:
                if isinstance(endpoint, dict) and endpoint.get("id") == endpoint_id:
                    return endpoint
    raise RequestError(f"RunPod's GraphQL API does not list the endpoint {endpoint_id}", is_transient=True)


def _call(api: HttpApi, api_key: str, query: str, what: str, variables: JsonObject | None = None) -> Any:  # noqa: ANN401 - any JSON value
    body = {"query": query, "variables": variables or {}}
    try:
        response = api.json("POST", "", timeout_s=REST_TIMEOUT_S, json=body)
    except RequestError as error:
        explained = api_error(error, what, (api_key,))
        raise explained.explained(f"{explained}. {RETIRED}") from error
    match response:
        case {"errors": [{"message": str(message)}, *_]}:
            raise RequestError(f"RunPod's GraphQL API refused to {what}: {message[:300]}")
        case {"data": dict(data)}:
            return data
    raise RequestError(f"The response of RunPod's GraphQL API has no data: {what}", is_transient=True)
