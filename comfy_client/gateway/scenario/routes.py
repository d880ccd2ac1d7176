"""The shim's routes as a table, from which the HTTP server and the OpenAPI document are built."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from comfy_client.gateway.scenario import fields
from comfy_client.gateway.scenario.bridge.generate import PATHS
from comfy_client.gateway.scenario.idempotency import RetryHint
from comfy_client.gateway.scenario.mapping import INFERENCES
from comfy_client.gateway.scenario.models import ShimJob
from comfy_client.gateway.scenario.page.search import SEARCH_PARAMETERS
from comfy_client.gateway.scenario.pagination import query_parameters
from comfy_client.gateway.scenario.record_schemas import TEXT
from comfy_client.gateway.scenario.service import ShimService
from comfy_client.gateway.scenario.usage import USAGE_QUERY, usage
from comfy_core.contract import JsonObject

DRY_RUN = 269
"""The HTTP status of a cost estimate (docs/reference/scenario.md#estimates)."""


@dataclass(frozen=True)
class ApiRequest:
    """A parsed request: owner, path parameters, query, JSON body or None, and retry headers."""

    owner: str
    path_parameters: Mapping[str, str]
    query: Mapping[str, str]
    body: object = field(repr=False)
    retry: RetryHint = field(default_factory=RetryHint)

    @property
    def is_dry_run(self) -> bool:
        """Whether only the cost is requested."""
        return is_dry_run(self.query)


def is_dry_run(query: Mapping[str, str]) -> bool:
    """Return whether only the cost is requested: `dryRun` is neither false, 0 nor empty, as at Scenario."""
    return query.get("dryRun", "").lower() not in ("", "false", "0")


Handler: TypeAlias = Callable[[ShimService, ApiRequest], JsonObject | Awaitable[JsonObject]]
Operation: TypeAlias = Callable[[ShimService], Callable[..., JsonObject | Awaitable[JsonObject]]]
"""Returns a method of the service."""

LISTS = ("assets", "inferences", "jobs", "models")
"""The keys of responses that contain a list."""


@dataclass(frozen=True)
class ShimRoute:
    """One route.

    Attributes:
        summary: the operation's summary in the OpenAPI document.
        handler: returns the JSON of the response, or an awaitable of it.
        body: JSON Schema of the request body, or None if the route has none.
        result_key: the key of the result in the response, or empty. A key of LISTS means that the route has a query.
        is_generating: whether the route generates images. With `dryRun`, its response is a cost estimate (269).
        is_poll: whether requests count against the rate limit for polling instead of the general one.
        may_have_image: whether the request body may contain a base64 image.
        takes_form: whether the request body may be multipart/form-data.
        query: JSON Schemas of the query parameters of a route whose result_key is not a key of LISTS.
    """

    method: str
    path: str
    summary: str
    handler: Handler
    body: JsonObject | None = None
    result_key: str = ""
    is_generating: bool = False
    is_poll: bool = False
    may_have_image: bool = False
    takes_form: bool = False
    query: JsonObject = field(default_factory=dict)

    @property
    def is_paged(self) -> bool:
        """Whether the route returns a page of a list."""
        return self.method == "GET" and self.result_key in LISTS


def _generate_route(name: str, path: str, summary: str, body: JsonObject) -> ShimRoute:
    """Return the generate route `name`: a key of fields.ROUTES, or INFERENCES."""

    def handler(shim: ShimService, request: ApiRequest) -> Awaitable[JsonObject]:
        model_id = request.path_parameters.get("modelId")
        if request.is_dry_run:
            return shim.estimate(request.owner, name, request.body, model_id=model_id)
        return shim.generate(request.owner, name, request.body, model_id=model_id, retry=request.retry)

    return ShimRoute("POST", path, summary, handler, body, result_key="job", is_generating=True, may_have_image=True)


def _route(
    method_and_path: str,
    summary: str,
    operation: Operation,
    body: JsonObject | None = None,
    *,
    result_key: str = "",
    is_poll: bool = False,
    may_have_image: bool = False,
) -> ShimRoute:
    """Return a route. `operation` gets the owner, the path parameters, and the route's body or query, if any."""
    method, _, path = method_and_path.partition(" ")

    def handler(shim: ShimService, request: ApiRequest) -> JsonObject | Awaitable[JsonObject]:
        arguments = [request.owner, *request.path_parameters.values()]
        if body is not None:
            return operation(shim)(*arguments, request.body)
        return operation(shim)(*arguments, request.query) if result_key in LISTS else operation(shim)(*arguments)

    return ShimRoute(method, path, summary, handler, body, result_key, is_poll=is_poll, may_have_image=may_have_image)


def _action(name: str) -> JsonObject:
    return {"type": "object", "required": ["action"], "properties": {"action": {"enum": [name]}}}


_TEXTS: JsonObject = {"type": "array", "items": {"type": "string"}}
_ASSET_IDS: JsonObject = {"type": "object", "required": ["assetIds"], "properties": {"assetIds": _TEXTS}}
_MODEL_IDS: JsonObject = {"type": "object", "required": ["modelIds"], "properties": {"modelIds": _TEXTS}}
_PARAMETERS: JsonObject = {
    "type": "object",
    "required": ["parameters"],
    "properties": {"parameters": {"type": "object"}},
}
_TAGS: JsonObject = {"type": "object", "properties": {"add": _TEXTS, "delete": _TEXTS, "strict": {"type": "boolean"}}}
_DOWNLOAD: JsonObject = {"type": "object", "properties": {"targetFormat": {"enum": ["png", "webp", "jpeg", "jpg"]}}}
_ASSET: JsonObject = {
    "type": "object",
    "required": ["name", "image"],
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "image": {"type": "string", "minLength": 1},
        "hide": {"type": "boolean"},
    },
}
_UPLOAD: JsonObject = {
    "type": "object",
    "required": ["fileName"],
    "properties": {
        "fileName": {"type": "string", "minLength": 1},
        "contentType": {"type": "string"},
        "kind": {"enum": ["image", "asset"]},
        "parts": {"type": "integer", "minimum": 1, "maximum": 100},
        "fileSize": {"type": "number", "minimum": 0},
    },
}

