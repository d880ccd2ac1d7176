"""Jobs, assets, uploads and models as Scenario's JSON. Pure.

Each has every field that the official SDK declares as required, so that its strict validation takes them
(docs/reference/scenario.md#answer-of-a-generate-call).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from typing import TypeAlias

from comfy_client.gateway.scenario.fields import ASPECT_RATIOS, BASE_MODELS, ROUTES
from comfy_client.gateway.scenario.models import AssetRow, JobRow, Status, UploadRow
from comfy_client.gateway.scenario.settings import CostRules
from comfy_client.prices import job_usd
from comfy_core.contract import JsonObject

Address: TypeAlias = Callable[[str], str]
"""From an asset's id to the address of its picture, which is signed and expires."""
PartAddress: TypeAlias = Callable[[str, int], tuple[str, float]]
"""From an upload's id and a part's number to where it is put, and until when (seconds since 1970)."""

_EPOCH = 1_700_000_000.0
"""When the models were "made": they have no date of ours."""


def iso(at: float) -> str:
    """Return a time as Scenario writes it: `2026-01-01T00:00:00.000Z`."""
    moment = dt.datetime.fromtimestamp(at, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def estimate_usd(request: Mapping[str, object], costs: CostRules) -> float:
    """Return what a request is taken to cost: seconds by pixels, steps and pictures, times the rate.

    Seconds are `seconds_per_job`, and `seconds_per_step` for each step of each megapixel of each picture; a negative
    prompt doubles the steps, and `strength` leaves some out.
    """

    def number(key: str, absent: float) -> float:
        value = request.get(key, absent)
        return float(value) if isinstance(value, int | float) else absent

    megapixels = number("width", 1024) * number("height", 1024) / 1024**2
    steps = number("steps", 28) * number("strength", 1) * (2 if request.get("negative_prompt") else 1)
    seconds = costs.seconds_per_job + costs.seconds_per_step * megapixels * steps * number("num_images", 1)
    return job_usd(seconds, costs.usd_per_s)


def cost(usd: float, costs: CostRules) -> JsonObject:
    """Return the cost as it stands beside a job, and as a dry run answers it: units, and the money that they are."""
    units = round(usd * costs.units_per_usd, 2)
    return {
        "creativeUnitsCost": units,
        "creativeUnitsDiscount": 0,
        "costDetails": {"custom-generation": units},
        "estimatedUsd": round(usd, 5),
    }


def job_record(job: JobRow, costs: CostRules) -> JsonObject:
    """Return a job as `GET /jobs/{jobId}` has it. `id` is there beside `jobId` for callers of an old page."""
    usd = job.estimate_usd if job.execution_s is None else job_usd(job.execution_s, costs.usd_per_s)
    metadata: JsonObject = {"input": dict(job.asked), "assetIds": list(job.asset_ids), "output": {}}
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
        "billing": {"cuCost": round(usd * costs.units_per_usd, 2), "cuDiscount": 0},
        **({"error": job.error} if job.error else {}),
    }


_INFERENCE_STATES = {Status.SUCCESS: "succeeded", Status.FAILURE: "failed", Status.CANCELED: "canceled"}


def inference_record(job: JobRow, url_of: Address) -> JsonObject:
    """Return a job as the oldest route has it, whose callers test `succeeded` and `failed`.

    Source: docs/reference/scenario.md#callers.
    """
    return {
        "id": job.id,
        "modelId": job.model_id,
        "status": _INFERENCE_STATES.get(job.status, job.status.value),
        "progress": job.progress,
        "createdAt": iso(job.created_at),
        "parameters": {**job.asked, "type": job.task},
        "images": [
            {"id": asset_id, "url": url_of(asset_id), "seed": str(job.input.get("seed", ""))}
            for asset_id in job.asset_ids
        ],
        "imagesNumber": job.input.get("num_images", 1),
        **({"error": job.error} if job.error else {}),
    }


def asset_record(asset: AssetRow, url_of: Address) -> JsonObject:
    """Return an asset as `GET /assets/{id}` has it."""
    size = {"width": asset.width, "height": asset.height, "size": asset.bytes}
    return {
        "id": asset.id,
        "url": url_of(asset.id),
        "mimeType": asset.mime_type,
        "kind": "image",
        "source": asset.source,
        "status": "success",
        "metadata": {"kind": "image", "type": asset.type, "name": asset.name, **size, **asset.about},
        "properties": size,
        "ownerId": asset.owner,
        "authorId": asset.owner,
        "privacy": "private",
        "tags": list(asset.tags),
        "collectionIds": [],
        "editCapabilities": [],
        "createdAt": iso(asset.created_at),
        "updatedAt": iso(asset.updated_at),
        "isHidden": asset.is_hidden,
        "outputIndex": asset.output_index,
    }


def upload_record(upload: UploadRow, part_of: PartAddress) -> JsonObject:
    """Return an upload as `GET /uploads/{id}` has it; the parts' addresses only while they are wanted."""
    parts = []
    if upload.state == "pending":
        addresses = [(number, *part_of(upload.id, number)) for number in range(1, upload.parts + 1)]
        parts = [{"number": number, "url": url, "expires": iso(until)} for number, url, until in addresses]
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


def model_records(loras: Mapping[str, str]) -> list[JsonObject]:
    """Return the models: Flux.1-dev under each of its ids, then the LoRAs of the table."""
    base = [_model(each, "FLUX.1 [dev]", "custom", _inputs()) for each in BASE_MODELS]
    return base + [_model(each, file, "flux.1-lora", []) for each, file in loras.items()]


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
        "createdAt": iso(_EPOCH),
        "updatedAt": iso(_EPOCH),
        "inputs": inputs,
    }


def _inputs() -> list[JsonObject]:
    """Return the fields of the current route that are honoured, as schema-driven callers read them.

    Source: docs/reference/scenario.md#models.
    """
    route = ROUTES["custom"]
    shown = []
    for name, field in route.fields.items():
        kind = field.rule.get("type")
        if not field.becomes or name in _OTHER_SPELLINGS:
            continue
        entry: JsonObject = {"name": name, "type": _KINDS.get(name) or _TYPES.get(str(kind), "string")}
        entry |= {ours: field.rule[theirs] for ours, theirs in _LIMITS.items() if theirs in field.rule}
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
        shown.append(entry)
    return shown


_OTHER_SPELLINGS = frozenset({"numSamples", "imageId", "imageUrl", "concepts"})
_KINDS = {"image": "file", "seed": "number", "loras": "model_array", "lorasScale": "number_array", "modelId": "model"}
_TYPES = {"integer": "number", "number": "number", "boolean": "boolean"}
_LIMITS = {"min": "minimum", "max": "maximum", "maxLength": "maxLength", "allowedValues": "enum"}
