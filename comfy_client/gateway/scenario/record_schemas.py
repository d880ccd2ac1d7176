"""JSON Schemas of the records that serializers.py renders, for the OpenAPI document. Pure.

`required` has the fields of every record. An own record has no other fields than `properties`; a record of Scenario
may have more. A test validates the responses of a shim against these schemas.
"""

from __future__ import annotations

from collections.abc import Mapping

from comfy_client.providers.scenario_responses import Status
from comfy_core.contract import JsonObject

TEXT: JsonObject = {"type": "string"}
TEXTS: JsonObject = {"type": "array", "items": TEXT}
NUMBER: JsonObject = {"type": "number"}
INTEGER: JsonObject = {"type": "integer"}
SWITCH: JsonObject = {"type": "boolean"}
DATE: JsonObject = {"type": "string", "format": "date"}
TIME: JsonObject = {"type": "string", "format": "date-time"}
SIDE: JsonObject = {
    "type": "string",
    "enum": ["own", "scenario"],
    "description": "Who made it: the shim's endpoint, or Scenario",
}
_STATUS: JsonObject = {"type": "string", "enum": [each.value for each in Status]}
_AS_SENT: JsonObject = {"type": ["number", "string"], "description": "As in the request"}
_ANY_OBJECT: JsonObject = {"type": "object", "additionalProperties": True}
_COUNTS: JsonObject = {"type": "object", "additionalProperties": INTEGER}
_OWNERS = {"authorId": TEXT, "ownerId": TEXT}
_TIMES = {"createdAt": TIME, "updatedAt": TIME}


