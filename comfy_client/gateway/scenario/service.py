"""What the shim does, without HTTP: each call of Scenario's API as a method, JSON in and JSON out.

All methods are called in one event loop. They raise ShimError, or another error of this package that `shim_error` turns
into one. `owner` is whoever calls; nothing of another's is seen.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from comfy_client.client import Client
from comfy_client.gateway.scenario.assets import Assets, decoded
from comfy_client.gateway.scenario.blobs import Blobs
from comfy_client.gateway.scenario.errors import ShimError, bad_request, not_found
from comfy_client.gateway.scenario.folder import FolderLock
from comfy_client.gateway.scenario.idempotency import FIRST, WINDOW_S, Repeat, fingerprint, repeated
from comfy_client.gateway.scenario.jobs import JobRunner
from comfy_client.gateway.scenario.keeper import Keeper, new_id
from comfy_client.gateway.scenario.mapping import INFERENCES, MOST_ADDRESS, Mapped, map_call
from comfy_client.gateway.scenario.model_records import Models
from comfy_client.gateway.scenario.models import JobRow, Status
from comfy_client.gateway.scenario.pagination import Query, fill_page, read_page
from comfy_client.gateway.scenario.serializers import (
    Address,
    PartAddress,
    cost,
    estimate_usd,
    inference_record,
    job_record,
)
from comfy_client.gateway.scenario.settings import ShimSettings
from comfy_client.gateway.scenario.store import Filter, Store
from comfy_client.gateway.scenario.uploads import SWEEP_S, Uploads
from comfy_client.prices import job_usd
from comfy_core.contract import Fault, JsonObject, is_asset_id
from comfy_core.errors import ComfyClientError, ConfigError
from comfy_core.images.codec import Picture

if TYPE_CHECKING:
    from typing import Self

THREADS = 32
"""For calls to the endpoint and to the disk: as many as RunPodEndpoint keeps connections."""
SEEDS = 2**31

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Source:
    """What a job starts from: a kept picture's hash or an address, how a job shows it, and what came with the call."""

    name: str = ""
    asked: JsonObject = field(default_factory=dict)
    came: Picture | None = None


