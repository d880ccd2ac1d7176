"""Builds the call that runs a job again, from the job as the shim stores it. Pure."""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

from comfy_client.gateway.scenario.bridge.generate import PATHS, ForwardedGenerate, GenerateRequest
from comfy_client.gateway.scenario.errors import BAD_REQUEST, ShimError
from comfy_client.gateway.scenario.idempotency import fingerprint
from comfy_client.gateway.scenario.mapping import IMAGE_FIELDS, INFERENCES
from comfy_client.gateway.scenario.models import ShimJob, Side
from comfy_core.contract import JsonObject, is_asset_id


def repeated_call(
    job: ShimJob, owner: str, *, is_same_seed: bool, image_id: str = ""
) -> GenerateRequest | ForwardedGenerate:
    """Return the call that runs a job again for `owner`, with the same seed or a new one.

    `image_id` is the asset with the start image of a job whose call contained the image. The call is a
    ForwardedGenerate if the shim does not have its route. Raises ShimError (400) if the inputs were not stored.
    """
    body: JsonObject = {name: value for name, value in job.scenario_request.items() if name != "seed"}
    if not body:
        raise ShimError(BAD_REQUEST, "The shim did not store this job's request. Send the request again yourself")
    if is_same_seed and (seed := _seed(job)) is not None:
        body["seed"] = seed
    if job.side is Side.OWN:
        image = start_image(job, image_id)
        body = {name: value for name, value in body.items() if name not in IMAGE_FIELDS}
        return _request(job, job.route, job.model_id, owner, {**body, **({"image": image} if image else {})})
    for name, path in PATHS.items():
        if found := re.fullmatch(path.replace("{modelId}", "(?P<id>[^/]+)"), job.route):
            return _request(job, name, unquote(found.groupdict().get("id", "")), owner, body)
    content = json.dumps(body).encode()
    return ForwardedGenerate(owner, job.route, content, job.task, "", fingerprint(owner, job.route, None, body))


def _request(job: ShimJob, route: str, model_id: str, owner: str, body: JsonObject) -> GenerateRequest:
    given = {"parameters": {"type": job.task, **body}} if route == INFERENCES else body
    return GenerateRequest(owner, route, model_id if "{modelId}" in PATHS[route] else None, given)


def _seed(job: ShimJob) -> object:
    metadata = job.scenario_record.get("metadata")
    used = metadata.get("input") if isinstance(metadata, dict) else None
    return job.scenario_request.get("seed", used.get("seed") if isinstance(used, dict) else None)


def start_image(job: ShimJob, image_id: str) -> str:
    """Return the start image of an own job as a caller can send it, or an empty text. Raises ShimError (400).

    `image_id` is the asset with the start image of a job whose call contained the image, if there is one.
    """
    shown = str(job.scenario_request.get("image", ""))
    if not job.picture or is_asset_id(shown):
        return shown
    if job.picture.startswith("https://"):
        return job.picture
    if not image_id:
        raise ShimError(
            BAD_REQUEST,
            "The start image was part of the call and was deleted when the job ended. Upload it (POST /assets), and "
            "start a new job with the asset as its image",
        )
    return image_id