def reference(name: str) -> JsonObject:
    """Return a reference to one of SCHEMAS."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: JsonObject) -> JsonObject:
    """Return the schema of an array."""
    return {"type": "array", "items": items}


def record(required: Mapping[str, JsonObject], optional: Mapping[str, JsonObject] | None = None) -> JsonObject:
    """Return the schema of an object with these fields."""
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


COST: Mapping[str, JsonObject] = {
    "creativeUnitsCost": NUMBER,
    "creativeUnitsDiscount": NUMBER,
    "costDetails": {"type": "object", "additionalProperties": NUMBER},
}
OWN_COST: Mapping[str, JsonObject] = {"estimatedUsd": NUMBER}
"""The cost fields of own jobs only."""
_BILLING = record(
    {"cuCost": NUMBER, "cuDiscount": NUMBER},
    {"usd": {"type": ["number", "null"], "description": "US dollars of an own job. Null: not ended, free, or unknown"}},
)

SCHEMAS: Mapping[str, JsonObject] = {
    "Error": record(
        {"reason": TEXT, "message": TEXT, "trace_id": TEXT},
        {
            "side": {"const": "scenario", "description": "Scenario responded with this error"},
            "may_run": {"type": "boolean", "description": "Whether the request may have started a job"},
            "remainingSeconds": NUMBER,
            "actionName": TEXT,
            "actionLimit": NUMBER,
        },
    ),
    "Job": record(
        {
            "jobId": TEXT,
            "id": TEXT,
            "jobType": TEXT,
            "status": _STATUS,
            "progress": {"type": "number", "minimum": 0, "maximum": 1},
            "statusHistory": array(record({"date": TIME, "status": _STATUS})),
            **_TIMES,
            "metadata": reference("JobMetadata"),
        },
        {**_OWNERS, "billing": _BILLING, "error": TEXT},
    ),
    "JobMetadata": record(
        {"input": _ANY_OBJECT, "assetIds": TEXTS, "side": SIDE},
        {
            "output": _ANY_OBJECT,
            "endpointJobId": {"type": "string", "description": "The job's id at your endpoint"},
            "hint": {"type": "string", "description": "The fields that were ignored or changed"},
            "error": TEXT,
            "errorCode": {"type": "string", "description": "A code of docs/errors.md"},
        },
    ),
    "PageJob": record(
        {
            "job": reference("Job"),
            "createdAt": {**TIME, "description": "When the shim got the job: the order of the list"},
            "side": SIDE,
            "caller": reference("Caller"),
            "prompt": TEXT,
            "assets": array(reference("Asset")),
        },
        {
            "queueSeconds": NUMBER,
            "runSeconds": NUMBER,
            "wholeSeconds": {"type": "number", "description": "From the request to the end"},
            "usd": {"type": "number", "description": "The cost of an own job that ran"},
            "estimatedUsd": {"type": "number", "description": "The estimated cost of an own job that has not ended"},
            "creativeUnits": {"type": "number", "description": "What Scenario charged for a forwarded job"},
            "remedy": {"type": "string", "description": "What to do about the job's error"},
        },
    ),
    "Caller": record({"id": TEXT, "name": TEXT}, {"isAdmin": SWITCH}),
    "Inference": record(
        {
            "id": TEXT,
            "modelId": TEXT,
            "status": {"type": "string", "description": "`succeeded`, `failed` or `canceled`, or a status of a job"},
            "progress": NUMBER,
            "createdAt": TIME,
            "parameters": _ANY_OBJECT,
            "images": array(record({"id": TEXT, "url": TEXT, "seed": TEXT})),
            "imagesNumber": INTEGER,
        },
        {"error": TEXT},
    ),
    "Asset": record(
        {
            "id": TEXT,
            "url": {"type": "string", "description": "The image. The URL is signed and expires"},
            "mimeType": TEXT,
            "kind": TEXT,
            "source": TEXT,
            "status": {"type": "string", "enum": ["pending", "success", "error"]},
            "metadata": reference("AssetMetadata"),
            "properties": record({"size": INTEGER}, {"width": INTEGER, "height": INTEGER}),
            **_OWNERS,
            "privacy": {"type": "string", "enum": ["private", "public", "unlisted"]},
            "tags": TEXTS,
            "collectionIds": TEXTS,
            "editCapabilities": TEXTS,
            **_TIMES,
        },
        {"isHidden": SWITCH, "outputIndex": INTEGER},
    ),
    "AssetMetadata": record(
        {"kind": TEXT, "type": TEXT, "side": SIDE},
        {
            "name": TEXT,
            "width": INTEGER,
            "height": INTEGER,
            "size": INTEGER,
            "prompt": TEXT,
            "negativePrompt": TEXT,
            "guidance": _AS_SENT,
            "numInferenceSteps": _AS_SENT,
            "strength": NUMBER,
            "scheduler": TEXT,
            "seed": TEXT,
            "modelId": TEXT,
            "inferenceId": {"type": "string", "description": "The id of the job that made the image"},
            "outputIndex": INTEGER,
        },
    ),
    "Upload": record(
        {
            "id": TEXT,
            "status": {
                "type": "string",
                "enum": ["pending", "validating", "validated", "imported", "complete", "failed"],
            },
            "fileName": TEXT,
            "kind": TEXT,
            "source": TEXT,
            **_OWNERS,
            **_TIMES,
        },
        {
            "contentType": TEXT,
            "fileSize": INTEGER,
            "partsCount": INTEGER,
            "parts": array(record({"number": INTEGER, "url": TEXT, "expires": TIME})),
            "entityId": {"type": "string", "description": "The id of the asset, when the status is `imported`"},
            "errorMessage": TEXT,
        },
    ),
    "Model": record(
        {
            "id": TEXT,
            "type": TEXT,
            "status": TEXT,
            "privacy": TEXT,
            "source": TEXT,
            "capabilities": TEXTS,
            "collectionIds": TEXTS,
            "tags": TEXTS,
            "custom": SWITCH,
            "exampleAssetIds": TEXTS,
            "trainingImagesNumber": INTEGER,
            **_TIMES,
        },
        {"name": TEXT, "inputs": array(reference("ModelInput"))},
    ),
    "ModelInput": record(
        {"name": TEXT, "type": TEXT},
        {
            "min": NUMBER,
            "max": NUMBER,
            "step": NUMBER,
            "maxLength": INTEGER,
            "allowedValues": array({"type": ["string", "number"]}),
            "default": {"type": ["string", "number", "boolean"]},
            "required": record({}, {"always": SWITCH}),
            "kind": TEXT,
        },
    ),
}
"""The schemas by their names in the OpenAPI document."""

_USAGE: Mapping[str, JsonObject] = {
    "caller": {"type": "string", "description": "The `ownerId` of the caller's jobs"},
    "side": SIDE,
    "jobs": INTEGER,
    "failed": INTEGER,
    "seconds": {"type": "number", "description": "How long the own jobs ran"},
    "usd": {"type": "number", "description": "US dollars of the own jobs"},
    "creativeUnits": {"type": "number", "description": "What Scenario announced for the forwarded jobs"},
}
_PAGE_JOBS = array(reference("PageJob"))
_INFERENCE = {"inference": reference("Inference")}
OTHER_RESULTS: Mapping[str, Mapping[str, JsonObject]] = {
    "POST /models/{modelId}/inferences": _INFERENCE,
    "GET /models/{modelId}/inferences/{inferenceId}": _INFERENCE,
    "PUT /assets/{assetId}/tags": {"added": TEXTS, "deleted": TEXTS},
    "POST /assets/{assetId}/download": {"url": TEXT, "mimeType": TEXT},
    "GET /shim/overview": {
        "health": record({"why": TEXT, "sentence": TEXT, "workers": _COUNTS}),
        "cost": record({"jobs": INTEGER, "seconds": NUMBER, "usd": {"type": ["number", "null"]}}),
        "scenario": record({"jobs": INTEGER, "creative_units": NUMBER}),
        "caller": reference("Caller"),
        "callers": array(reference("Caller")),
        "hasScenario": {"type": "boolean", "description": "Whether the shim has a key of Scenario"},
        "routing": array(record({"capability": TEXT, "side": SIDE, "percent": INTEGER})),
    },
    "GET /shim/jobs": {"jobs": _PAGE_JOBS, "nextPaginationToken": TEXT, "changeToken": TEXT},
    "GET /shim/jobs/changes": {
        "jobs": _PAGE_JOBS,
        "matching": TEXTS,
        "deleted": TEXTS,
        "hasMore": SWITCH,
        "isComplete": {"type": "boolean", "description": "False: load the list again, the shim lacks some changes"},
        "changeToken": TEXT,
    },
    "GET /shim/usage": {
        "startDate": DATE,
        "endDate": DATE,
        "days": array(record({"date": DATE, **_USAGE})),
        "totals": array(record(_USAGE)),
    },
}
"""For each route, the fields of a response that `result_key` and the cost do not cover."""
