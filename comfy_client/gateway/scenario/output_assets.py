"""Builds the assets for the images of a finished job. Pure, except for random ids."""

from __future__ import annotations

from comfy_client.gateway.scenario.asset_storage import new_id
from comfy_client.gateway.scenario.models import ShimAsset, ShimJob
from comfy_client.providers.interface import GeneratedImage, GenerationResult
from comfy_core.contract import JsonObject


def output_assets(job: ShimJob, result: GenerationResult, now: float) -> list[ShimAsset]:
    """Return an asset for each image of a job's result."""
    is_inference = job.job_type == "inference"
    return [
        ShimAsset(
            id=new_id("asset"),
            owner=job.owner,
            created_at=now,
            updated_at=now,
            sha256=image.sha256,
            mime_type=image.mime_type,
            width=image.width,
            height=image.height,
            bytes=len(image.bytes),
            name=image.filename,
            type=f"inference-{job.task}" if is_inference else job.task,
            source=f"inference-{job.task[:3]}" if is_inference else job.task,
            job_id=job.id,
            model_id=job.model_id,
            output_index=number,
            is_hidden=job.is_hidden,
            metadata=_metadata(job, image, number),
        )
        for number, image in enumerate(result.images)
    ]


def _metadata(job: ShimJob, image: GeneratedImage, number: int) -> JsonObject:
    """Return the `metadata` of a generated image (docs/reference/scenario.md#assets)."""
    shown_fields = ("prompt", "negativePrompt", "guidance", "numInferenceSteps")
    metadata = {
        **{name: job.scenario_request.get(name) for name in shown_fields},
        "seed": None if image.seed is None else str(image.seed),
        "modelId": job.model_id,
        "inferenceId": job.id,
        "outputIndex": number,
        "strength": job.worker_request.get("strength"),
        "scheduler": job.scenario_request.get("scheduler"),
    }
    return {name: value for name, value in metadata.items() if value is not None}
