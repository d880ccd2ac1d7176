"""The shim's routes as a table, from which the HTTP server and the OpenAPI document are built.

A handler takes the service and an `ApiRequest`. It returns JSON, or an `ApiResponse` if the status is not 200.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from comfy_client.gateway.scenario.idempotency import RetryHint
from comfy_client.gateway.scenario.mapping import INFERENCES
from comfy_client.gateway.scenario.service import ShimService
from comfy_core.contract import JsonObject

DRY_RUN = 269
"""The HTTP status of a cost estimate (docs/reference/scenario.md#estimates)."""


@dataclass(frozen=True)
class ApiRequest:
    """A parsed request: owner, path parameters, query, JSON body or None, and retry headers."""

    owner: str
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: object = field(repr=False)
    retry: RetryHint = field(default_factory=RetryHint)

    @property
    def is_dry_run(self) -> bool:
        """Whether the request only asks for the cost. Any value except false, 0 and empty counts, as at Scenario."""
        return self.query.get("dryRun", "").lower() not in ("", "false", "0")


@dataclass(frozen=True)
class ApiResponse:
    """A response with a status other than 200."""

    body: JsonObject
    status: int


Handler: TypeAlias = Callable[[ShimService, ApiRequest], Awaitable["JsonObject | ApiResponse"]]


@dataclass(frozen=True)
class ShimRoute:
    """One route.

    Attributes:
        generates: the key of fields.ROUTES that describes the request body, if the route is a generate route.
        gives: the key of the response that has the result. For lists it selects the query parameters.
        is_poll: whether requests count against the rate limit for polling instead of the general one.
        has_picture: whether the request body may contain a base64 image.
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
    async def generate(service: ShimService, request: ApiRequest) -> JsonObject | ApiResponse:
        model_id = request.path.get("modelId")
        if request.is_dry_run:
            return ApiResponse(await service.estimate(route, request.body, model_id=model_id), DRY_RUN)
        return await service.generate(request.owner, route, request.body, model_id=model_id, retry=request.retry)

    return generate


async def _jobs(service: ShimService, request: ApiRequest) -> JsonObject:
    return service.jobs(request.owner, request.query)


async def _job(service: ShimService, request: ApiRequest) -> JsonObject:
    return service.job(request.owner, request.path["jobId"])


async def _act(service: ShimService, request: ApiRequest) -> JsonObject:
    return await service.act(request.owner, request.path["jobId"], request.body)


async def _inference(service: ShimService, request: ApiRequest) -> JsonObject:
    return service.inference(request.owner, request.path["modelId"], request.path["inferenceId"])


async def _upload_asset(service: ShimService, request: ApiRequest) -> JsonObject:
    return await service.assets.upload(request.owner, request.body)


async def _assets(service: ShimService, request: ApiRequest) -> JsonObject:
    return service.assets.list(request.owner, request.query)


async def _asset(service: ShimService, request: ApiRequest) -> JsonObject:
    return service.assets.get(request.owner, request.path["assetId"])


async def _get_bulk(service: ShimService, request: ApiRequest) -> JsonObject:
    return service.assets.get_bulk(request.owner, request.body)


async def _delete(service: ShimService, request: ApiRequest) -> JsonObject:
    return await service.assets.delete(request.owner, request.body)


async def _tags(service: ShimService, request: ApiRequest) -> JsonObject:
    return service.assets.update_tags(request.owner, request.path["assetId"], request.body)


async def _download(service: ShimService, request: ApiRequest) -> JsonObject:
    return service.assets.download(request.owner, request.path["assetId"], request.body)


async def _create_upload(service: ShimService, request: ApiRequest) -> JsonObject:
    return service.uploads.create(request.owner, request.body)


async def _upload(service: ShimService, request: ApiRequest) -> JsonObject:
    return service.uploads.get(request.owner, request.path["uploadId"])


async def _act_on_upload(service: ShimService, request: ApiRequest) -> JsonObject:
    return await service.uploads.act(request.owner, request.path["uploadId"], request.body)


async def _inferences(service: ShimService, request: ApiRequest) -> JsonObject:
    return service.inferences(request.owner, request.path["modelId"], request.query)


async def _models(service: ShimService, request: ApiRequest) -> JsonObject:
    return service.models.list(request.query)


async def _public_models(service: ShimService, request: ApiRequest) -> JsonObject:
    return service.models.list({**request.query, "privacy": "public"})


async def _models_by_id(service: ShimService, request: ApiRequest) -> JsonObject:
    return service.models.get_bulk(request.body)


async def _model(service: ShimService, request: ApiRequest) -> JsonObject:
    return service.models.get(request.path["modelId"])


async def _overview(service: ShimService, request: ApiRequest) -> JsonObject:
    return await service.overview(request.owner)


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
        "Generate images",
        _generating("custom"),
        "custom",
        gives="job",
        has_picture=True,
    ),
    ShimRoute(
        "POST",
        "/generate/txt2img",
        "Generate images from a prompt",
        _generating("txt2img"),
        "txt2img",
        gives="job",
        has_picture=True,
    ),
    ShimRoute(
        "POST",
        "/generate/img2img",
        "Generate images from an image",
        _generating("img2img"),
        "img2img",
        gives="job",
        has_picture=True,
    ),
    ShimRoute(
        "POST",
        "/models/{modelId}/inferences",
        "Generate images (legacy route)",
        _generating(INFERENCES),
        body={"type": "object", "required": ["parameters"], "properties": {"parameters": {"type": "object"}}},
        gives="job",
        has_picture=True,
    ),
    ShimRoute(
        "GET", "/models/{modelId}/inferences", "List a model's jobs (legacy route)", _inferences, gives="inferences"
    ),
    ShimRoute(
        "GET",
        "/models/{modelId}/inferences/{inferenceId}",
        "Get a job (legacy route)",
        _inference,
        gives="job",
        is_poll=True,
    ),
    ShimRoute("GET", "/jobs", "List jobs", _jobs, gives="jobs"),
    ShimRoute("GET", "/jobs/{jobId}", "Get a job", _job, gives="job", is_poll=True),
    ShimRoute("POST", "/jobs/{jobId}/action", "Cancel a job", _act, body=_action("cancel"), gives="job"),
    ShimRoute(
        "POST",
        "/assets",
        "Upload an image",
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
    ShimRoute("GET", "/assets", "List assets", _assets, gives="assets"),
    ShimRoute("DELETE", "/assets", "Delete assets", _delete, body=_IDS),
    ShimRoute("POST", "/assets/get-bulk", "Get assets by id", _get_bulk, body=_IDS, gives="assets", is_poll=True),
    ShimRoute("GET", "/assets/{assetId}", "Get an asset", _asset, gives="asset", is_poll=True),
    ShimRoute(
        "PUT",
        "/assets/{assetId}/tags",
        "Add and remove tags",
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
        "Get an asset's download URL",
        _download,
        body={"type": "object", "properties": {"targetFormat": {"enum": ["png", "webp", "jpeg", "jpg"]}}},
    ),
    ShimRoute(
        "POST",
        "/uploads",
        "Start a multipart upload",
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
    ShimRoute("GET", "/uploads/{uploadId}", "Get an upload", _upload, gives="upload", is_poll=True),
    ShimRoute(
        "POST",
        "/uploads/{uploadId}/action",
        "Complete a multipart upload",
        _act_on_upload,
        body=_action("complete"),
        gives="upload",
    ),
    ShimRoute("GET", "/models", "List models", _models, gives="models"),
    ShimRoute("GET", "/models/public", "List the base models", _public_models, gives="models"),
    ShimRoute(
        "POST",
        "/models/get-bulk",
        "Get models by id",
        _models_by_id,
        body={
            "type": "object",
            "required": ["modelIds"],
            "properties": {"modelIds": {"type": "array", "items": {"type": "string"}}},
        },
        gives="models",
        is_poll=True,
    ),
    ShimRoute("GET", "/models/{modelId}", "Get a model", _model, gives="model"),
    ShimRoute("GET", "/shim/overview", "Get the endpoint's health and the cost so far", _overview),
)
"""Scenario's routes, and /shim/overview, which only the web page at `/` uses."""

_SEND_TO_SCENARIO = (
    "Send this one request to Scenario: keep Scenario's URL in a separate variable, and upload the image there. "
    "Scenario does not know the shim's asset ids"
)
OUT_OF_SCOPE: Mapping[str, str] = {
    "remove-background": f"background removal is not supported. {_SEND_TO_SCENARIO}. Or use rembg",
    "layer": f"layered decomposition is not supported. {_SEND_TO_SCENARIO}",
    "upscale": f"upscaling is not supported. {_SEND_TO_SCENARIO}. Or run a graph for it: comfy-client run --graph",
    "train": "training is not supported. Put the LoRA's file on the worker, and its id into SCENARIO_SHIM_LORAS",
    "search": "search is not supported. Use the filters of GET /assets and GET /jobs",
    "webhook": "webhooks are not supported. Poll GET /jobs/{jobId}",
    "caption": f"captions are not supported. {_SEND_TO_SCENARIO}",
}
"""For a part of an unsupported path: what is not supported, and what to do instead."""
OTHER_ROUTES_ADVICE = f"the supported routes are listed in /openapi.json. {_SEND_TO_SCENARIO}"


def unsupported_route_advice(path: str) -> str:
    """Return what to do instead of calling a route that is not supported."""
    return next((why for part, why in OUT_OF_SCOPE.items() if part in path), OTHER_ROUTES_ADVICE)
