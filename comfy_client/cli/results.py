"""What a job made, on the disk and on the screen; and how a job stands, as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from comfy_client.cli.call import Call
from comfy_client.contract import JsonObject
from comfy_client.errors import ConfigError
from comfy_client.providers.interface import GeneratedFile, GenerationResult, JobStatus


def save(call: Call, result: GenerationResult) -> int:
    """Write what a job made where it is wanted, and say where. Raises ConfigError where it cannot be written."""
    files: list[GeneratedFile] = [*result.images, *result.files]
    if call.options.output == "-":
        if len(files) != 1 or call.screen.is_json:
            raise ConfigError("-o - writes one picture, and no JSON; give a file, or ask for one picture")
        call.screen.write_bytes(files[0].bytes)
        return 0
    targets = [_target(Path(call.options.output), result, file, number) for number, file in enumerate(files)]
    try:
        paths = [file.save(target) for file, target in zip(files, targets, strict=True)]
    except OSError as error:
        raise ConfigError(f"-o {call.options.output}: {error.strerror}: {error.filename}") from error
    lines = [
        f"{path}  {image.width} x {image.height}  seed {image.seed}"
        for path, image in zip(paths, result.images, strict=False)
    ]
    lines += [str(path) for path in paths[len(result.images) :]]
    call.screen.show(_result_object(result, paths), *lines, *result.texts)
    for warning in result.warnings:
        call.screen.say(f"comfy-client: warning: {warning}")
    return 0


def _target(output: Path, result: GenerationResult, file: GeneratedFile, number: int) -> Path:
    """Return the path of file `number` of a result."""
    several = len(result.images) + len(result.files) > 1
    if output.is_dir():
        seed = getattr(file, "seed", None)
        name = f"{result.workflow}-{seed}{Path(file.filename).suffix}" if seed is not None else file.filename
        return output / name
    return output.with_name(f"{output.stem}-{number + 1}{output.suffix}") if several else output


def _result_object(result: GenerationResult, paths: Sequence[Path]) -> JsonObject:
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
        "warnings": list(result.warnings),
        "timings": dict(result.timings),
        "versions": dict(result.versions),
        "delay_s": result.delay_s,
        "execution_s": result.execution_s,
        "worker_id": result.worker_id,
    }


def status_object(status: JobStatus) -> JsonObject:
    """Return how a job stands."""
    progress = status.progress
    return {
        "job_id": status.job_id,
        "state": status.state.value,
        "progress": {
            "stage": progress.stage,
            "picture": progress.picture,
            "pictures": progress.pictures,
            "step": progress.step,
            "steps": progress.steps,
            "percent": progress.percent,
        }
        if progress
        else None,
        "delay_s": status.delay_s,
        "execution_s": status.execution_s,
        "worker_id": status.worker_id,
        "retries": status.retries,
        "job_error": json.loads(status.error.to_json()) if status.error else None,
    }
