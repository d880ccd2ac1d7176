"""The routes of the web page, `/shim/jobs`: list and search, changes, run again, delete. JSON in and JSON out.

A caller sees its own jobs and Scenario's. The callers of SCENARIO_SHIM_ADMIN_KEYS see the jobs of all callers.
All methods must be called in one event loop. They raise ShimError.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from comfy_client.gateway.scenario.asset_storage import AssetStorage
from comfy_client.gateway.scenario.assets import Assets
from comfy_client.gateway.scenario.auth import Callers
from comfy_client.gateway.scenario.bridge.bridge import Bridge
from comfy_client.gateway.scenario.bridge.generate import PATHS, GenerateRequest
from comfy_client.gateway.scenario.errors import BAD_REQUEST, ShimError, bad_request, not_found
from comfy_client.gateway.scenario.models import SHARED_OWNER, Phase, ShimAsset, ShimJob, Side
from comfy_client.gateway.scenario.page.records import page_job
from comfy_client.gateway.scenario.page.refresh import Refresher
from comfy_client.gateway.scenario.page.repeat import repeated_call
from comfy_client.gateway.scenario.page.search import JobSearch, parse_search
from comfy_client.gateway.scenario.pagination import Query, next_page
from comfy_client.gateway.scenario.serializers import job_record, scenario_job_record
from comfy_client.gateway.scenario.settings import CostRules
from comfy_core.contract import Fault, JsonObject

MAX_CHANGES = 100
"""Changed jobs in one response. The next request gets the rest."""
_KEPT_RECORD_FIELDS = frozenset(
    {"jobId", "jobType", "status", "progress", "statusHistory", "createdAt", "updatedAt", "billing", "id", "modelId"}
)
"""The fields of Scenario's records of a deleted job or inference that stay: those without the caller's content."""

_NO_CHANGES: JsonObject = {"jobs": [], "matching": [], "deleted": [], "hasMore": False}


class Starter(Protocol):
    """Starts jobs: ShimService."""

    async def generate(self, owner: str, route: str, body: object, *, model_id: str | None = None) -> JsonObject:
        """Start the job of a call that the shim may serve itself."""

    async def repeat(self, job: ShimJob, owner: str, *, is_same_seed: bool) -> ShimJob:
        """Start an own job again that has no call of Scenario's API."""