_AGAIN: JsonObject = {"type": "object", "required": ["seed"], "properties": {"seed": {"enum": ["same", "new"]}}}
_SEARCH: JsonObject = {**query_parameters(ShimJob), **SEARCH_PARAMETERS}

ROUTES: tuple[ShimRoute, ...] = (
    *(_generate_route(each.name, each.path, each.summary, each.schema()) for each in fields.ROUTES.values()),
    _generate_route(INFERENCES, PATHS[INFERENCES], "Generate images (legacy route)", _PARAMETERS),
    _route(
        "GET /models/{modelId}/inferences",
        "List a model's jobs (legacy route)",
        lambda shim: shim.inferences,
        result_key="inferences",
    ),
    _route(
        "GET /models/{modelId}/inferences/{inferenceId}",
        "Get a job (legacy route)",
        lambda shim: shim.inference,
        result_key="job",
        is_poll=True,
    ),
    _route("GET /jobs", "List jobs", lambda shim: shim.jobs, result_key="jobs"),
    _route("GET /jobs/{jobId}", "Get a job", lambda shim: shim.job, result_key="job", is_poll=True),
    _route("POST /jobs/{jobId}/action", "Cancel a job", lambda shim: shim.act, _action("cancel"), result_key="job"),
    replace(
        _route(
            "POST /assets",
            "Upload an image",
            lambda shim: shim.assets.upload,
            _ASSET,
            result_key="asset",
            may_have_image=True,
        ),
        takes_form=True,
    ),
    _route("GET /assets", "List assets", lambda shim: shim.assets.list, result_key="assets"),
    _route("DELETE /assets", "Delete assets", lambda shim: shim.assets.delete, _ASSET_IDS),
    _route(
        "POST /assets/get-bulk",
        "Get assets by id",
        lambda shim: shim.assets.get_bulk,
        _ASSET_IDS,
        result_key="assets",
        is_poll=True,
    ),
    _route("GET /assets/{assetId}", "Get an asset", lambda shim: shim.assets.get, result_key="asset", is_poll=True),
    _route("PUT /assets/{assetId}/tags", "Add and remove tags", lambda shim: shim.assets.update_tags, _TAGS),
    _route(
        "POST /assets/{assetId}/download",
        "Get an asset's download URL",
        lambda shim: shim.assets.download,
        _DOWNLOAD,
    ),
    _route("POST /uploads", "Start a multipart upload", lambda shim: shim.uploads.create, _UPLOAD, result_key="upload"),
    _route(
        "GET /uploads/{uploadId}", "Get an upload", lambda shim: shim.uploads.get, result_key="upload", is_poll=True
    ),
    _route(
        "POST /uploads/{uploadId}/action",
        "Complete a multipart upload",
        lambda shim: shim.uploads.act,
        _action("complete"),
        result_key="upload",
    ),
    _route("GET /models", "List models", lambda shim: shim.models.list, result_key="models"),
    _route("GET /models/public", "List the base models", lambda shim: shim.models.list_public, result_key="models"),
    _route(
        "POST /models/get-bulk",
        "Get models by id",
        lambda shim: shim.models.get_bulk,
        _MODEL_IDS,
        result_key="models",
        is_poll=True,
    ),
    _route("GET /models/{modelId}", "Get a model", lambda shim: shim.models.get, result_key="model"),
    _route(
        "GET /shim/overview",
        "Get the endpoint's health, the cost so far, and the routing table",
        lambda shim: shim.overview.read,
    ),
    ShimRoute(
        "GET",
        "/shim/usage",
        "Get the number and the cost of your jobs by day and side",
        lambda shim, request: usage(shim.store_file, shim.callers.visible_owner(request.owner), request.query),
        query=USAGE_QUERY,
    ),
    ShimRoute(
        "GET",
        "/shim/jobs",
        "Search jobs",
        lambda shim, request: shim.page.list(request.owner, request.query),
        query=_SEARCH,
    ),
    ShimRoute(
        "GET",
        "/shim/jobs/changes",
        "Get the jobs that changed since a list",
        lambda shim, request: shim.page.changes(request.owner, request.query),
        query={**_SEARCH, "since": {**TEXT, "description": "The changeToken of the last response"}},
        is_poll=True,
    ),
    _route(
        "POST /shim/jobs/{jobId}/again",
        "Run a job again",
        lambda shim: shim.page.run_again,
        _AGAIN,
        result_key="job",
    ),
    _route("DELETE /shim/jobs/{jobId}", "Delete a job that has ended", lambda shim: shim.page.delete),
)
"""Scenario's routes, and the shim's own below /shim. The web page at `/` uses them."""

