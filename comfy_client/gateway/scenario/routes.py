"""Every route of the shim, as data: the HTTP server and its OpenAPI document are made of this table.

A handler takes the service and a `Call`, and returns the answer's JSON, or an `Answer` where the status is another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from comfy_client.gateway.scenario.idempotency import Repeat
from comfy_client.gateway.scenario.mapping import INFERENCES
from comfy_client.gateway.scenario.service import ShimService
from comfy_core.contract import JsonObject

DRY_RUN = 269
"""The status of an estimate (docs/reference/scenario.md#estimates)."""


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
    """One route.

    Attributes:
        generates: the table of fields of its body.
        gives: what its response has, and the kind of rows that its query filters.
        is_poll: whether callers poll it: it is counted apart from other calls.
        has_picture: whether its body may have a picture as base64.
    """

    method: str
    path: str
    summary: str
    handler: Handler
    generates: str = ""
    body: JsonObject | None = None
    gives: str = ""
    is_poll: bool = False
    has_picture: bool = False


def _generating(route: str) -> Handler:
    async def generate(service: ShimService, call: Call) -> JsonObject | Answer:
        model_id = call.path.get("modelId")
        if call.is_dry_run:
            return Answer(await service.estimate(route, call.body, model_id=model_id), DRY_RUN)
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


async def _inferences(service: ShimService, call: Call) -> JsonObject:
    return service.inferences(call.owner, call.path["modelId"], call.query)


async def _models(service: ShimService, call: Call) -> JsonObject:
    return service.models.list(call.query)


async def _public_models(service: ShimService, call: Call) -> JsonObject:
    return service.models.list({**call.query, "privacy": "public"})


async def _models_by_id(service: ShimService, call: Call) -> JsonObject:
    return service.models.get_bulk(call.body)


async def _model(service: ShimService, call: Call) -> JsonObject:
    return service.models.get(call.path["modelId"])


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
    ShimRoute(
        "POST",
        "/generate/custom/{modelId}",
        "Make pictures",
        _generating("custom"),
        "custom",
        gives="job",
        has_picture=True,
    ),
    ShimRoute(
        "POST",
        "/generate/txt2img",
        "Make pictures of a prompt",
        _generating("txt2img"),
        "txt2img",
        gives="job",
        has_picture=True,
    ),
    ShimRoute(
        "POST",
        "/generate/img2img",
        "Make pictures of one",
        _generating("img2img"),
        "img2img",
        gives="job",
        has_picture=True,
    ),
    ShimRoute(
        "POST",
        "/models/{modelId}/inferences",
        "Make pictures, in the oldest way",
        _generating(INFERENCES),
        body={"type": "object", "required": ["parameters"], "properties": {"parameters": {"type": "object"}}},
        gives="job",
        has_picture=True,
    ),
    ShimRoute(
        "GET", "/models/{modelId}/inferences", "A model's jobs, in the oldest way", _inferences, gives="inferences"
    ),
    ShimRoute(
        "GET",
        "/models/{modelId}/inferences/{inferenceId}",
        "One job, in the oldest way",
        _inference,
        gives="job",
        is_poll=True,
    ),
    ShimRoute("GET", "/jobs", "The jobs", _jobs, gives="jobs"),
    ShimRoute("GET", "/jobs/{jobId}", "One job", _job, gives="job", is_poll=True),
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
        has_picture=True,
    ),
    ShimRoute("GET", "/assets", "The assets", _assets, gives="assets"),
    ShimRoute("DELETE", "/assets", "Delete assets", _delete, body=_IDS),
    ShimRoute("POST", "/assets/get-bulk", "Assets by their ids", _get_bulk, body=_IDS, gives="assets", is_poll=True),
    ShimRoute("GET", "/assets/{assetId}", "One asset", _asset, gives="asset", is_poll=True),
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
    ShimRoute("GET", "/uploads/{uploadId}", "One upload", _upload, gives="upload", is_poll=True),
    ShimRoute(
        "POST",
        "/uploads/{uploadId}/action",
        "Complete an upload",
        _act_on_upload,
        body=_action("complete"),
        gives="upload",
    ),
    ShimRoute("GET", "/models", "The models", _models, gives="models"),
    ShimRoute("GET", "/models/public", "The models that are not LoRAs of the table", _public_models, gives="models"),
    ShimRoute(
        "POST",
        "/models/get-bulk",
        "Models by their ids",
        _models_by_id,
        body={
            "type": "object",
            "required": ["modelIds"],
            "properties": {"modelIds": {"type": "array", "items": {"type": "string"}}},
        },
        gives="models",
        is_poll=True,
    ),
    ShimRoute("GET", "/models/{modelId}", "One model", _model, gives="model"),
    ShimRoute("GET", "/shim/overview", "The endpoint's health, and the cost so far", _overview),
)
"""Those that Scenario has, and the last, which the page at `/` reads."""

_SEND_THERE = (
    "Send this one call to Scenario: keep its address in a variable of its own, and upload the picture there, since "
    "the shim's asset ids mean nothing to Scenario"
)
OUT_OF_SCOPE: Mapping[str, str] = {
    "remove-background": f"removing backgrounds is out of this project's scope. {_SEND_THERE}. Or use rembg",
    "layer": f"layered decomposition is out of this project's scope. {_SEND_THERE}",
    "upscale": f"it does not upscale. {_SEND_THERE}. Or run a graph that does: comfy-client run --graph",
    "train": "it does not train. Put a LoRA's file on the worker, and its id into SCENARIO_SHIM_LORAS",
    "search": "it does not search. GET /assets and GET /jobs filter",
    "webhook": "it sends no webhooks. Poll GET /jobs/{jobId}",
    "caption": f"it writes no captions. {_SEND_THERE}",
}
"""What the shim does not do, and what to do instead, by a part of the path."""
NOT_HERE = f"its routes are listed in its /openapi.json. {_SEND_THERE}"


def why_not_here(path: str) -> str:
    """Return what to do instead of calling a route that does not exist."""
    return next((why for part, why in OUT_OF_SCOPE.items() if part in path), NOT_HERE)