class ShimService:
    """The shim over one endpoint. Use it in an `async with`: jobs of earlier processes go on from there.

    Args:
        client: leads to the endpoint; it is the caller's to close.
        settings: how the shim behaves.
        blobs: where pictures are kept.
        url_of, part_of: make the addresses of pictures and of uploads' parts.
    """

    def __init__(
        self, client: Client, settings: ShimSettings, blobs: Blobs, *, url_of: Address, part_of: PartAddress
    ) -> None:
        self._client = client
        self._settings = settings
        self._url_of = url_of
        self._lock = FolderLock(settings.directory)
        try:
            self._keeper = Keeper(Store(settings.directory), blobs)
        except BaseException:
            self._lock.release()
            raise
        self._store = self._keeper.store
        self._runner = JobRunner(client.provider, self._keeper)
        self._arriving: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.assets = Assets(self._keeper, url_of)
        self.uploads = Uploads(self._keeper, self.assets, settings.directory / "uploads", part_of)
        self.models = Models(settings.loras)
        self._sweeps: asyncio.Task[None] | None = None
        self.resumed = 0
        """How many jobs of an earlier process went on."""

    async def __aenter__(self) -> Self:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="shim"))
        try:
            self.uploads.resume()
            self.resumed = self._runner.resume()
        except (OSError, ShimError) as error:
            raise ConfigError(str(error)) from error
        self._sweeps = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sweeps is not None:
            self._sweeps.cancel()
            await asyncio.wait({self._sweeps})
        await self._runner.stop()
        self.close()

    def close(self) -> None:
        """Close the database and release the folder, for a service that was never entered."""
        self._store.close()
        self._lock.release()

    async def _sweep(self) -> None:
        while True:
            try:
                await self.uploads.sweep()
            except (OSError, ShimError) as error:
                _log.warning("uploads that were not completed could not be removed yet: %s", error)
            await asyncio.sleep(SWEEP_S)

    # --- generating

    async def generate(
        self, owner: str, route: str, body: object, *, model_id: str | None = None, repeat: Repeat = FIRST
    ) -> JsonObject:
        """Store a job and return at once what Scenario answers; `route` is one of ROUTES, or INFERENCES.

        A repeat of an earlier call gets that one's job. Raises ShimError.
        """
        mapped = await asyncio.to_thread(self._mapped, route, body, model_id)
        print_ = fingerprint(owner, route, model_id, body)
        async with self._arriving.setdefault(repeat.key or print_, asyncio.Lock()):
            job = self._earlier(owner, print_, repeat)
            if job is None:
                job = await self._stored_job(owner, route, mapped, print_, repeat)
                self._runner.begin(job.id)
        answer = {"job": self._record(job), **cost(job.estimate_usd, self._settings.costs)}
        if route == INFERENCES:
            answer["inference"] = inference_record(job, self._url_of)
        return answer

    async def estimate(self, route: str, body: object, *, model_id: str | None = None) -> JsonObject:
        """Return what a call would cost (a dry run). Raises ShimError as `generate` does."""
        mapped = await asyncio.to_thread(self._mapped, route, body, model_id)
        return cost(estimate_usd(mapped.input, self._settings.costs), self._settings.costs)

    def answered(self, job_id: str) -> None:
        """Note that the caller of a job received its answer: a repeat then rather means another job."""
        with suppress(ShimError):  # a full disk: the job itself is stored
            job = self._store.job(job_id)
            if job is not None and not job.is_answered:
                self._store.change(job, is_answered=True)

    def _mapped(self, route: str, body: object, model_id: str | None) -> Mapped:
        return map_call(route, body, model_id, self._settings.loras, is_strict=self._settings.is_strict)

    def _earlier(self, owner: str, print_: str, repeat: Repeat) -> JobRow | None:
        if repeat.key:
            job = self._store.job_of_key(owner, repeat.key)
            if job is not None and job.fingerprint != print_:
                raise bad_request([Fault("Idempotency-Key", "was used for another call")])
            return job
        job = repeated(repeat, self._store.equal_jobs(print_, self._keeper.clock() - WINDOW_S))
        return None if job is None else self._store.change(job, repeats=repeat.count)

    async def _stored_job(self, owner: str, route: str, mapped: Mapped, print_: str, repeat: Repeat) -> JobRow:
        """Return the new job of a call, once it and the picture that came with it are stored."""
        source = await self._source(owner, mapped)
        if source.came is None:
            job = self._new_job(owner, route, mapped, source, repeat=repeat, print_=print_)
            self._store.add(job)
            return job
        async with self._keeper.stored(source.came) as sha256:
            source = replace(source, name=sha256, asked={"image": f"sha256:{sha256}"})
            job = self._new_job(owner, route, mapped, source, repeat=repeat, print_=print_)
            self._store.add(job)
        return job

    def _new_job(
        self, owner: str, route: str, mapped: Mapped, source: _Source, *, repeat: Repeat, print_: str
    ) -> JobRow:
        now = self._keeper.clock()
        # Chosen here, as Scenario chooses them: small enough for callers that read an int32
        # (docs/reference/scenario.md#route-a).
        seed = mapped.input.get("seed", secrets.randbelow(SEEDS))
        return JobRow(
            id=new_id("job"),
            owner=owner,
            route=route,
            job_type=mapped.job_type,
            task=mapped.task,
            model_id=mapped.model_id,
            created_at=now,
            updated_at=now,
            asked={**mapped.asked, **source.asked, "seed": str(seed)},
            input={**mapped.input, "seed": seed},
            picture=source.name,
            notes=mapped.notes,
            history=((now, Status.QUEUED.value),),
            is_hidden=mapped.is_hidden,
            estimate_usd=estimate_usd(mapped.input, self._settings.costs),
            fingerprint=print_,
            repeats=repeat.count,
            idempotency_key=repeat.key,
        )

    async def _source(self, owner: str, mapped: Mapped) -> _Source:
        """Return the picture that a call starts from. Raises ShimError, JobError (invalid_image)."""
        source = mapped.picture
        if source is None:
            return _Source()
        if is_asset_id(source):
            return _Source(self.assets.row(owner, source).sha256, {"image": source})
        if source.startswith("https://"):
            if len(source) > MOST_ADDRESS:
                raise bad_request([Fault("image", f"has an address of more than {MOST_ADDRESS:,} characters")])
            return _Source(source, {"image": source.partition("?")[0]})
        if source.startswith("http://"):
            raise bad_request([Fault("image", "is fetched by https alone")])
        data = await asyncio.to_thread(decoded, source, "image")
        return _Source(came=await self._keeper.checked(data, flatten=True))

    # --- jobs

    def job(self, owner: str, job_id: str) -> JsonObject:
        """Return a job (`GET /jobs/{jobId}`). Raises ShimError (404)."""
        return {"job": self._record(self._row(owner, job_id))}

    def jobs(self, owner: str, query: Query) -> JsonObject:
        """Return a page of jobs (`GET /jobs`)."""
        rows, beside = fill_page(self._store, JobRow, read_page(JobRow, owner, query))
        return {"jobs": [self._record(row) for row in rows], **beside}

    async def act(self, owner: str, job_id: str, body: object) -> JsonObject:
        """Cancel a job (`POST /jobs/{jobId}/action`). One that has ended stays as it is. Raises ShimError."""
        job = self._row(owner, job_id)
        if not isinstance(body, dict) or body.get("action") != "cancel":
            raise bad_request([Fault("action", "must be cancel")])
        await self._runner.cancel(job.id)
        return self.job(owner, job_id)

    def inference(self, owner: str, model_id: str, inference_id: str) -> JsonObject:
        """Return a job as the oldest route has it. Raises ShimError (404)."""
        job = self._row(owner, inference_id)
        if job.model_id != model_id:
            raise not_found(f"inference of {model_id[:80]}", inference_id)
        return {"inference": inference_record(job, self._url_of), "job": self._record(job)}

    def inferences(self, owner: str, model_id: str, query: Query) -> JsonObject:
        """Return a page of a model's jobs as the oldest route has them (`GET /models/{id}/inferences`)."""
        page = read_page(JobRow, owner, query, only=Filter().where("model_id = ?", model_id))
        rows, beside = fill_page(self._store, JobRow, page)
        return {"inferences": [inference_record(row, self._url_of) for row in rows], **beside}

    def _row(self, owner: str, job_id: str) -> JobRow:
        job = self._store.job(job_id, owner)
        if job is None:
            raise not_found(
                "job", job_id, "The shim has this key's own jobs. One that runs at Scenario is polled there"
            )
        return job

    def _record(self, job: JobRow) -> JsonObject:
        return job_record(job, self._settings.costs)

    # --- what a page shows

    async def overview(self, owner: str) -> JsonObject:
        """Return what the page shows beside jobs and assets: the endpoint's health, and the cost so far."""
        count, seconds = self._store.spent(owner)
        usd = job_usd(seconds, self._settings.costs.usd_per_s)
        try:
            health = await asyncio.to_thread(self._client.health)
            state: JsonObject = {"why": health.why, "sentence": health.sentence, "workers": dict(health.workers)}
        except ComfyClientError as error:
            state = {"why": "unreachable", "sentence": str(error), "workers": {}}
        return {"health": state, "cost": {"jobs": count, "seconds": round(seconds, 1), "usd": round(usd, 4)}}
