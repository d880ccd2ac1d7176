"""Builds responses and their bodies, and parses request bodies. No I/O."""

from __future__ import annotations

import http
import json

from aiohttp import web

from .config import MIB
from .faults import QueueResponse
from .values import JsonObject, QueueJob, QueueJobState

NOT_JSON = object()


def parsed(raw: bytes) -> object:
    """Return the JSON value of a body, or NOT_JSON. NaN is not JSON."""
    try:
        return json.loads(raw, parse_constant=_refuse)
    except ValueError:
        return NOT_JSON


def status_of(job: QueueJob) -> JsonObject:
    """Return the body of /status."""
    body: JsonObject = {"id": job.id, "status": job.state.value}
    if job.retries:
        body["retries"] = job.retries
    if job.started_at is None:
        return body
    body |= {"delayTime": _ms(job.started_at - job.queued_at), "workerId": job.worker_id}
    if job.state is QueueJobState.IN_PROGRESS:
        return body | {"output": job.progress[-1]} if job.progress else body
    if job.ended_at is not None:
        body["executionTime"] = _ms(job.ended_at - job.started_at)
    return body | {key: value for key, value in {"output": job.output, "error": job.error}.items() if value is not None}


def problem(status: int, detail: str) -> web.Response:
    """Return an error in RunPod's format."""
    return web.json_response({"status": status, "title": _phrase(status), "detail": detail}, status=status)


def too_large(limit_bytes: int) -> web.Response:
    """Return the response to a request above a size limit."""
    size = f"{limit_bytes // MIB}MiB" if limit_bytes % MIB == 0 else f"{limit_bytes}B"
    return web.Response(status=400, text=f"bad request: body: exceeded max body size of {size}")


def not_json() -> web.Response:
    """Return the response to a request that is not JSON."""
    return web.Response(status=400, text="bad request: body: invalid JSON")


def edge_page(status: int) -> web.Response:
    """Return the HTML page of RunPod's edge for an unreachable API."""
    title = f"{status} {_phrase(status)}"
    page = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
    return web.Response(status=status, text=page, content_type="text/html")


def response_of(fault: QueueResponse) -> web.Response:
    """Return the response of a fault."""
    if isinstance(fault.body, str):
        return web.Response(status=fault.status, text=fault.body, headers=fault.headers)
    if fault.body is not None:
        return web.json_response(fault.body, status=fault.status, headers=fault.headers)
    response = (
        edge_page(fault.status)
        if fault.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR
        else problem(fault.status, _phrase(fault.status).lower())
    )
    response.headers.update(fault.headers)
    return response


def _phrase(status: int) -> str:
    known = {known.value: known.phrase for known in http.HTTPStatus}
    return known.get(status, "Unknown Error")


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _refuse(constant: str) -> object:
    raise ValueError(constant)
