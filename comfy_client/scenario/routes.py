"""Every route of the shim, as data: the HTTP server and its OpenAPI document are made of this table.

A handler takes the service and a `Call`, and returns the answer's JSON, or an `Answer` where the status is another.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from comfy_client.contract import Fault, JsonObject
from comfy_client.scenario.errors import bad_request
from comfy_client.scenario.mapping import INFERENCES
from comfy_client.scenario.repeats import Repeat
from comfy_client.scenario.service import ShimService

DRY_RUN = 269
"""The status of an estimate (reference/scenario.md 2.5)."""


@dataclass(frozen=True)
class Call:
    """One call: who makes it, the path's parts, the query, the body (None where there is none), what repeats say."""

    owner: str
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: object = field(repr=False)
    repeat: Repeat = field(default_factory=Repeat)

    @property
    def is_dry_run(self) -> bool:
        """Whether only the cost is asked for. Python's `True` and `api` count as Scenario takes them."""
        return self.query.get("dryRun", "").lower() not in ("", "false", "0")


@dataclass(frozen=True)
class Answer:
    """An answer whose status is not 200."""

    body: JsonObject
    status: int


Handler: TypeAlias = Callable[[ShimService, Call], Awaitable["JsonObject | Answer"]]


@dataclass(frozen=True)
class ShimRoute:
    """One route. `generates` is the table of fields of its body; `lists` the kind of rows that its query filters."""

    method: str
    path: str
    summary: str
    handler: Handler
    generates: str = ""
    body: JsonObject | None = None
    gives: str = ""


def _generating(route: str) -> Handler:
    async def generate(service: ShimService, call: Call) -> JsonObject | Answer:
        model_id = call.path.get("modelId")
        if call.is_dry_run:
            return Answer(service.estimate(call.owner, route, call.body, model_id=model_id), DRY_RUN)
        return await service.generate(call.owner, route, call.body, model_id=model_id, repeat=call.repeat)

    return generate


async def _jobs(service: ShimService, call: Call) -> JsonObject:
    return service.jobs(call.owner, call.query)


async def _job(service: ShimService, call: Call) -> JsonObject:
    return service.job(call.owner, call.path["jobId"])


async def _act(service: ShimService, call: Call) -> JsonObject:
    return await service.act(call.owner, call.path["jobId"], call.body)


async def _inference(service: ShimService, call: Call) -> JsonObject:
    return service.inference(call.owner, call.path["modelId"], call.path["inferenceId"])


async def _upload_asset(service: ShimService, call: Call) -> JsonObject:
    return await service.assets.upload(call.owner, call.body)


async def _assets(service: ShimService, call: Call) -> JsonObject:
    return service.assets.list(call.owner, call.query)


async def _asset(service: ShimService, call: Call) -> JsonObject:
    return service.assets.get(call.owner, call.path["assetId"])


async def _get_bulk(service: ShimService, call: Call) -> JsonObject:
    return service.assets.get_bulk(call.owner, call.body)


async def _delete(service: ShimService, call: Call) -> JsonObject:
    return await service.assets.delete(call.owner, call.body)


async def _tags(service: ShimService, call: Call) -> JsonObject:
    return service.assets.update_tags(call.owner, call.path["assetId"], call.body)


async def _download(service: ShimService, call: Call) -> JsonObject:
    return service.assets.download(call.owner, call.path["assetId"], call.body)


async def _create_upload(service: ShimService, call: Call) -> JsonObject:
    return service.uploads.create(call.owner, call.body)


async def _upload(service: ShimService, call: Call) -> JsonObject:
    return service.uploads.get(call.owner, call.path["uploadId"])


async def _act_on_upload(service: ShimService, call: Call) -> JsonObject:
    return await service.uploads.act(call.owner, call.path["uploadId"], call.body)


async def _models(service: ShimService, call: Call) -> JsonObject:
    return service.models(call.query)


async def _model(service: ShimService, call: Call) -> JsonObject:
    return service.model(call.path["modelId"])


async def _overview(service: ShimService, call: Call) -> JsonObject:
    return await service.overview(call.owner)


_IDS: JsonObject = {
    "type": "object",
    "required": ["assetIds"],
    "properties": {"assetIds": {"type": "array", "items": {"type": "string"}}},
}


def _action(name: str) -> JsonObject:
    return {"type": "object", "required": ["action"], "properties": {"action": {"enum": [name]}}}


