"""Jobs as the shim stores them, for tests that fill a shim's folder before it starts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from comfy_client.gateway.scenario.blobs import make_blobs
from comfy_client.gateway.scenario.models import Phase, ShimAsset, ShimJob, Side
from comfy_client.gateway.scenario.store import Store
from comfy_client.providers.scenario_responses import Status
from simulators.runpod.scripted_worker import png

OWNER = "proj_first"
BASE_MODEL = "model_bfl-flux-1-dev"


def ended_job(number: int, prompt: str, owner: str = OWNER, **changes: object) -> ShimJob:
    """Return an own job that succeeded. Jobs with a higher number are newer."""
    at = 1_700_000_000.0 + number
    job = ShimJob(
        id=f"job_{number:03}",
        owner=owner,
        route="custom",
        job_type="custom",
        task="txt2img",
        model_id=BASE_MODEL,
        created_at=at,
        updated_at=at + 0.5,
        scenario_request={"prompt": prompt, "width": 64, "height": 64, "seed": str(number), "modelId": BASE_MODEL},
        worker_request={"prompt": prompt, "seed": number, "width": 64, "height": 64},
        phase=Phase.ENDED,
        status=Status.SUCCESS,
        history=((at, "queued"), (at + 0.5, "success")),
        prompt=prompt,
    )
    return replace(job, **changes)  # type: ignore[arg-type] # of the fields of a ShimJob


def forwarded_job(number: int, prompt: str, **changes: object) -> ShimJob:
    """Return a job that Scenario ran."""
    job = ended_job(number, prompt)
    record = {"jobId": job.id, "jobType": "custom", "status": "success", "progress": 1}
    times = {"createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": "2026-01-01T00:00:05.000Z", "statusHistory": []}
    metadata = {"metadata": {"input": {"prompt": prompt}, "assetIds": []}}
    job = replace(job, side=Side.SCENARIO, scenario_record={**record, **times, **metadata}, scenario_units=5.0)
    return replace(job, **changes)  # type: ignore[arg-type] # as above


def image_of(job: ShimJob) -> ShimAsset:
    """Return the asset `asset_<number>` of a job: an image of 8 x 8 pixels."""
    number = job.id.removeprefix("job_")
    data = png(8, int(number))
    return ShimAsset(
        id=f"asset_{number}",
        owner=job.owner,
        created_at=job.created_at,
        updated_at=job.created_at,
        sha256=hashlib.sha256(data).hexdigest(),
        mime_type="image/png",
        width=8,
        height=8,
        bytes=len(data),
        name=f"{number}.png",
        type="txt2img",
        source="generated",
        job_id=job.id,
        metadata={"seed": number},
    )


def fill(directory: Path, jobs: Iterable[ShimJob], *, with_images: bool = False) -> None:
    """Store jobs, and an image for each of them that succeeded, in the folder of a shim that does not run."""
    store, blobs = Store(directory), make_blobs(directory, None)
    for job in jobs:
        if with_images and job.status is Status.SUCCESS:
            asset = image_of(job)
            blobs.put(png(8, int(job.id.removeprefix("job_"))), "image/png")
            store.add(replace(job, asset_ids=(asset.id,)), asset)
        else:
            store.add(job)
    store.close()
