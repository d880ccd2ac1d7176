"""The routes of OpenAI's API as Starlette endpoints.

A call waits until its job has ended. The job does not depend on the call: it continues if the caller disconnects.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from comfy_client.gateway.openai.errors import job_error
from comfy_client.gateway.openai.fields import EDITS, GENERATIONS, Operation
from comfy_client.gateway.openai.mapping import ImagesCall, ResponseOptions, map_call, workflow_of
from comfy_client.gateway.openai.responses import (
    KEEP_ALIVE,
    ResponseImage,
    completed_events,
    error_event,
    images_body,
    model_list,
    model_record,
    partial_event,
)
from comfy_client.gateway.scenario.access import MAX_BODY_BYTES, Access, retry_hint
from comfy_client.gateway.scenario.bodies import read_json
from comfy_client.gateway.scenario.bodies_reader import read_body, read_image_form
from comfy_client.gateway.scenario.errors import shim_error
from comfy_client.gateway.scenario.idempotency import RetryHint, fingerprint
from comfy_client.gateway.scenario.models import ShimJob
from comfy_client.gateway.scenario.responses import SECURITY_HEADERS, pieces
from comfy_client.gateway.scenario.service import ShimService
from comfy_client.job import Event, Preview, Sampling
from comfy_client.providers.scenario_responses import Status
from comfy_core.contract import JsonObject
from comfy_core.errors import ComfyClientError, JobError
from comfy_core.workflows import Workflow

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
RouteKey: TypeAlias = tuple[str, str]
"""The method and the path of a route."""
Check: TypeAlias = Callable[[str, Endpoint, Request], Awaitable[Response]]
SHARED_PREFIX, OWN_PREFIX = "/v1", "/openai/v1"
"""Below both prefixes are the routes of this API; below the first one are also Scenario's."""
RETRY_WINDOW_S = 1320.0
"""How long after a request a retry may arrive: two of the SDK's timeouts of 600 s each, its backoff, and a margin."""
KEEP_ALIVE_S = 15.0
"""How often a stream has a comment while nothing happens, so that no proxy closes it."""
CLIENT_CLOSED = 499
"""The status, in the metrics, of a call whose caller disconnected."""
_IMAGE_ADVICE = "Send a smaller image, or a JPEG"
REQUEST_ID = "openai.request_id"
"""The key of the ASGI scope that has the id of a request of these routes."""
REQUEST_ID_HEADER = "x-request-id"
_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class OpenAiApi:
    """The routes of one service, below both prefixes."""

    def __init__(
        self, service: ShimService, access: Access, workflows: Mapping[str, Workflow], *, is_strict: bool
    ) -> None:
        self._service = service
        self._access = access
        self._map_call = partial(map_call, workflows=workflows, is_strict=is_strict)
        self._workflows = workflows
        self._endpoints: Sequence[tuple[str, str, Endpoint]] = (
            *(("POST", each.path, partial(self._images, each)) for each in (GENERATIONS, EDITS)),
            ("GET", "/models", self._models),
            ("GET", "/models/{modelId}", self._model),
        )

    def added_to(self, routes: Mapping[RouteKey, Endpoint], checked: Check) -> dict[RouteKey, Endpoint]:
        """Return Scenario's routes and these. Of two routes with one path, a bearer token selects this one.

        `checked` handles a request of a path with an endpoint.
        """
        own = {
            (method, prefix + path): self._marked(partial(checked, prefix + path, endpoint))
            for method, path, endpoint in self._endpoints
            for prefix in (SHARED_PREFIX, OWN_PREFIX)
        }
        others = {key: _by_scheme(own.pop(key), other) if key in own else other for key, other in routes.items()}
        return {**own, **others}

    @staticmethod
    def _marked(endpoint: Endpoint) -> Endpoint:
        """Return an endpoint that marks its requests as calls of this API."""

        async def marking(request: Request) -> Response:
            request_id = mark(request)
            response = await endpoint(request)
            response.headers[REQUEST_ID_HEADER] = request_id
            return response

        return marking

    async def _models(self, request: Request) -> Response:
        await self._access.owner(request)
        return _json(model_list(sorted(self._workflows)))

    async def _model(self, request: Request) -> Response:
        await self._access.owner(request)
        name = request.path_params["modelId"]
        workflow_of(name, "txt2img", self._workflows)
        return _json(model_record(name))

    async def _images(self, operation: Operation, request: Request) -> Response:
        owner = await self._access.owner(request)
        self._access.remember_base_url(request)
        body = await self._body(request, owner)
        call = await asyncio.to_thread(self._map_call, operation, body)
        job = await self._start(owner, operation, call, body, retry_hint(request))
        if call.options.is_stream:
            headers = {**SECURITY_HEADERS, "X-Accel-Buffering": "no"}
            return StreamingResponse(self._events(job, call), media_type="text/event-stream", headers=headers)
        with self._service.observed(job.id, _ignore):
            ended = await _unless_disconnected(request, self._service.ended(job.id))
        if ended is None:
            return Response(status_code=CLIENT_CLOSED)
        images = await self._response_images(ended, call.options)
        content = await asyncio.to_thread(images_body, ended, images, call.options)
        self._service.mark_answered(job.id)
        headers = {**SECURITY_HEADERS, "Content-Length": str(len(content))}
        return StreamingResponse(pieces(content), media_type="application/json", headers=headers)

    async def _start(
        self, owner: str, operation: Operation, call: ImagesCall, body: object, retry: RetryHint
    ) -> ShimJob:
        """Start the job of a call, or return the one that an earlier attempt has started. Raises ShimError."""
        route = f"openai/{operation.name}"
        digest = fingerprint(owner, route, None, body)
        try:
            return await self._service.start(owner, route, call.mapped, digest, retry, window_s=RETRY_WINDOW_S)
        except JobError as error:
            response_error = shim_error(error)
            response_error.facts["param"] = error.report.details.get("path")
            raise response_error from error

    async def _body(self, request: Request, owner: str) -> object:
        """Return the fields of a JSON or multipart body. Raises ShimError."""
        async with self._access.body_slot(request, owner):
            data = await read_body(request, MAX_BODY_BYTES, _IMAGE_ADVICE)
            if request.headers.get("content-type", "").startswith("multipart/"):
                return await read_image_form(request, data)
            return await asyncio.to_thread(read_json, data)

    async def _response_images(self, job: ShimJob, options: ResponseOptions) -> list[ResponseImage]:
        """Return the images of a job that has ended. Raises ShimError if it did not succeed."""
        if job.status is not Status.SUCCESS:
            raise job_error(job)
        return [await self._response_image(job, asset_id, options) for asset_id in job.asset_ids]

    async def _response_image(self, job: ShimJob, asset_id: str, options: ResponseOptions) -> ResponseImage:
        asset = await self._service.assets.find(job.owner, asset_id)
        if options.has_url and not options.is_stream:
            return ResponseImage(asset, url=self._service.image_url(asset.id))
        return ResponseImage(asset, data=(await self._service.assets.image(asset_id)).data)

    async def _events(self, job: ShimJob, call: ImagesCall) -> AsyncIterator[bytes]:
        """Yield the events of a call: previews, and the images or an error."""
        events: asyncio.Queue[Event] = asyncio.Queue()
        previews = PreviewFilter(call.options.partial_images)
        ended = asyncio.create_task(self._service.ended(job.id))
        try:
            with self._service.observed(job.id, events.put_nowait):
                while not ended.done():
                    event = await _next_event(events, ended)
                    if event is None and not ended.done():
                        yield KEEP_ALIVE
                    elif event is not None and (jpeg := previews.selected(event)) is not None:
                        yield partial_event(job, jpeg, previews.count - 1, call.options)
            done = await ended
            images = await self._response_images(done, call.options)
            yield await asyncio.to_thread(completed_events, done, images, call.options)
            self._service.mark_answered(job.id)
        except ComfyClientError as error:
            yield error_event(shim_error(error))
        finally:
            ended.cancel()


