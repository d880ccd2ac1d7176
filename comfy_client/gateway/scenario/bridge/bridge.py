"""The bridge: forwards calls to Scenario, copies its assets here on first use, and uploads own assets there once.

All methods must be called in one event loop. They raise ShimError.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from urllib.parse import quote, urlencode
from weakref import WeakValueDictionary

from comfy_client.gateway.scenario import served_by
from comfy_client.gateway.scenario.asset_storage import AssetStorage, new_id
from comfy_client.gateway.scenario.bridge.assets import AssetBridge
from comfy_client.gateway.scenario.bridge.generate import ForwardedGenerate
from comfy_client.gateway.scenario.bridge.ids import ids_in_json, ids_in_url, replaced_in_json, replaced_in_url
from comfy_client.gateway.scenario.bridge.routing import RoutingTable
from comfy_client.gateway.scenario.bridge.upstream import (
    KEPT_HEADERS,
    Upstream,
    UpstreamCall,
    UpstreamRefused,
    json_object,
)
from comfy_client.gateway.scenario.errors import UNREACHABLE, ShimError, key_of_another_request, not_found
from comfy_client.gateway.scenario.idempotency import WINDOW_S, find_retried
from comfy_client.gateway.scenario.metrics import ShimMetrics
from comfy_client.gateway.scenario.models import SHARED_OWNER, ForwardedCall, Phase, ShimJob, Side
from comfy_client.gateway.scenario.serializers import scenario_job_record
from comfy_client.providers.scenario_responses import Status
from comfy_core.contract import JsonObject
from comfy_core.error_codes import ErrorCode

MAX_REFRESHED = 20
"""Unfinished jobs of Scenario that a list of jobs reads again."""


@dataclass(frozen=True)
class ForwardedResponse:
    """Scenario's response to a forwarded call. A body that is not JSON arrives in pieces."""

    status: int
    headers: Mapping[str, str]
    content: bytes | AsyncIterator[bytes]


