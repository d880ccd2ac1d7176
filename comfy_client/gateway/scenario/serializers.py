"""Renders jobs, assets, uploads and models as Scenario's JSON. Pure.

Each object has all fields that the official SDK declares as required, so that it passes the SDK's strict validation
(docs/reference/scenario.md#response-of-a-generate-call). record_schemas.py has their JSON Schemas.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

from comfy_client.gateway.scenario.fields import ASPECT_RATIOS, BASE_MODELS, ROUTES
from comfy_client.gateway.scenario.models import ShimAsset, ShimJob, ShimUpload, Side
from comfy_client.gateway.scenario.settings import CostRules
from comfy_client.gateway.scenario.studio_models import StudioModel
from comfy_client.providers.scenario_responses import Status
from comfy_core.contract import JsonObject
from comfy_core.prices import job_usd

AssetUrl: TypeAlias = Callable[[str], str]
"""Returns the URL of an asset's image. The HTTP server signs it, and it expires."""
PartUrl: TypeAlias = Callable[[str, int], tuple[str, float]]
"""Returns the signed URL for an upload's part, and its expiry in seconds since 1970."""

_MODEL_CREATED_AT = 1_700_000_000.0
"""A placeholder: the API requires a creation time, and the shim's models have none."""


def iso(at: float) -> str:
    """Return a time in Scenario's format: `2026-01-01T00:00:00.000Z`."""
    moment = dt.datetime.fromtimestamp(at, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def estimate_usd(request: Mapping[str, object], costs: CostRules) -> float:
    """Return the estimated cost of a request: its estimated seconds times the worker's price.

    The seconds are `seconds_per_job`, plus `seconds_per_step` for each step, megapixel and image. A negative prompt
    doubles the steps; `strength` below 1 reduces them.
    """

    def number(key: str, default: float) -> float:
        value = request.get(key, default)
        return float(value) if isinstance(value, int | float) else default

    megapixels = number("width", 1024) * number("height", 1024) / 1024**2
    steps = number("steps", 28) * number("strength", 1) * (2 if request.get("negative_prompt") else 1)
    seconds = costs.seconds_per_job + costs.seconds_per_step * megapixels * steps * number("num_images", 1)
    return job_usd(seconds, costs.usd_per_s)


def whole_units(usd: float, costs: CostRules) -> int:
    """Return US dollars in creative units, rounded up: callers in Go and C# read a whole number."""
    return math.ceil(round(usd * costs.units_per_usd, 6))


def cost(usd: float, costs: CostRules) -> JsonObject:
    """Return the cost fields of a generate response and of a dry run: creative units, and US dollars."""
    units = whole_units(usd, costs)
    return {
        "creativeUnitsCost": units,
        "creativeUnitsDiscount": 0,
        "costDetails": {"custom-generation": units},
        "estimatedUsd": round(usd, 5),
    }


def job_record(job: ShimJob, costs: CostRules) -> JsonObject:
    """Return a job as in `GET /jobs/{jobId}`. `id` repeats `jobId` for callers that follow old documentation."""
    if job.side is Side.SCENARIO:
        return scenario_job_record(job.scenario_record)
    usd = job.estimate_usd if job.execution_s is None else job.cost_usd or 0.0
    metadata: JsonObject = {
        "input": dict(job.scenario_request),
        "assetIds": list(job.asset_ids),
        "output": {},
        "side": job.side.value,
    }
    if job.endpoint_id:
        metadata["endpointJobId"] = job.endpoint_id
    if job.notes:
        metadata["hint"] = "; ".join(job.notes)
    if job.error:
        metadata |= {"error": job.error, "errorCode": job.error_code}
    return {
        "jobId": job.id,
        "id": job.id,
        "jobType": job.job_type,
        "status": job.status.value,
        "progress": job.progress,
        "statusHistory": [{"date": iso(at), "status": status} for at, status in job.history],
        "createdAt": iso(job.created_at),
        "updatedAt": iso(job.updated_at),
        "authorId": job.owner,
        "ownerId": job.owner,
        "metadata": metadata,
        "billing": {"cuCost": whole_units(usd, costs), "cuDiscount": 0, "usd": job.cost_usd},
        **({"error": job.error} if job.error else {}),
    }


_INFERENCE_STATES = {Status.SUCCESS: "succeeded", Status.FAILURE: "failed", Status.CANCELED: "canceled"}


def inference_record(job: ShimJob, url_of: AssetUrl) -> JsonObject:
    """Return a job in the format of the oldest route, whose callers test for `succeeded` and `failed`.

    Source: docs/reference/scenario.md#callers.
    """
    return {
        "id": job.id,
        "modelId": job.model_id,
        "status": _INFERENCE_STATES.get(job.status, job.status.value),
        "progress": job.progress,
        "createdAt": iso(job.created_at),
        "parameters": {**job.scenario_request, "type": job.task},
        "images": [
            {"id": asset_id, "url": url_of(asset_id), "seed": str(job.worker_request.get("seed", ""))}
            for asset_id in job.asset_ids
        ],
        "imagesNumber": job.worker_request.get("num_images", 1),
        **({"error": job.error} if job.error else {}),
    }


def scenario_job_record(record: JsonObject) -> JsonObject:
    """Return Scenario's record of a job with `id`, and with the fields of `metadata` that every job here has."""
    return {
        **record,
        "id": record.get("jobId"),
        "metadata": {"input": {}, "assetIds": [], **(record.get("metadata") or {}), "side": Side.SCENARIO.value},
    }


_EDITS = (
    *("DETECTION", "GENERATIVE_FILL", "PIXELATE", "PROMPT_EDITING", "REFINE", "REFRAME"),
    *("REMOVE_BACKGROUND", "SEGMENTATION", "UPSCALE", "UPSCALE_360", "VECTORIZATION"),
)
"""What Scenario can do with an image (SDK 2.4.0, types/asset_retrieve_response.py)."""


def asset_record(asset: ShimAsset, url_of: AssetUrl, *, has_scenario: bool) -> JsonObject:
    """Return an asset as in `GET /assets/{id}`. A copy of an asset of Scenario has Scenario's fields.

    `editCapabilities` is empty unless the shim can forward the edits to Scenario (`has_scenario`).
    """
    if asset.side is Side.SCENARIO:
        metadata = {**(asset.scenario_record.get("metadata") or {}), "side": asset.side.value}
        return {
            **asset.scenario_record,
            "metadata": metadata,
            "url": url_of(asset.id),
            "tags": list(asset.tags),
            "editCapabilities": asset.scenario_record.get("editCapabilities", []) if has_scenario else [],
        }
    size = {"width": asset.width, "height": asset.height, "size": asset.bytes}
    return {
        "id": asset.id,
        "url": url_of(asset.id),
        "mimeType": asset.mime_type,
        "kind": "image",
        "source": asset.source,
        "status": "success",
        "metadata": {
            "kind": "image",
            "type": asset.type,
            "name": asset.name,
            "side": asset.side.value,
            **size,
            **asset.metadata,
        },
        "properties": size,
        "ownerId": asset.owner,
        "authorId": asset.owner,
        "privacy": "private",
        "tags": list(asset.tags),
        "collectionIds": [],
        "editCapabilities": list(_EDITS) if has_scenario else [],
        "createdAt": iso(asset.created_at),
        "updatedAt": iso(asset.updated_at),
        "isHidden": asset.is_hidden,
        "outputIndex": asset.output_index,
    }


def upload_record(upload: ShimUpload, part_of: PartUrl) -> JsonObject:
    """Return an upload as in `GET /uploads/{id}`, with the URLs of the parts while the upload is pending."""
    parts = []
    if upload.state == "pending":
        part_urls = [(number, *part_of(upload.id, number)) for number in range(1, upload.parts + 1)]
        parts = [{"number": number, "url": url, "expires": iso(until)} for number, url, until in part_urls]
    return {
        "id": upload.id,
        "status": upload.state,
        "fileName": upload.file_name,
        "contentType": upload.content_type,
        "fileSize": upload.bytes,
        "kind": "image",
        "source": "multipart",
        "partsCount": upload.parts,
        "parts": parts,
        "authorId": upload.owner,
        "ownerId": upload.owner,
        "createdAt": iso(upload.created_at),
        "updatedAt": iso(upload.updated_at),
        **({"entityId": upload.asset_id} if upload.asset_id else {}),
        **({"errorMessage": upload.error} if upload.error else {}),
    }


def model_records(models: Mapping[str, StudioModel], *, has_scenario: bool) -> list[JsonObject]:
    """Return all models: Flux.1-dev under each of its ids, then the studio's.

    `capabilities` of Flux.1-dev includes those that only Scenario has if the shim can forward them (`has_scenario`).
    """
    base = [_model(each, "FLUX.1 [dev]", "custom", _inputs()) for each in BASE_MODELS]
    for each in base if has_scenario else []:
        each["capabilities"] += _FORWARDED_CAPABILITIES
    return base + [_model(each, model.name, "flux.1-lora", []) for each, model in models.items()]


_FORWARDED_CAPABILITIES = ("controlnet", "outpaint")
"""The rest of what Flux.1-dev can do at Scenario (docs/reference/scenario.md#route-a)."""


def _model(model_id: str, name: str, kind: str, inputs: list[JsonObject]) -> JsonObject:
    return {
        "id": model_id,
        "name": name,
        "type": kind,
        "status": "trained",
        "privacy": "public" if kind == "custom" else "private",
        "source": "other",
        "capabilities": ["txt2img", "img2img"],
        "collectionIds": [],
        "tags": [],
        "custom": kind == "custom",
        "exampleAssetIds": [],
        "trainingImagesNumber": 0,
        "createdAt": iso(_MODEL_CREATED_AT),
        "updatedAt": iso(_MODEL_CREATED_AT),
        "inputs": inputs,
    }


def _inputs() -> list[JsonObject]:
    """Return the supported fields of the current generate route, for callers that build forms from them.

    Source: docs/reference/scenario.md#models.
    """
    route = ROUTES["custom"]
    entries = []
    for name, field in route.fields.items():
        schema_type = field.rule.get("type")
        if not field.becomes or name in _OTHER_SPELLINGS:
            continue
        entry: JsonObject = {
            "name": name,
            "type": _TYPES_BY_NAME.get(name) or _TYPES_BY_SCHEMA_TYPE.get(str(schema_type), "string"),
        }
        entry |= {key: field.rule[keyword] for key, keyword in _LIMITS.items() if keyword in field.rule}
        if name in route.defaults:
            entry["default"] = route.defaults[name]
        if name == "prompt":
            entry["required"] = {"always": True}
        if name == "image":
            entry["kind"] = "image"
        if name in ("width", "height"):
            entry["step"] = 16
        if name == "aspectRatio":
            entry["allowedValues"] = list(ASPECT_RATIOS)
        entries.append(entry)
    return entries


_OTHER_SPELLINGS = frozenset({"numSamples", "imageId", "imageUrl", "concepts"})
_TYPES_BY_NAME = {
    "image": "file",
    "seed": "number",
    "loras": "model_array",
    "lorasScale": "number_array",
    "modelId": "model",
}
_TYPES_BY_SCHEMA_TYPE = {"integer": "number", "number": "number", "boolean": "boolean"}
# Scenario's keys, and the keywords of JSON Schema.
_LIMITS = {"min": "minimum", "max": "maximum", "maxLength": "maxLength", "allowedValues": "enum"}