class PageJobs:
    """The jobs of `storage` as the web page shows them.

    Args:
        callers: the names of the callers, and which of them see all jobs.
        starter: starts the jobs that run again.
        bridge: None if the shim has no key of Scenario.
    """

    def __init__(
        self,
        storage: AssetStorage,
        search: JobSearch,
        assets: Assets,
        callers: Callers,
        costs: CostRules,
        starter: Starter,
        bridge: Bridge | None,
    ) -> None:
        self._store = storage.store
        self._callers = callers
        self._costs = costs
        self._assets = assets
        self._starter = starter
        self._bridge = bridge
        self._search = search
        self._refresher = Refresher(storage.store, bridge)

    async def close(self) -> None:
        """Stop reading jobs of Scenario."""
        await self._refresher.stop()

    async def list(self, owner: str, query: Query) -> JsonObject:
        """Return a page of jobs (`GET /shim/jobs`), and the token for `changes` since this list."""
        self._refresher.start()
        token = self._store.changes.token
        page = parse_search(self._callers.visible_owner(owner), query)
        ids = await self._search.ids(page)
        jobs = self._jobs(ids[: page.size])
        return {
            "jobs": self._records(jobs),
            "nextPaginationToken": next_page(jobs[-1], page.order) if len(ids) > page.size else "",
            "changeToken": token,
        }

    async def changes(self, owner: str, query: Query) -> JsonObject:
        """Return the jobs that changed after the token `since` (`GET /shim/jobs/changes`).

        `matching` has the ids of those that match the query of the list. `isComplete` is false if the shim has not
        kept all changes since then, such as after a restart: the caller then loads its list again.
        """
        self._refresher.start()
        visible_owner = self._callers.visible_owner(owner)
        wanted = parse_search(visible_owner, query).wanted
        found = self._store.changes.since(query.get("since", ""), MAX_CHANGES)
        if found is None:
            token = self._store.changes.token
            return {**_NO_CHANGES, "isComplete": False, "changeToken": token}
        jobs = [job for job in self._jobs(found.job_ids) if visible_owner in (None, job.owner) or _is_shared(job)]
        existing = [job for job in jobs if not job.is_deleted]
        return {
            "jobs": self._records(existing),
            "matching": await self._search.matching(wanted, [job.id for job in existing]) if existing else [],
            "deleted": [job.id for job in jobs if job.is_deleted],
            "isComplete": True,
            "hasMore": found.token != self._store.changes.token,
            "changeToken": found.token,
        }

    async def run_again(self, owner: str, job_id: str, body: object) -> JsonObject:
        """Start a job with the inputs of another one (`POST /shim/jobs/{jobId}/again`), as a new call of its caller."""
        match body:
            case {"seed": "same" | "new" as seed}:
                job = self._find(owner, job_id)
                is_same_seed = seed == "same"
            case _:
                raise bad_request([Fault("seed", "must be same or new")])
        if job.side is Side.OWN and job.route not in PATHS:
            repeated = await self._starter.repeat(job, owner, is_same_seed=is_same_seed)
            return {"job": job_record(repeated, self._costs)}
        call = repeated_call(job, owner, is_same_seed=is_same_seed, image_id=self._store.asset_of(job.picture, owner))
        if isinstance(call, GenerateRequest):
            response = await self._starter.generate(call.owner, call.route, call.body, model_id=call.model_id)
        elif self._bridge is not None:
            response = await self._bridge.generate(call)
        else:
            reason = "The shim cannot run this job again without Scenario. Set SCENARIO_SHIM_UPSTREAM_API_KEY"
            raise ShimError(BAD_REQUEST, reason)
        return {"job": response["job"]}

    async def delete(self, owner: str, job_id: str) -> JsonObject:
        """Delete a job that has ended (`DELETE /shim/jobs/{jobId}`), without its images. Its costs stay in the totals.

        A job of Scenario is only deleted here, because Scenario's API cannot delete jobs.
        """
        job = self._find(owner, job_id)
        if job.phase is not Phase.ENDED:
            raise bad_request([Fault("jobId", "is of a job that has not ended. Cancel it first")])
        record = _without_content(job.scenario_record)
        calls = [
            replace(call, response=_response_without_content(call.response)) for call in self._store.calls_of(job_id)
        ]
        empty = replace(job, scenario_request={}, worker_request={}, picture="", notes=(), error="", asset_ids=())
        self._store.add(replace(empty, scenario_record=record, prompt="", is_deleted=True), *calls)
        return {}

    def _find(self, owner: str, job_id: str) -> ShimJob:
        job = self._store.job(job_id, owner)
        if job is None:
            raise not_found("job", job_id)
        return job

    def _jobs(self, job_ids: Collection[str]) -> Sequence[ShimJob]:
        """Return these jobs in this order."""
        found = self._store.by_id(ShimJob, job_ids)
        return [found[each] for each in job_ids if each in found]

    def _records(self, jobs: Iterable[ShimJob]) -> Sequence[JsonObject]:
        jobs = list(jobs)
        found = self._store.by_id(ShimAsset, [each for job in jobs for each in job.asset_ids])
        return [
            page_job(
                job,
                self._callers.name(job.owner),
                [self._assets.record(asset) for asset in self._assets_of(job, found)],
                self._costs,
            )
            for job in jobs
        ]

    @staticmethod
    def _assets_of(job: ShimJob, found: Mapping[str, ShimAsset]) -> Sequence[ShimAsset]:
        """Return those of the assets `found` that are images of a job, and that the job's caller may see."""
        assets = [found[each] for each in job.asset_ids if each in found]
        return [asset for asset in assets if asset.owner in (job.owner, SHARED_OWNER)]


def _is_shared(job: ShimJob) -> bool:
    return job.owner == SHARED_OWNER


def _without_content(record: JsonObject) -> JsonObject:
    return {name: value for name, value in record.items() if name in _KEPT_RECORD_FIELDS}


def _response_without_content(response: JsonObject) -> JsonObject:
    """Return Scenario's response to the call that started a job, with what a retry of the call needs."""
    records = {name: _without_content(value) for name, value in response.items() if isinstance(value, dict)}
    numbers = {name: value for name, value in response.items() if isinstance(value, int | float)}
    return {**numbers, **records, "job": scenario_job_record(records["job"])}
