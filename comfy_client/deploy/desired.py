"""Builds the request bodies of RunPod's REST v2 for the template and the endpoint of a description. No I/O.

Source: docs/reference/runpod.md#rest-v2.

RunPod copies a template's settings into an endpoint when the endpoint is created, and keeps no link. So both bodies are
complete. Secrets are only in the endpoint's body.

Facts from RunPod's OpenAPI document (https://api.runpod.io/v2/openapi.json):

- PATCH changes only the given fields. A field that is an object is replaced, except `gpu`, whose fields are merged.
- A PATCH with `gpu.pools` but without `gpu.excludedTypes` clears `gpu.excludedTypes`.
- `gpu.minCudaVersion` is cleared by "", and `gpu.allowedCudaVersions` by []. Only one of them can be set. A create does
  not accept "" as `gpu.minCudaVersion`.
- A template starts SSH and Jupyter by default.
- `type` and `templateId` are fields of the create only. `type` cannot be changed, and `templateId` is not stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from comfy_client.deploy.description import Description
from comfy_core.contract import JsonObject

ENDPOINT_TYPE = "QUEUE"
MS = 1000


@dataclass(frozen=True)
class ResourceIds:
    """RunPod ids of the resources that a description names. The id of a resource that it does not name is empty."""

    registry_id: str = ""
    volume_id: str = ""


def make_template(description: Description, ids: ResourceIds) -> JsonObject:
    """Return the desired state of the template."""
    return {
        "image": description.image,
        "disk": description.disk_gb,
        "env": dict(description.env),
        "registry": ids.registry_id or None,
        "serverless": True,
        "startSsh": False,
        "startJupyter": False,
    }


def make_endpoint(
    description: Description, ids: ResourceIds, pools: Sequence[str], secrets: Mapping[str, str]
) -> JsonObject:
    """Return the desired state of the endpoint, for comparison and PATCH."""
    centers = description.storage_data_centers
    return {
        "image": description.image,
        "disk": description.disk_gb,
        "env": {**description.env, **secrets},
        "registry": ids.registry_id or None,
        "gpu": {
            "pools": list(pools),
            "excludedTypes": list(description.gpu_excluded),
            "count": 1,
            "allowedCudaVersions": [],
            "minCudaVersion": description.gpu_min_cuda_version,
        },
        "workers": {
            "min": description.workers_min,
            "max": description.workers_max,
            "idleTimeout": description.workers_idle_timeout_s,
        },
        "scaling": {"type": "QUEUE_DELAY", "queueDelay": description.workers_queue_delay_s},
        "timeout": description.workers_execution_timeout_s * MS,
        "flashboot": description.workers_flashboot,
        "networkVolumes": [ids.volume_id] if ids.volume_id else [],
        **({} if centers is None else {"dataCenterIds": list(centers)}),
    }


def template_creation(name: str, body: JsonObject) -> JsonObject:
    """Return the request body that creates a template."""
    return {"name": name, **body}


def endpoint_creation(name: str, body: JsonObject, template_id: str) -> JsonObject:
    """Return the request body that creates an endpoint from a template."""
    gpu = {field: value for field, value in body["gpu"].items() if value not in ("", [])}
    return {"name": name, "type": ENDPOINT_TYPE, "templateId": template_id, **body, "gpu": gpu}
