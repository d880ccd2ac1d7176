"""Request bodies of RunPod's REST v2 for the template and the endpoint of a description. Pure.

Source: docs/reference/runpod.md#rest-v2.

A template's settings are copied into an endpoint when that is made, and no link stays: so each says everything itself.
Secrets stand in the endpoint alone. Facts of RunPod's OpenAPI document (https://api.runpod.io/v2/openapi.json):

- PATCH changes only the fields that it has; an object among them is replaced, but for `gpu`, whose fields count alone.
- `gpu.pools` without `excludedTypes` clears these. `minCudaVersion` "" and `allowedCudaVersions` [] clear; a set of
  versions and a floor exclude each other; a create takes no "".
- A template starts SSH and Jupyter unless it is told not to.
- `type` and `templateId` are of the create: the first never changes, the second is not kept.
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
    """Ids at RunPod of what a description names; empty where it names none."""

    registry_id: str = ""
    volume_id: str = ""


def make_template(description: Description, ids: ResourceIds) -> JsonObject:
    """Return the template's body."""
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
    """Return the endpoint's body, as it is compared and patched."""
    return {
        "image": description.image,
        "disk": description.disk_gb,
        "env": {**dict(description.env), **secrets},
        "registry": ids.registry_id or None,
        "gpu": {
            "pools": list(pools),
            "excludedTypes": list(description.excluded_gpus),
            "count": 1,
            "allowedCudaVersions": [],
            "minCudaVersion": description.min_cuda_version,
        },
        "workers": {
            "min": description.workers_min,
            "max": description.workers_max,
            "idleTimeout": description.idle_timeout_s,
        },
        "scaling": {"type": "QUEUE_DELAY", "queueDelay": description.queue_delay_s},
        "timeout": description.execution_timeout_s * MS,
        "flashboot": description.flashboot,
        "networkVolumes": [ids.volume_id] if ids.volume_id else [],
        **({} if description.data_centers is None else {"dataCenterIds": list(description.data_centers)}),
    }


def template_creation(name: str, body: JsonObject) -> JsonObject:
    """Return what creates a template of its body."""
    return {"name": name, **body}


def endpoint_creation(name: str, body: JsonObject, template_id: str) -> JsonObject:
    """Return what creates an endpoint of its body, on a template."""
    gpu = {field: value for field, value in body["gpu"].items() if value not in ("", [])}
    return {"name": name, "type": ENDPOINT_TYPE, "templateId": template_id, **body, "gpu": gpu}
