"""Formats results as text lines and as JSON, and job statuses as JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from comfy_client.providers.interface import GenerationResult, JobStatus
from comfy_core.contract import JsonObject


def result_lines(result: GenerationResult, paths: Sequence[Path]) -> list[str]:
    """Return a line for each file (images with size and seed), then the text outputs."""
    images = [
        f"{path}  {image.width} x {image.height}{'' if image.seed is None else f'  seed {image.seed}'}"
        for path, image in zip(paths, result.images, strict=False)
    ]
    return [*images, *(str(path) for path in paths[len(result.images) :]), *result.texts]


def result_object(result: GenerationResult, paths: Sequence[Path], problem: str = "") -> JsonObject:
    """Return a job's result as JSON.

    `problem` says why the files are not at the requested path (empty if they are); it is added to the warnings.
    """
    images = [
        {
            "path": str(path),
            "width": image.width,
            "height": image.height,
            "seed": image.seed,
            "mime_type": image.mime_type,
            "bytes": len(image.bytes),
            "sha256": image.sha256,
            **({"asset_id": image.asset_id} if image.asset_id is not None else {}),
        }
        for path, image in zip(paths, result.images, strict=False)
    ]
    return {
        "job_id": result.job_id,
        "provider": result.provider,
        "workflow": result.workflow,
        "seed": result.seed,
        "inputs": result.inputs,
        "images": images,
        "files": [{"path": str(path)} for path in paths[len(images) :]],
        "texts": list(result.texts),
        "warnings": [*result.warnings, *([problem] if problem else [])],
        "timings": dict(result.timings),
        "versions": dict(result.versions),
        "delay_s": result.delay_s,
        "execution_s": result.execution_s,
        "worker_id": result.worker_id,
        "gpu": result.gpu,
        "cost": result.cost,
    }


def cost_line(result: GenerationResult) -> str:
    """Return a line with the cost of a job, or an empty string if the result has none."""
    if result.cost is None:
        return ""
    return f"${result.cost:.4f} of GPU time{f' ({result.gpu})' if result.gpu else ''}"


def status_object(status: JobStatus) -> JsonObject:
    """Return a job's status as JSON."""
    progress = status.progress
    return {
        "job_id": status.job_id,
        "state": status.state.value,
        "progress": {
            "stage": progress.stage,
            **asdict(progress.sampling),
            **progress.bytes_fields,
        }
        if progress
        else None,
        "delay_s": status.delay_s,
        "execution_s": status.execution_s,
        "worker_id": status.worker_id,
        "retries": status.retries,
        "job_error": json.loads(status.error.to_json()) if status.error else None,
    }
