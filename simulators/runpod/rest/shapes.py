"""The JSON Schemas of REST v2's request bodies, and the GPU catalogue."""

from __future__ import annotations

from typing import Any, TypeAlias

import jsonschema

JsonObject: TypeAlias = dict[str, Any]

_VERSION = r"^\d+\.\d+$"
_CONTAINER: JsonObject = {
    "image": {"type": "string", "minLength": 1},
    "args": {"type": "string"},
    "disk": {"type": "integer", "minimum": 1},
    "env": {"type": "object", "additionalProperties": {"type": "string"}},
    "ports": {"type": "array", "items": {"type": "string"}},
    "registry": {"type": ["string", "null"]},
}
_TEMPLATE: JsonObject = {
    **_CONTAINER,
    "name": {"type": "string", "minLength": 1},
    "serverless": {"type": "boolean"},
    "public": {"type": "boolean"},
    "category": {"enum": ["NVIDIA", "AMD", "CPU"]},
    "startSsh": {"type": "boolean"},
    "startJupyter": {"type": "boolean"},
    "allowedCudaVersions": {"type": "array", "items": {"type": "string", "pattern": _VERSION}},
}


def _gpu(min_version_pattern: str, required: list[str]) -> JsonObject:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "dependentRequired": {"excludedTypes": ["pools"]},
        "properties": {
            "pools": {"type": "array", "minItems": 1, "items": {"type": "string"}},
            "excludedTypes": {
                "type": "array",
                "uniqueItems": True,
                "items": {"type": "string", "pattern": r"^\s*[^-\s]"},
            },
            "count": {"type": "integer", "minimum": 1},
            "allowedCudaVersions": {"type": "array", "items": {"type": "string", "pattern": _VERSION}},
            "minCudaVersion": {"type": "string", "pattern": min_version_pattern},
        },
    }


_ENDPOINT: JsonObject = {
    **_CONTAINER,
    "name": {"type": "string", "minLength": 1},
    "templateId": {"type": "string", "minLength": 1},
    "workers": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "min": {"type": "integer", "minimum": 0},
            "max": {"type": "integer", "minimum": 0},
            "idleTimeout": {"type": "integer", "minimum": 1, "maximum": 3600},
        },
    },
    "scaling": {
        "type": "object",
        "additionalProperties": False,
        "required": ["type", "queueDelay"],
        "properties": {"type": {"const": "QUEUE_DELAY"}, "queueDelay": {"type": "number", "minimum": 0.5}},
    },
    "timeout": {"type": "integer"},
    "flashboot": {"enum": ["OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"]},
    "networkVolumes": {"type": "array", "items": {"type": "string"}},
    "dataCenterIds": {"type": "array", "items": {"type": "string"}},
}


def _body(properties: JsonObject, required: list[str]) -> JsonObject:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


CREATE_TEMPLATE = _body(_TEMPLATE, ["name", "image"])
UPDATE_TEMPLATE = _body(_TEMPLATE, [])
CREATE_ENDPOINT = _body(
    {**_ENDPOINT, "type": {"enum": ["QUEUE", "LOAD_BALANCER"]}, "gpu": _gpu(_VERSION, ["pools"])},
    ["name", "type", "scaling"],
)
UPDATE_ENDPOINT = _body({**_ENDPOINT, "gpu": _gpu(rf"^$|{_VERSION}", [])}, [])


def validation_errors(body: object, schema: JsonObject) -> list[str]:
    """Return the errors of a body as texts in RunPod's format."""
    return [
        f"body{''.join(f'.{part}' for part in error.absolute_path)}: {error.message}"
        for error in jsonschema.Draft202012Validator(schema).iter_errors(body)
    ]


def gpu(pool: str | None, name: str, memory: int, usd_per_h: float | None, availability: str = "HIGH") -> JsonObject:
    """Return a GPU type's entry in the catalogue."""
    price = {"secure": 0.44, "community": 0.31}
    return {
        "id": f"NVIDIA {name}",
        "name": name,
        "pool": pool,
        "manufacturer": "NVIDIA",
        "memory": memory,
        "secure": True,
        "community": True,
        "price": price if usd_per_h is None else price | {"serverless": usd_per_h},
        "maxCount": {"secure": 8, "community": 4},
        "availability": availability,
    }


CATALOGUE = (
    gpu("ADA_24", "RTX 4090", 24, 1.116),
    gpu("AMPERE_24", "RTX A5000", 24, 0.684),
    gpu("AMPERE_24", "L4", 24, 0.684, "LOW"),
    gpu("AMPERE_48", "RTX A6000", 48, 1.224),
    gpu("ADA_48_PRO", "L40", 48, 1.908, "LOW"),
    gpu("ADA_48_PRO", "L40S", 48, 1.908, "NONE"),
    gpu("AMPERE_16", "RTX A4000", 16, 0.576),
    gpu("ADA_32_PRO", "RTX 5090", 32, None, "NONE"),
    gpu(None, "RTX 3070", 8, None),
)
"""A catalogue with the prices of comfy_core.prices. Some GPU types have a low availability."""
