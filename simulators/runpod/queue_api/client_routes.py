"""The routes of RunPod's clients."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from .bodies import NOT_JSON, not_json, problem, status_of, too_large
from .changes import Changes
from .config import PlatformConfig
from .state import JobStore
from .values import JsonObject, QueueJob

SYNC_WAIT_MS = 90_000
MAX_WAIT_MS = 300_000


class ClientRoutes:
    """The handlers of the client routes. Each gets the request and its parsed body."""

    def __init__(
        self, store: JobStore, config: PlatformConfig, changes: Changes, workers: Callable[[], dict[str, int]]
    ) -> None:
        self._store = store
        self._config = config
        self._changes = changes
        self._workers = workers
        self.submissions = 0

    async def run(self, request: web.Request, body: object) -> web.Response:
        """Queue a job."""
        job = await self._submit(request, body, self._config.request_limit_bytes, is_sync=False)
        return job if isinstance(job, web.Response) else _brief(job)

    async def runsync(self, request: web.Request, body: object) -> web.Response:
        """Queue a job, and wait until it ends, for `wait` ms at most."""
        job = await self._submit(request, body, self._config.sync_request_limit_bytes, is_sync=True)
        if isinstance(job, web.Response):
            return job
        job_id = job.id
        await self._changes.until(lambda: self._store.jobs[job_id].state.is_final, _wait_s(request, SYNC_WAIT_MS))
        job = self._store.jobs[job_id]
        return web.json_response(status_of(job)) if job.state.is_final else _brief(job)

    async def status(self, request: web.Request, _: object) -> web.Response:
        """Return a job's status."""
        job = self._found(request)
        return _unknown() if job is None else web.json_response(status_of(job))

    async def cancel(self, request: web.Request, _: object) -> web.Response:
        """Cancel a job. A job that has ended does not change."""
        job = self._found(request)
        return _unknown() if job is None else _brief(self._store.cancel(job.id))

    async def retry(self, request: web.Request, _: object) -> web.Response:
        """Queue a failed or timed out job again."""
        job = self._found(request)
        if job is None:
            return _unknown()
        retried = self._store.retry(job.id)
        return problem(400, "only a failed or timed out job can be retried") if retried is None else _brief(retried)

    async def purge_queue(self, _request: web.Request, _: object) -> web.Response:
        """Cancel the waiting jobs."""
        return web.json_response({"removed": self._store.purge(), "status": "completed"})

    async def health(self, _request: web.Request, _: object) -> web.Response:
        """Return the numbers of jobs and workers."""
        return web.json_response({"jobs": self._store.counts(), "workers": self._workers()})

    async def _submit(
        self, request: web.Request, body: object, limit_bytes: int, *, is_sync: bool
    ) -> QueueJob | web.Response:
        if len(await request.read()) > limit_bytes:
            return too_large(limit_bytes)
        if body is NOT_JSON:
            return not_json()
        if not isinstance(body, dict):
            return problem(400, "the body is not an object")
        self.submissions += 1
        return self._store.submit(body, is_sync=is_sync)

    def _found(self, request: web.Request) -> QueueJob | None:
        return self._store.find(request.match_info["job"])


def _brief(job: QueueJob) -> web.Response:
    body: JsonObject = {"id": job.id, "status": job.state.value}
    return web.json_response(body)


def _unknown() -> web.Response:
    return problem(404, "job not found")


def _wait_s(request: web.Request, default_ms: int) -> float:
    wait_ms = request.query.get("wait", "")
    return min(int(wait_ms) if wait_ms.isdecimal() else default_ms, MAX_WAIT_MS) / 1000