_SEND_TO_SCENARIO = (
    "Send this one request to Scenario: keep Scenario's URL in a separate variable, and upload the image there. "
    "Scenario does not know the shim's asset ids"
)
OUT_OF_SCOPE: Mapping[str, str] = {
    "remove-background": f"background removal is not supported. {_SEND_TO_SCENARIO}. Or use rembg",
    "layer": f"layered decomposition is not supported. {_SEND_TO_SCENARIO}",
    "upscale": f"upscaling is not supported. {_SEND_TO_SCENARIO}. Or use `comfy-client upscale`",
    "inpaint": f"inpainting is not supported. {_SEND_TO_SCENARIO}. Or use `comfy-client inpaint`",
    "train": "training is not supported. Put the LoRA's file on the worker, and its id into SCENARIO_SHIM_MODELS",
    "search": "search is not supported. Use the filters of GET /assets and GET /jobs",
    "webhook": "webhooks are not supported. Poll GET /jobs/{jobId}",
    "usages": "Scenario's usage report is not supported. Use GET /shim/usage",
    "caption": f"captions are not supported. {_SEND_TO_SCENARIO}",
}
"""For a part of an unsupported path: what is not supported, and what to do instead."""
OTHER_ROUTES_ADVICE = f"the supported routes are listed in /openapi.json. {_SEND_TO_SCENARIO}"


PASS_THROUGH_ADVICE = "Or set SCENARIO_SHIM_UPSTREAM_API_KEY: the shim then forwards it to Scenario"  # noqa: S105 - a sentence


def unsupported_route_advice(path: str) -> str:
    """Return what to do instead of calling a route that is not supported."""
    advice = next((why for part, why in OUT_OF_SCOPE.items() if part in path), OTHER_ROUTES_ADVICE)
    return f"{advice}. {PASS_THROUGH_ADVICE}"