class Bridge:
    """The bridge between the shim's `storage` and Scenario's API `upstream`."""

    def __init__(self, upstream: Upstream, table: RoutingTable, storage: AssetStorage, metrics: ShimMetrics) -> None:
        self._upstream = upstream
        self._metrics = metrics
        self._storage = storage
        self._store = storage.store
        self._call_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.table = table
        self.assets = AssetBridge(upstream, storage)

    def serves(self, route: str, owner: str) -> bool:
        """Return whether the routing table sends a route that the shim has, such as `GET /models`, to Scenario.

        A percentage is one of callers, so that each of them always gets the responses of the same side.
        """
        return self.table.side_of([route], owner) is Side.SCENARIO

    async def model(self, model_id: str) -> JsonObject:
        """Return Scenario's response to `GET /models/{id}`."""
        served_by.forwarded()
        return await self._read(f"/models/{quote(model_id, safe='')}")

    async def inference(self, model_id: str, inference_id: str) -> JsonObject:
        """Return Scenario's response to `GET /models/{id}/inferences/{id}`. Raises ShimError (404)."""
        if self._store.job(inference_id) is not None:
            raise not_found("inference", inference_id)  # of another caller
        served_by.forwarded()
        return await self._read(f"/models/{quote(model_id, safe='')}/inferences/{quote(inference_id, safe='')}")

    async def inferences(self, model_id: str, query: Mapping[str, str]) -> JsonObject:
        """Return Scenario's response to `GET /models/{id}/inferences`."""
        served_by.forwarded()
        return await self._read(f"/models/{quote(model_id, safe='')}/inferences", query)

    async def model_page(self, query: Mapping[str, str]) -> JsonObject:
        """Return Scenario's response to `GET /models`."""
        return await self._read("/models", query)

    async def _read(self, path: str, query: Mapping[str, str] | None = None) -> JsonObject:
        _, response = await self._upstream.json(UpstreamCall("GET", path, urlencode(query or {})))
        return self._with_own_ids(response)

    async def models(self, model_ids: Collection[str]) -> list[JsonObject]:
        """Return Scenario's records of these models (`POST /models/get-bulk`)."""
        body = json.dumps({"modelIds": list(model_ids)}).encode()
        call = UpstreamCall("POST", "/models/get-bulk", content=body, content_type="application/json")
        _, response = await self._upstream.json(call)
        return [each for each in response.get("models") or [] if isinstance(each, dict)]

    async def close(self) -> None:
        """Close the connections to Scenario."""
        await self._upstream.close()

    async def generate(self, call: ForwardedGenerate) -> JsonObject:
        """Forward a generate call and return Scenario's response. A retry gets the response to the first attempt.

        Scenario may charge for the call, so it is stored first. If its outcome is unknown, retries are refused.
        """
        served_by.forwarded()
        async with self._call_locks.setdefault(call.retry.key or call.fingerprint, asyncio.Lock()):
            earlier = self._earlier_call(call)
            if earlier is not None:
                return self._repeated(earlier)
            sent = ForwardedCall(
                id=new_id("call"),
                owner=call.owner,
                created_at=self._storage.clock(),
                fingerprint=call.fingerprint,
                idempotency_key=call.retry.key,
                repeats=call.retry.count,
            )
            request = await self._translated(
                call.owner, UpstreamCall("POST", call.path, call.query, call.body, call.content_type)
            )
            self._store.add(sent)
            try:
                status, response = await self._upstream.json(request)
            except UpstreamRefused:
                self._store.delete_call(sent.id)
                raise
            except ShimError as error:
                if error.facts.get("may_run") is False:
                    self._store.delete_call(sent.id)
                raise
            response = self._with_own_ids(response)
            if isinstance(job := response.get("job"), dict):
                response["job"] = scenario_job_record(job)
            await self._storage.write(lambda: self._record(call, sent, status, response))
            return response

    async def estimate(self, call: ForwardedGenerate) -> JsonObject:
        """Return Scenario's estimate of a call (a dry run)."""
        served_by.forwarded()
        request = UpstreamCall("POST", call.path, call.query or "dryRun=true", call.body, call.content_type)
        _, response = await self._upstream.json(await self._translated(call.owner, request))
        return response

    def _earlier_call(self, call: ForwardedGenerate) -> ForwardedCall | None:
        """Return the forwarded call of which this one is a retry, with its retry count updated, or None.

        Raises ShimError (400) if the Idempotency-Key belongs to a different request.
        """
        if call.retry.key:
            of_key = self._store.call_of_key(call.owner, call.retry.key)
            if of_key is not None and of_key.fingerprint != call.fingerprint:
                raise key_of_another_request()
            return of_key
        equal = self._store.equal_calls(call.fingerprint, self._storage.clock() - WINDOW_S)
        earlier = find_retried(call.retry, equal)
        if earlier is not None:
            self._store.add(replace(earlier, repeats=call.retry.count))
        return earlier

    def mark_answered(self, response: JsonObject) -> None:
        """Store that the caller received this response to a generate call; retries then match other calls first."""
        with suppress(ShimError):  # The disk may be full. The call itself is already stored.
            self._store.mark_answered(str(json_object(response.get("job")).get("jobId") or ""))

    def _repeated(self, earlier: ForwardedCall) -> JsonObject:
        """Return the response to an earlier attempt of a call. Raises ShimError (502) if its outcome is unknown."""
        if earlier.http_status:
            return earlier.response
        raise ShimError(
            UNREACHABLE,
            "Scenario's response to the first attempt of this request was lost. Scenario may have accepted it, so it "
            "was not sent again. Look at GET /jobs before you send it again as a new request",
            code=ErrorCode.NETWORK,
        )

    def _record(self, call: ForwardedGenerate, sent: ForwardedCall, status: int, response: JsonObject) -> None:
        """Store Scenario's response to a generate call, and the job that it names."""
        record = json_object(response.get("job"))
        job_id = str(record.get("jobId") or "")
        answered = replace(sent, http_status=status, response=response, job_id=job_id)
        if not job_id:
            self._store.add(answered)
            return
        units = response.get("creativeUnitsCost")
        job = replace(
            _scenario_job(job_id, call.owner, record, self._storage.clock()),
            route=call.path,
            task=call.task,
            model_id=call.model_id,
            scenario_request=call.stored_body,
            scenario_units=float(units) if isinstance(units, int | float) else 0.0,
        )
        self._store.add(answered, job)
        self._metrics.job_forwarded(job.scenario_units)
        if job.phase is Phase.ENDED:
            self._metrics.job_ended(job)

    async def job(self, job_id: str, known: ShimJob | None) -> ShimJob:
        """Return a job of Scenario, read from there unless it has ended. `known` is the job as stored here, if it is.

        Raises UpstreamRefused (404) if Scenario has no such job.
        """
        if known is None and self._store.job(job_id) is not None:
            raise not_found("job", job_id)  # of another caller
        if known is not None and known.phase is Phase.ENDED:
            return known
        served_by.forwarded()
        _, response = await self._upstream.json(UpstreamCall("GET", f"/jobs/{quote(job_id, safe='')}"))
        return await self._stored(job_id, known, response)

    async def act(self, job_id: str, known: ShimJob | None, body: object) -> ShimJob:
        """Forward an action on a job of Scenario, such as a cancel, and return the job."""
        if known is None and self._store.job(job_id) is not None:
            raise not_found("job", job_id)
        served_by.forwarded()
        path = f"/jobs/{quote(job_id, safe='')}/action"
        call = UpstreamCall("POST", path, content=json.dumps(body).encode(), content_type="application/json")
        _, response = await self._upstream.json(call)
        return await self._stored(job_id, known, response)

    async def refreshed(self, jobs: Iterable[ShimJob]) -> list[ShimJob]:
        """Return the jobs of a list. The first unfinished jobs of Scenario are read again, unless that fails."""
        jobs = list(jobs)
        waiting = [job for job in jobs if job.phase is Phase.FORWARDED][:MAX_REFRESHED]
        found = await asyncio.gather(*(self.job(job.id, job) for job in waiting), return_exceptions=True)
        read = {job.id: job for job in found if isinstance(job, ShimJob)}
        return [read.get(job.id, job) for job in jobs]

    async def _stored(self, job_id: str, known: ShimJob | None, response: JsonObject) -> ShimJob:
        record = json_object(self._with_own_ids(response).get("job"))
        if not record:
            raise ShimError(UNREACHABLE, "Scenario's response has no job. Send the request again")
        if known is not None and record == known.scenario_record:
            return known
        now = self._storage.clock()
        job = known or _scenario_job(job_id, SHARED_OWNER, record, now)
        job = _with_record(replace(job, updated_at=now), record)
        await self._storage.write(lambda: self._update(job))
        return job

    def _update(self, job: ShimJob) -> None:
        """Store a job as it is at Scenario now. Count it if it has ended since it was last stored."""
        earlier = self._store.job(job.id)
        self._store.add(job)
        if job.phase is Phase.ENDED and earlier is not None and earlier.phase is Phase.FORWARDED:
            self._metrics.job_ended(job)

    async def forward(self, owner: str, call: UpstreamCall, stack: AsyncExitStack) -> ForwardedResponse:
        """Forward a call that the shim does not serve. The caller closes `stack` when the body was read."""
        served_by.forwarded()
        request = await self._translated(owner, call)
        response = await stack.enter_async_context(self._upstream.stream(request))
        headers = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
        if not response.headers.get("content-type", "").startswith("application/json"):
            return ForwardedResponse(response.status_code, headers, response.aiter_bytes())
        content = await response.aread()
        return ForwardedResponse(response.status_code, headers, self._bytes_with_own_ids(content))

    async def _translated(self, owner: str, call: UpstreamCall) -> UpstreamCall:
        """Return the call with Scenario's ids in place of own asset ids. Own assets are uploaded to Scenario once."""
        body = call.content if isinstance(call.content, bytes) else b""
        named = ids_in_url(call.path) | ids_in_url(call.query) | await asyncio.to_thread(ids_in_json, body)
        ids = await self.assets.scenario_ids(owner, named)
        if not ids:
            return call
        return replace(
            call,
            path=replaced_in_url(call.path, ids),
            query=replaced_in_url(call.query, ids),
            content=await asyncio.to_thread(replaced_in_json, body, ids) if body else call.content,
        )

    def _with_own_ids(self, response: JsonObject) -> JsonObject:
        value: JsonObject = json.loads(self._bytes_with_own_ids(json.dumps(response).encode()))
        return value

    def _bytes_with_own_ids(self, content: bytes) -> bytes:
        """Return a response in which the copies of own assets have their own ids."""
        links = self._store.links_to(ids_in_json(content))
        return replaced_in_json(content, {link.scenario_id: link.id for link in links})


