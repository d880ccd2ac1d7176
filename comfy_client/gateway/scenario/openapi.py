"""Builds the shim's OpenAPI 3.1 document from the tables of routes and fields. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from comfy_client import __version__
from comfy_client.gateway.scenario.auth import CALLER_HEADER
from comfy_client.gateway.scenario.model_records import MAX_PAGE_SIZE
from comfy_client.gateway.scenario.models import ShimAsset, ShimJob
from comfy_client.gateway.scenario.pagination import query_parameters
from comfy_client.gateway.scenario.record_schemas import (
    COST,
    OTHER_RESULTS,
    OWN_COST,
    SCHEMAS,
    SWITCH,
    TEXT,
    array,
    record,
    reference,
)
from comfy_client.gateway.scenario.routes import DRY_RUN, LISTS, ROUTES, ShimRoute
from comfy_core.contract import JsonObject

_ERRORS = {
    "400": "The request is invalid; `reason` lists every fault",
    "401": "The key is missing or wrong",
    "404": "It does not exist, or belongs to another key",
    "408": "The body arrived too slowly",
    "413": "The body is too large",
    "429": "Too many requests; `Retry-After` has the seconds to wait",
    "501": "The shim does not have this, and has no key of Scenario",
    "502": "Your endpoint or Scenario did not respond; `may_run` says whether a job may have started",
    "507": "The shim's disk is full; the request had no effect",
}
_LISTED_TYPES = {"jobs": ShimJob, "assets": ShimAsset, "inferences": ShimJob}
_MODEL_QUERIES: JsonObject = {
    **dict.fromkeys(("privacy", "status", "type", "paginationToken"), TEXT),
    "pageSize": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE},
}


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
            "schemas": dict(SCHEMAS),
        },
    }


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
        operation["responses"][str(DRY_RUN)] = {
            "description": "The estimated cost (dryRun)",
            "content": {"application/json": {"schema": record(COST, OWN_COST)}},
        }
    if route.body is not None:
        content = {"application/json": {"schema": route.body}}
        operation["requestBody"] = {"required": "required" in route.body, "content": content}
    return operation


def _parameters(route: ShimRoute) -> Iterator[JsonObject]:
    for name in re.findall(r"{(\w+)}", route.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    queries: dict[str, JsonObject] = {"projectId": TEXT, **route.query}
    if route.is_paged:
        queries |= _MODEL_QUERIES if route.result_key == "models" else query_parameters(_LISTED_TYPES[route.result_key])
    if route.is_generating:
        queries["dryRun"] = SWITCH
    for name, schema in queries.items():
        yield {"name": name, "in": "query", "required": False, "schema": schema}
    description = "An administrator's request for another caller: its id"
    yield {"name": CALLER_HEADER, "in": "header", "required": False, "schema": TEXT, "description": description}


def _result_schema(route: ShimRoute) -> JsonObject:
    """Return the schema of a successful response."""
    required: dict[str, JsonObject] = dict(OTHER_RESULTS.get(f"{route.method} {route.path}", {}))
    if route.result_key:
        each = reference(route.result_key.removesuffix("s").title())
        required[route.result_key] = array(each) if route.result_key in LISTS else each
    if route.is_generating:
        return record({**required, **COST}, OWN_COST)
    return record(required, {"nextPaginationToken": TEXT} if route.is_paged else {})


def _error(meaning: str) -> JsonObject:
    return {"description": meaning, "content": {"application/json": {"schema": reference("Error")}}}