ROUTES: tuple[ShimRoute, ...] = (
    ShimRoute("POST", "/generate/custom/{modelId}", "Make pictures", _generating("custom"), "custom", gives="job"),
    ShimRoute("POST", "/generate/txt2img", "Make pictures of a prompt", _generating("txt2img"), "txt2img", gives="job"),
    ShimRoute("POST", "/generate/img2img", "Make pictures of one", _generating("img2img"), "img2img", gives="job"),
    ShimRoute(
        "POST",
        "/models/{modelId}/inferences",
        "Make pictures, in the oldest way",
        _generating(INFERENCES),
        body={"type": "object", "required": ["parameters"], "properties": {"parameters": {"type": "object"}}},
        gives="job",
    ),
    ShimRoute(
        "GET", "/models/{modelId}/inferences/{inferenceId}", "One job, in the oldest way", _inference, gives="job"
    ),
    ShimRoute("GET", "/jobs", "The jobs", _jobs, gives="jobs"),
    ShimRoute("GET", "/jobs/{jobId}", "One job", _job, gives="job"),
    ShimRoute("POST", "/jobs/{jobId}/action", "Cancel a job", _act, body=_action("cancel"), gives="job"),
    ShimRoute(
        "POST",
        "/assets",
        "Upload a picture",
        _upload_asset,
        body={
            "type": "object",
            "required": ["name", "image"],
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "image": {"type": "string", "minLength": 1},
                "hide": {"type": "boolean"},
            },
        },
        gives="asset",
    ),
    ShimRoute("GET", "/assets", "The assets", _assets, gives="assets"),
    ShimRoute("DELETE", "/assets", "Delete assets", _delete, body=_IDS),
    ShimRoute("POST", "/assets/get-bulk", "Assets by their ids", _get_bulk, body=_IDS, gives="assets"),
    ShimRoute("GET", "/assets/{assetId}", "One asset", _asset, gives="asset"),
    ShimRoute(
        "PUT",
        "/assets/{assetId}/tags",
        "Add and take tags",
        _tags,
        body={
            "type": "object",
            "properties": {
                "add": {"type": "array", "items": {"type": "string"}},
                "delete": {"type": "array", "items": {"type": "string"}},
                "strict": {"type": "boolean"},
            },
        },
    ),
    ShimRoute(
        "POST",
        "/assets/{assetId}/download",
        "Where an asset is to be had",
        _download,
        body={"type": "object", "properties": {"targetFormat": {"enum": ["png", "webp", "jpeg", "jpg"]}}},
    ),
    ShimRoute(
        "POST",
        "/uploads",
        "Begin an upload in parts",
        _create_upload,
        body={
            "type": "object",
            "required": ["fileName"],
            "properties": {
                "fileName": {"type": "string", "minLength": 1},
                "contentType": {"type": "string"},
                "kind": {"enum": ["image", "asset"]},
                "parts": {"type": "integer", "minimum": 1, "maximum": 100},
                "fileSize": {"type": "number", "minimum": 0},
            },
        },
        gives="upload",
    ),
    ShimRoute("GET", "/uploads/{uploadId}", "One upload", _upload, gives="upload"),
    ShimRoute(
        "POST",
        "/uploads/{uploadId}/action",
        "Complete an upload",
        _act_on_upload,
        body=_action("complete"),
        gives="upload",
    ),
    ShimRoute("GET", "/models", "The models", _models, gives="models"),
    ShimRoute("GET", "/models/{modelId}", "One model", _model, gives="model"),
    ShimRoute("GET", "/shim/overview", "The endpoint's health, and the cost so far", _overview),
)
"""Those that Scenario has, and the last, which the page at `/` reads."""

OUT_OF_SCOPE: Mapping[str, str] = {
    "remove-background": "removing backgrounds is out of this project's scope: stay at Scenario for it, or use rembg",
    "layer": "layered decomposition is out of this project's scope: stay at Scenario for it",
    "upscale": "upscaling is not there: send a graph that upscales to the endpoint with comfy-client run --graph",
    "train": "training is not there: put a LoRA's file on the worker and into SCENARIO_SHIM_LORAS",
    "search": "searching is not there: GET /assets and GET /jobs filter",
    "webhook": "webhooks are not there: poll GET /jobs/{jobId}",
    "caption": "captions are not there: stay at Scenario for them",
}
"""What a route that is not here is told, by a part of its path."""
NOT_HERE = "the shim has the routes of its /openapi.json: set the caller's address back to Scenario for this one"


def why_not_here(path: str) -> str:
    """Return what to do in place of calling a route that is not here."""
    return next((why for part, why in OUT_OF_SCOPE.items() if part in path), NOT_HERE)


def read_body(data: bytes) -> object:
    """Return the JSON of a body, or None where there is none. Raises ShimError (400)."""
    if not data.strip():
        return None
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise bad_request([Fault("", "must be JSON, sent with Content-Type: application/json")]) from None
