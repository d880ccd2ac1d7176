"""Builds the shim's OpenAPI 3.1 document from the tables of routes and fields. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from comfy_client import __version__
from comfy_client.gateway.scenario.models import ShimAsset, ShimJob
from comfy_client.gateway.scenario.pagination import query_parameters
from comfy_client.gateway.scenario.routes import DRY_RUN, LISTS, ROUTES, ShimRoute
from comfy_client.providers.scenario_responses import Status
from comfy_core.contract import JsonObject

_ERRORS = {
    "400": "The request is invalid; `reason` lists every fault",
    "401": "The key is missing or wrong",
    "404": "It does not exist, or belongs to another key",
    "408": "The body arrived too slowly",
    "413": "The body is too large",
    "429": "Too many requests; `Retry-After` has the seconds to wait",
    "507": "The shim's disk is full; the request had no effect",
}
_LISTED_TYPES = {"jobs": ShimJob, "assets": ShimAsset, "inferences": ShimJob}


def document(server_url: str) -> JsonObject:
    """Return the document for a shim at `server_url`."""
    paths: dict[str, JsonObject] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Scenario shim",
            "version": __version__,
            "description": "The image generation part of Scenario's API, served from your own endpoint.",
        },
        "servers": [{"url": server_url}],
        "security": [{"basic": []}, {"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
            "schemas": {
                "Error": _record({"reason": "string", "message": "string", "trace_id": "string"}),
                "Job": _record({"jobId": "string", "jobType": "string", "progress": "number", "metadata": "object"})
                | {"description": f"`status` is one of {', '.join(Status)}"},
                "Asset": _record({"id": "string", "url": "string", "mimeType": "string", "metadata": "object"}),
                "Upload": _record({"id": "string", "status": "string", "fileName": "string"}),
                "Model": _record({"id": "string", "type": "string", "status": "string"}),
            },
        },
    }


def _record(required: dict[str, str]) -> JsonObject:
    properties = {name: {"type": kind} for name, kind in required.items()}
    return {"type": "object", "required": list(required), "properties": properties}


def _operation(route: ShimRoute) -> JsonObject:
    operation: JsonObject = {
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "parameters": list(_parameters(route)),
        "responses": {
            "200": {"description": "Done", "content": {"application/json": {"schema": _result_schema(route)}}},
            **{status: _error(meaning) for status, meaning in _ERRORS.items()},
        },
    }
    if route.is_generating:
        cost = {"type": "object", "required": ["creativeUnitsCost"], "properties": {"creativeUnitsCost": {}}}
        operation["responses"][str(DRY_RUN)] = {
            "description": "The estimated cost (dryRun)",
            "content": {"application/json": {"schema": cost}},
        }
    if route.body is not None:
        content = {"application/json": {"schema": route.body}}
        operation["requestBody"] = {"required": "required" in route.body, "content": content}
    return operation


def _parameters(route: ShimRoute) -> Iterator[JsonObject]:
    for name in re.findall(r"{(\w+)}", route.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    queries = (
        list(query_parameters(_LISTED_TYPES[route.result_key]))
        if route.method == "GET" and route.result_key in _LISTED_TYPES
        else []
    )
    if route.result_key == "models" and route.method == "GET":
        queries = ["privacy", "status", "type", "pageSize", "paginationToken"]
    if route.is_generating:
        queries.append("dryRun")
    for name in ("projectId", *queries):
        yield {"name": name, "in": "query", "required": False, "schema": {"type": "string"}}


def _result_schema(route: ShimRoute) -> JsonObject:
    if not route.result_key:
        return {"type": "object"}
    reference = {"$ref": f"#/components/schemas/{route.result_key.removesuffix('s').title()}"}
    if route.result_key == "inferences":
        reference = {"type": "object"}
    return {
        "type": "object",
        "required": [route.result_key],
        "properties": {
            route.result_key: {"type": "array", "items": reference} if route.result_key in LISTS else reference
        },
    }


def _error(meaning: str) -> JsonObject:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}