class PreviewFilter:
    """Selects at most `maximum` previews, spread over the job's progress."""

    def __init__(self, maximum: int) -> None:
        self.count = 0
        self._maximum = maximum
        self._percent = 0

    def selected(self, event: Event) -> bytes | None:
        """Return the preview to send at this event, or None."""
        match event:
            case Sampling(percent=percent):
                self._percent = percent
            case Preview(jpeg) if self.count < self._maximum:
                if self._percent * (self._maximum + 1) >= 100 * (self.count + 1):
                    self.count += 1
                    return jpeg
        return None


async def _next_event(events: asyncio.Queue[Event], ended: asyncio.Task[ShimJob]) -> Event | None:
    """Return the next event, or None if the job has ended or nothing happened for KEEP_ALIVE_S."""
    event = asyncio.create_task(events.get())
    try:
        await asyncio.wait({event, ended}, timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
        return event.result() if event.done() else None
    finally:
        event.cancel()


def _ignore(_: Event) -> None:
    """Do nothing with the events of a job whose caller only wants its images."""


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result | None:
    """Return the result of `work`, or None if the caller disconnects before that."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.create_task(work), asyncio.create_task(disconnected())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        watch.cancel()


def mark(request: Request) -> str:
    """Give a request an id, which marks it as a call of this API. Return the id."""
    request_id = f"req_{secrets.token_hex(12)}"
    request.scope[REQUEST_ID] = request_id
    return request_id


def is_call(request: Request) -> bool:
    """Return whether a request that has no route is a call of this API: by its path, or by its bearer token."""
    own, shared = (request.url.path.startswith(f"{prefix}/") for prefix in (OWN_PREFIX, SHARED_PREFIX))
    return own or (shared and _is_bearer(request))


def _by_scheme(own: Endpoint, other: Endpoint) -> Endpoint:
    """Return an endpoint that is `own` for requests with a bearer token, and `other` for all others."""

    async def selecting(request: Request) -> Response:
        return await (own if _is_bearer(request) else other)(request)

    return selecting


def _is_bearer(request: Request) -> bool:
    """Return whether a request has a bearer token, which callers of OpenAI send, and Scenario's SDK does not."""
    return request.headers.get("authorization", "").lower().startswith("bearer ")


def _json(body: JsonObject) -> Response:
    return JSONResponse(body, headers=SECURITY_HEADERS)
