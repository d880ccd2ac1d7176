"""The shim's business logic without HTTP: one method per Scenario API call, JSON in and JSON out.

All methods must be called in one event loop. They raise ShimError, or another ComfyClientError that `shim_error`
converts into a ShimError. `owner` identifies the caller's API key; a caller only sees its own objects.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from comfy_client.client import Client
from comfy_client.gateway.scenario.asset_storage import AssetStorage, new_id
from comfy_client.gateway.scenario.assets import Assets, decode_image
from comfy_client.gateway.scenario.auth import Callers
from comfy_client.gateway.scenario.blobs import Blobs
from comfy_client.gateway.scenario.bridge.bridge import Bridge, Forwarding
from comfy_client.gateway.scenario.bridge.generate import GenerateRequest
from comfy_client.gateway.scenario.bridge.routing import RoutingTable
from comfy_client.gateway.scenario.errors import UNAVAILABLE, ShimError, bad_request, key_of_another_request, not_found
from comfy_client.gateway.scenario.filters import Filter
from comfy_client.gateway.scenario.folder import FolderLock
from comfy_client.gateway.scenario.idempotency import NOT_A_RETRY, WINDOW_S, RetryHint, find_retried, fingerprint
from comfy_client.gateway.scenario.jobs import JobRunner
from comfy_client.gateway.scenario.mapping import INFERENCES, MAX_URL_CHARACTERS, MappedCall, map_call
from comfy_client.gateway.scenario.metrics import ShimMetrics
from comfy_client.gateway.scenario.model_records import ModelCatalog
from comfy_client.gateway.scenario.models import Phase, ShimJob, Side
from comfy_client.gateway.scenario.page.jobs import PageJobs
from comfy_client.gateway.scenario.page.overview import Overview
from comfy_client.gateway.scenario.page.repeat import start_image
from comfy_client.gateway.scenario.page.search import JobSearch
from comfy_client.gateway.scenario.pagination import Query, fetch_page, parse_page_query
from comfy_client.gateway.scenario.serializers import (
    AssetUrl,
    PartUrl,
    cost,
    estimate_usd,
    inference_record,
    job_record,
)
from comfy_client.gateway.scenario.settings import ShimSettings
from comfy_client.gateway.scenario.store import Store
from comfy_client.gateway.scenario.uploads import SWEEP_S, Uploads
from comfy_client.job import Observer
from comfy_client.providers.scenario_request import MAX_SCENARIO_SEED
from comfy_client.providers.scenario_responses import Status
from comfy_core.contract import Fault, JsonObject, is_asset_id
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError
from comfy_core.images.codec import EncodedImage

if TYPE_CHECKING:
    from typing import Self

THREADS = 32
"""Threads for blocking calls to the endpoint and the disk. RunPodEndpoint's connection pool has the same size."""
RESTART_S = 2
"""When a caller should try again whose request a stopping server cannot finish, in seconds."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _StartImage:
    """The image that a job starts from.

    Attributes:
        reference: the SHA-256 of a stored image, or an https URL. Empty without an image.
        metadata: the fields that represent the image in `metadata.input` of the job.
        uploaded: the image itself, if it was sent in the request.
    """

    reference: str = ""
    metadata: JsonObject = field(default_factory=dict)
    uploaded: EncodedImage | None = None


class ShimService:
    """The shim in front of one endpoint. Entering its `async with` block resumes the jobs of earlier processes.

    Args:
        client: the client of the endpoint. The caller has to close it.
        settings: the shim's settings.
        blobs: the storage of the image files.
        url_of: returns the URL of an asset's image.
        part_of: returns the URL and the expiry of one part of an upload.
    """

    def __init__(
        self, client: Client, settings: ShimSettings, blobs: Blobs, *, url_of: AssetUrl, part_of: PartUrl
    ) -> None:
        self._client = client
        self._settings = settings
        self.image_url = url_of
        self._lock = FolderLock(settings.directory)
        try:
            self._storage = AssetStorage(Store(settings.directory), blobs)
        except BaseException:
            self._lock.release()
            raise
        self._store = self._storage.store
        self.store_file = self._store.file
        self.metrics = ShimMetrics(self.store_file)
        self._runner = JobRunner(client.provider, self._storage, self.metrics.job_ended)
        self._call_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._models = settings.all_models
        self.bridge: Bridge | None = None
        """The bridge to Scenario, or None if the shim has no key of Scenario."""
        if settings.upstream_api_key:
            upstream = settings.upstream(self.metrics.upstream_call)
            self.bridge = Bridge(upstream, RoutingTable(settings.directory), self._storage, self.metrics)
        self.models = ModelCatalog(self._models, self.bridge)
        self.assets = Assets(self._storage, url_of, None if self.bridge is None else self.bridge.assets)
        self.uploads = Uploads(self._storage, self.assets, settings.directory / "uploads", part_of)
        self.callers = Callers.of(settings.accounts, settings.tokens, settings.admin_keys)
        search = JobSearch(self.store_file)
        self.page = PageJobs(self._storage, search, self.assets, self.callers, settings.costs, self, self.bridge)
        self.overview = Overview(client, search, self.callers, self.bridge)
        self._sweep_task: asyncio.Task[None] | None = None
        self.resumed = 0
        """The number of jobs of earlier processes that were resumed."""

    async def __aenter__(self) -> Self:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="shim"))
        try:
            self.uploads.resume()
            self.resumed = self._runner.resume()
        except (OSError, ShimError) as error:
            raise ConfigError(str(error)) from error
        self._sweep_task = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sweep_task is not None:
            self._sweep_task.cancel()
            await asyncio.wait({self._sweep_task})
        await self._runner.stop()
        await self.page.close()
        if self.bridge is not None:
            await self.bridge.close()
        self.close()

    def close(self) -> None:
        """Close the database and release the folder lock. Only needed if the service was never entered."""
        self._store.close()
        self._lock.release()

    async def _sweep(self) -> None:
        while True:
            try:
                await self.uploads.sweep()
            except (OSError, ShimError) as error:
                _log.warning("expired uploads could not be removed, will retry: %s", error)
            await asyncio.sleep(SWEEP_S)

    async def generate(
        self, owner: str, route: str, body: object, *, model_id: str | None = None, retry: RetryHint = NOT_A_RETRY
    ) -> JsonObject:
        """Store a job and return Scenario's response without waiting for the job, or forward the request to Scenario.

        `route` is a key of fields.ROUTES, or INFERENCES. A retry of an earlier request returns the existing job.
        Raises ShimError.
        """
        digest = fingerprint(owner, route, model_id, body)
        mapped = await self._mapped_or_forwarded(GenerateRequest(owner, route, model_id, body), digest, retry)
        if isinstance(mapped, Forwarding):
            return await mapped.generate()
        job = await self.start(owner, route, mapped, digest, retry)
        response = {"job": self._record(job), **cost(job.estimate_usd, self._settings.costs)}
        if route == INFERENCES:
            response["inference"] = inference_record(job, self.image_url)
        return response

    async def start(
        self, owner: str, route: str, mapped: MappedCall, digest: str, retry: RetryHint, window_s: float = WINDOW_S
    ) -> ShimJob:
        """Store and start a job, and return it. A retry of an earlier request returns the existing job.

        `digest` is the fingerprint of the request. A retry without an idempotency key may arrive `window_s` after the
        request. Raises ShimError.
        """
        async with self._call_locks.setdefault(retry.key or digest, asyncio.Lock()):
            job = self._existing_job(owner, digest, retry, window_s)
            if job is None:
                job = await self._store_job(owner, route, mapped, digest, retry)
                self._runner.start(job.id)
        return job

    async def ended(self, job_id: str) -> ShimJob:
        """Wait until a job has ended, and return it. Raises ShimError (503) if the server stops before that."""
        job = await self._runner.wait(job_id)
        if job.phase is not Phase.ENDED:
            raise ShimError(
                UNAVAILABLE,
                f"The server stops. Job {job_id} continues, and its images will be on the web page. The same request "
                "with the same Idempotency-Key returns them",
                code=ErrorCode.NETWORK,
                headers={"Retry-After": str(RESTART_S), "x-should-retry": "true"},
            )
        return job

    def observed(self, job_id: str, observer: Observer) -> AbstractContextManager[None]:
        """Call `observer` with each event of a running job, until the context ends.

        Meanwhile the job belongs to the request of the observer: the retry of an equal request prefers other jobs.
        """
        return self._runner.observed(job_id, observer)

    def release_waits(self) -> None:
        """End each `ended` with an error, because the server stops."""
        self._runner.release_waits()

    async def repeat(self, job: ShimJob, owner: str, *, is_same_seed: bool) -> ShimJob:
        """Start an own job again for `owner`, without the caller's request. Raises ShimError (400)."""
        image = start_image(job, self._store.asset_of(job.picture, owner))
        without_seed = {name: value for name, value in job.worker_request.items() if name != "seed"}
        mapped = MappedCall(
            task=job.task,
            job_type=job.job_type,
            input=job.worker_request if is_same_seed else without_seed,
            image=image or None,
            model_id=job.model_id,
            original=job.scenario_request,
        )
        return await self.start(owner, job.route, mapped, "", NOT_A_RETRY)

    async def estimate(self, owner: str, route: str, body: object, *, model_id: str | None = None) -> JsonObject:
        """Return the estimated cost of a request (a dry run). Raises ShimError as `generate` does."""
        digest = fingerprint(owner, route, model_id, body)
        mapped = await self._mapped_or_forwarded(GenerateRequest(owner, route, model_id, body), digest, NOT_A_RETRY)
        if isinstance(mapped, Forwarding):
            return await mapped.estimate()
        return cost(estimate_usd(mapped.input, self._settings.costs), self._settings.costs)

    def mark_answered(self, job_id: str) -> None:
        """Record that the caller received the response for a job; retries then match other jobs first."""
        with suppress(ShimError):  # The disk may be full. The job itself is already stored.
            job = self._store.job(job_id)
            if job is not None and not job.is_answered:
                self._store.change(job, is_answered=True)
                self._store.mark_answered(job_id)

    def _mapped(self, route: str, body: object, model_id: str | None) -> MappedCall:
        return map_call(route, body, model_id, self._models, is_strict=self._settings.is_strict)

    async def _mapped_or_forwarded(
        self, request: GenerateRequest, digest: str, retry: RetryHint
    ) -> MappedCall | Forwarding:
        """Return the request as the shim's own job, or as a call that goes to Scenario.

        The routing table decides. Requests that it does not name, or names as own, go to Scenario only if the shim
        cannot serve them. Raises ShimError.
        """
        if self.bridge is not None:
            side = self.bridge.table.side_of(request.capabilities, digest)
            if side is Side.SCENARIO:
                return Forwarding(self.bridge, request.forwarded(digest, retry))
        try:
            return await asyncio.to_thread(self._mapped, request.route, request.body, request.model_id)
        except ShimError as error:
            if self.bridge is None or not error.is_unsupported:
                raise
            return Forwarding(self.bridge, request.forwarded(digest, retry))

    def _existing_job(self, owner: str, digest: str, retry: RetryHint, window_s: float) -> ShimJob | None:
        """Return the job of which this request is a retry, with its retry count updated, or None for a new request."""
        if retry.key:
            job = self._store.job_of_key(owner, retry.key)
            if job is not None and job.fingerprint != digest:
                raise key_of_another_request()
            return job
        equal = self._store.equal_jobs(digest, self._storage.clock() - window_s)
        job = find_retried(retry, equal, self._runner.observers)
        return None if job is None else self._store.change(job, repeats=retry.count)

    async def _store_job(self, owner: str, route: str, mapped: MappedCall, digest: str, retry: RetryHint) -> ShimJob:
        """Store a new job, and the image sent with the request if there is one. Return the job."""
        source = await self._start_image(owner, mapped)
        if source.uploaded is None:
            job = self._new_job(owner, route, mapped, source, retry=retry, digest=digest)
            self._store.add(job)
            return job
        async with self._storage.stored(source.uploaded) as sha256:
            source = replace(source, reference=sha256, metadata={"image": f"sha256:{sha256}"})
            job = self._new_job(owner, route, mapped, source, retry=retry, digest=digest)
            self._store.add(job)
        return job

    def _new_job(
        self, owner: str, route: str, mapped: MappedCall, source: _StartImage, *, retry: RetryHint, digest: str
    ) -> ShimJob:
        now = self._storage.clock()
        # Random seeds are chosen here and fit into an int32, as Scenario's do (docs/reference/scenario.md#route-a).
        seed = mapped.input.get("seed", secrets.randbelow(MAX_SCENARIO_SEED + 1))
        return ShimJob(
            id=new_id("job"),
            owner=owner,
            route=route,
            job_type=mapped.job_type,
            task=mapped.task,
            model_id=mapped.model_id,
            created_at=now,
            updated_at=now,
            scenario_request={**mapped.original, **source.metadata, "seed": str(seed)},
            worker_request={**mapped.input, "seed": seed},
            picture=source.reference,
            notes=mapped.notes,
            history=((now, Status.QUEUED.value),),
            is_hidden=mapped.is_hidden,
            estimate_usd=estimate_usd(mapped.input, self._settings.costs),
            fingerprint=digest,
            repeats=retry.count,
            idempotency_key=retry.key,
            prompt=str(mapped.input.get("prompt", "")),
        )

    async def _start_image(self, owner: str, mapped: MappedCall) -> _StartImage:
        """Return the image that a request starts from. Raises ShimError, JobError (invalid_image)."""
        source = mapped.image
        if source is None:
            return _StartImage()
        if is_asset_id(source):
            return _StartImage((await self.assets.find(owner, source)).sha256, {"image": source})
        if source.startswith("https://"):
            if len(source) > MAX_URL_CHARACTERS:
                raise bad_request([Fault("image", f"has a URL of more than {MAX_URL_CHARACTERS:,} characters")])
            return _StartImage(source, {"image": source.partition("?")[0]})
        if source.startswith("http://"):
            raise bad_request([Fault("image", "must be an https URL, not http")])
        data = await asyncio.to_thread(decode_image, source, "image")
        if mapped.mask is None:
            return _StartImage(uploaded=await self._storage.checked(data, form=mapped.image_form))
        mask = await asyncio.to_thread(decode_image, mapped.mask, "mask")
        return _StartImage(uploaded=await self._storage.masked(data, mask))

    async def job(self, owner: str, job_id: str) -> JsonObject:
        """Return a job (`GET /jobs/{jobId}`). Raises ShimError (404)."""
        return {"job": self._record(await self._current_job(owner, job_id))}

    async def jobs(self, owner: str, query: Query) -> JsonObject:
        """Return a page of jobs (`GET /jobs`). Raises ShimError (400)."""
        page = parse_page_query(ShimJob, owner, query, only=Filter().where("is_deleted = ?", 0))
        rows, next_page = fetch_page(self._store, ShimJob, page)
        if self.bridge is not None:
            rows = await self.bridge.refreshed(rows)
        return {"jobs": [self._record(row) for row in rows], **next_page}

    async def act(self, owner: str, job_id: str, body: object) -> JsonObject:
        """Cancel a job (`POST /jobs/{jobId}/action`). A finished job does not change. Raises ShimError."""
        job = self._store.job(job_id, owner)
        if self.bridge is not None and (job is None or job.phase is Phase.FORWARDED):
            return {"job": self._record(await self.bridge.act(job_id, job, body))}
        job = self._find_job(owner, job_id)
        if not isinstance(body, dict) or body.get("action") != "cancel":
            raise bad_request([Fault("action", "must be cancel")])
        await self._runner.cancel(job.id)
        return await self.job(owner, job_id)

    async def inference(self, owner: str, model_id: str, inference_id: str) -> JsonObject:
        """Return a job (`GET /models/{id}/inferences/{id}`, Scenario's oldest route). Raises ShimError (404)."""
        if self.bridge is not None and self._store.job(inference_id, owner) is None:
            return await self.bridge.inference(model_id, inference_id)
        job = await self._current_job(owner, inference_id)
        if job.side is Side.SCENARIO:
            await self.assets.copy_missing(job.asset_ids)
        elif job.model_id != model_id:
            raise not_found(f"inference of {model_id[:80]}", inference_id)
        return {"inference": inference_record(job, self.image_url), "job": self._record(job)}

    async def inferences(self, owner: str, model_id: str, query: Query) -> JsonObject:
        """Return a page of a model's jobs (`GET /models/{id}/inferences`, Scenario's oldest route)."""
        if self.bridge is not None and not self.models.has(model_id):
            return await self.bridge.inferences(model_id, query)
        page = parse_page_query(ShimJob, owner, query, only=Filter().where("model_id = ? AND is_deleted = 0", model_id))
        rows, next_page = fetch_page(self._store, ShimJob, page)
        return {"inferences": [inference_record(row, self.image_url) for row in rows], **next_page}

    async def _current_job(self, owner: str, job_id: str) -> ShimJob:
        """Return a job. A job of Scenario is read from there, unless it has ended. Raises ShimError (404)."""
        job = self._store.job(job_id, owner)
        if self.bridge is not None and (job is None or job.phase is Phase.FORWARDED):
            return await self.bridge.job(job_id, job)
        return self._find_job(owner, job_id)

    def _find_job(self, owner: str, job_id: str) -> ShimJob:
        job = self._store.job(job_id, owner)
        if job is None:
            raise not_found(
                "job",
                job_id,
                "The shim only has jobs that were created here with this key. For a job of Scenario, set "
                "SCENARIO_SHIM_UPSTREAM_API_KEY (docs/bridge.md), or poll it at Scenario",
            )
        return job

    def _record(self, job: ShimJob) -> JsonObject:
        return job_record(job, self._settings.costs)
