"""The two GraphQL calls with cached models: `myself { endpoints }` and `saveEndpoint`."""

from __future__ import annotations

from .account import Account, RequestRefused
from .shapes import JsonObject

_DEFAULTS: JsonObject = {
    "gpuCount": 1,
    "workersMin": 0,
    "workersMax": 3,
    "idleTimeout": 5,
    "scalerType": "QUEUE_DELAY",
    "scalerValue": 4,
    "executionTimeoutMs": 0,
    "flashBootType": "OFF",
    "type": "QB",
    "locations": None,
    "templateId": None,
    "allowedCudaVersions": None,
    "minCudaVersion": None,
    "compliance": None,
    "modelReferences": [],
    "networkVolumeIds": None,
}


def respond(account: Account, body: JsonObject) -> JsonObject:
    """Return the response to a query or a mutation. A refusal is in `errors`, as GraphQL requires."""
    try:
        if "saveEndpoint" in str(body.get("query")):
            return {"data": {"saveEndpoint": _save(account, body["variables"]["input"])}}
        return {"data": {"myself": {"endpoints": [_read(account, endpoint_id) for endpoint_id in account.endpoints]}}}
    except RequestRefused as refusal:
        return {"errors": [{"message": refusal.detail}], "data": None}


def _read(account: Account, endpoint_id: str) -> JsonObject:
    endpoint = account.endpoints[endpoint_id]
    gpu, workers = endpoint["gpu"], endpoint["workers"]
    excluded = [f"-{each}" for each in gpu.get("excludedTypes", [])]
    bound = next(key for key, bound_to in account.bound.items() if bound_to == endpoint_id)
    return {
        "id": endpoint_id,
        "name": endpoint["name"],
        "gpuIds": ",".join([*gpu["pools"], *excluded]),
        "gpuCount": gpu["count"],
        "workersMin": workers["min"],
        "workersMax": workers["max"],
        "idleTimeout": workers["idleTimeout"],
        "scalerType": endpoint["scaling"]["type"],
        "scalerValue": endpoint["scaling"]["queueDelay"],
        "executionTimeoutMs": endpoint["timeout"],
        "flashBootType": endpoint["flashboot"],
        "type": "QB",
        "locations": ",".join(endpoint["dataCenterIds"]) or None,
        "templateId": bound,
        "allowedCudaVersions": ",".join(gpu["allowedCudaVersions"]) or None,
        "minCudaVersion": gpu["minCudaVersion"],
        "compliance": None,
        "modelReferences": account.cached_models.get(endpoint_id, []),
        "networkVolumeIds": [{"networkVolumeId": each} for each in endpoint["networkVolumes"]],
    }


def _save(account: Account, given: JsonObject) -> JsonObject:
    """Replace all fields of an endpoint. Fields that are not given get their default."""
    for name in given:
        if name not in {"id", "name", "gpuIds", *_DEFAULTS}:
            raise RequestRefused(400, f'Field "{name}" is not defined by type "EndpointInput".')
    for name in ("id", "name", "gpuIds"):
        if not given.get(name):
            raise RequestRefused(400, f'Field "{name}" of required type "String!" was not provided.')
    if given["id"] not in account.endpoints:
        raise RequestRefused(404, "endpoint not found")
    new = {**_DEFAULTS, **given}
    ids = new["gpuIds"].split(",")
    endpoint = account.endpoints[given["id"]]
    endpoint |= {
        "name": new["name"],
        "gpu": {
            "pools": [each for each in ids if not each.startswith("-")],
            "excludedTypes": [each[1:] for each in ids if each.startswith("-")],
            "count": new["gpuCount"],
            "allowedCudaVersions": (new["allowedCudaVersions"] or "").split(",") if new["allowedCudaVersions"] else [],
            "minCudaVersion": new["minCudaVersion"],
        },
        "workers": {"min": new["workersMin"], "max": new["workersMax"], "idleTimeout": new["idleTimeout"]},
        "scaling": {"type": new["scalerType"], "queueDelay": new["scalerValue"]},
        "timeout": new["executionTimeoutMs"],
        "flashboot": new["flashBootType"],
        "dataCenterIds": new["locations"].split(",") if new["locations"] else [],
        "networkVolumes": [each["networkVolumeId"] for each in new["networkVolumeIds"] or []],
    }
    account.cached_models[given["id"]] = list(new["modelReferences"])
    return {"id": given["id"], "modelReferences": list(new["modelReferences"])}