@dataclass(frozen=True)
class Forwarding:
    """A generate call that goes to Scenario through `bridge`."""

    bridge: Bridge
    call: ForwardedGenerate

    async def generate(self) -> JsonObject:
        """Forward the call, and return Scenario's response."""
        return await self.bridge.generate(self.call)

    async def estimate(self) -> JsonObject:
        """Forward the call as a dry run, and return Scenario's estimate."""
        return await self.bridge.estimate(self.call)


def _scenario_job(job_id: str, owner: str, record: JsonObject, now: float) -> ShimJob:
    """Return a new job that Scenario runs."""
    kind = str(record.get("jobType", ""))
    job = ShimJob(
        id=job_id,
        owner=owner,
        route="",
        job_type=kind,
        task=kind,
        model_id="",
        created_at=now,
        updated_at=now,
        scenario_request={},
        worker_request={},
        phase=Phase.FORWARDED,
        side=Side.SCENARIO,
    )
    return _with_record(job, record)


def _with_record(job: ShimJob, record: JsonObject) -> ShimJob:
    """Return the job with Scenario's record of it."""
    text = str(record.get("status", ""))
    status = Status(text) if text in set(Status) else Status.IN_PROGRESS
    progress = record.get("progress")
    metadata = json_object(record.get("metadata"))
    asset_ids = metadata.get("assetIds")
    return replace(
        job,
        prompt=str(json_object(metadata.get("input")).get("prompt") or job.prompt),
        status=status,
        progress=float(progress) if isinstance(progress, int | float) else job.progress,
        phase=Phase.ENDED if status.is_final else Phase.FORWARDED,
        asset_ids=tuple(str(each) for each in asset_ids) if isinstance(asset_ids, list) else job.asset_ids,
        scenario_record=record,
    )
