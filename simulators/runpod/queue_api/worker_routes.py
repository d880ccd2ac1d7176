"""The routes of RunPod's workers, and the state of the workers."""

from __future__ import annotations

import time

from aiohttp import web

from .bodies import NOT_JSON, not_json, problem, too_large
from .changes import Changes
from .config import PlatformConfig
from .faults import QueueFaults
from .state import JobStore
from .values import JsonObject, Ping, Post, PostKind, QueueJobState, Take

WORKER_TIMEOUT_S = 15.0
"""A worker counts until it sent no request for this time and `long_poll_s`. The SDK pings every 10 s."""


class WorkerRoutes:
    """The handlers of the worker routes, and the recorded requests. A handler gets the request and its parsed body."""

    def __init__(self, store: JobStore, config: PlatformConfig, changes: Changes, faults: QueueFaults) -> None:
        self._store = store
        self._config = config
        self._changes = changes
        self._faults = faults
        self._seen_at: dict[str, float] = {}
        self._unhealthy: set[str] = set()
        self.takes: list[Take] = []
        self.posts: list[Post] = []
        self.pings: list[Ping] = []

    async def take(self, request: web.Request, _: object) -> web.Response:
        """Hand out one job."""
        jobs = await self._take_jobs(request, 1)
        return web.json_response(jobs[0]) if jobs else web.Response(status=204)

    async def take_batch(self, request: web.Request, _: object) -> web.Response:
        """Hand out the waiting jobs, up to the size of the batch."""
        jobs = await self._take_jobs(request, int(request.query.get("batch_size", "1")))
        return web.json_response(jobs) if jobs else web.Response(status=204)

    async def jobs_to_stop(self, request: web.Request, _: object) -> web.Response:
        """Wait until the worker must stop jobs, and return their ids."""
        worker_id = request.match_info["worker"]
        job_ids = await self._changes.until(lambda: self._store.stop_signals(worker_id), self._config.long_poll_s)
        return web.json_response({"jobsToStop": job_ids}) if job_ids else web.Response(status=204)

    async def done(self, request: web.Request, body: object) -> web.Response:
        """Store a result or progress."""
        job_id = request.match_info["job"]
        if job_id not in self._store.jobs:
            return problem(404, "job not found")
        refusal = await _refusal(request, body, self._config.result_limit_bytes)
        fields = body if isinstance(body, dict) else {}
        if _kind(body) == "final":
            is_lost = refusal is not None or self._faults.take_lost_result()
            self._store.finish(job_id, *() if is_lost else (fields.get("output"), fields.get("error")))
        elif refusal is None:
            self._store.add_progress(job_id, fields.get("output"))
        return web.json_response({}) if refusal is None else refusal

    async def ping(self, request: web.Request, _: object) -> web.Response:
        """Record that a worker is alive, or unhealthy."""
        worker_id, query = request.match_info["worker"], request.query
        is_unhealthy = query.get("status") == "unhealthy"
        job_ids = tuple(filter(None, query.get("job_id", "").split(",")))
        ping = Ping(worker_id, time.monotonic(), job_ids, is_unhealthy, query.get("check", ""), query.get("reason", ""))
        self.pings.append(ping)
        (self._unhealthy.add if is_unhealthy else self._unhealthy.discard)(worker_id)
        self._seen_at[worker_id] = ping.at
        self._store.mark_running(job_ids)
        self._changes.notify()
        return web.json_response({})

    async def record_post(self, request: web.Request, body: object) -> PostKind:
        """Record a worker's POST; return its kind."""
        kind = _kind(body)
        job_id, worker_id, size = request.match_info["job"], request.match_info["worker"], len(await request.read())
        self.posts.append(Post(job_id, worker_id, kind, time.monotonic(), size))
        self._changes.notify()
        return kind

    def refuse(self, job_id: str) -> None:
        """Finish a job without output, because a fault refused its result."""
        if job_id in self._store.jobs:
            self._store.finish(job_id)

    def counts(self) -> dict[str, int]:
        """Return the numbers of workers for /health."""
        now = time.monotonic()
        alive = {
            worker
            for worker, seen_at in self._seen_at.items()
            if now < seen_at + WORKER_TIMEOUT_S + self._config.long_poll_s
        }
        unhealthy, healthy = alive & self._unhealthy, alive - self._unhealthy
        busy = healthy & {job.worker_id for job in self._store.jobs.values() if job.state is QueueJobState.IN_PROGRESS}
        idle = healthy - busy
        shortage = self._faults.shortage
        return {
            "idle": 0 if shortage else len(idle),
            "initializing": max(1, len(idle)) if shortage == "initializing" else 0,
            "ready": len(busy) if shortage else len(healthy),
            "running": len(busy),
            "throttled": max(1, len(idle)) if shortage == "throttled" else 0,
            "unhealthy": len(unhealthy),
        }

    def record_take(self, request: web.Request) -> None:
        """Record a worker's request for jobs."""
        batch_size = int(request.query.get("batch_size", "1"))
        self.takes.append(Take(request.match_info["worker"], time.monotonic(), batch_size))

    async def _take_jobs(self, request: web.Request, at_most: int) -> list[JsonObject]:
        worker_id = request.match_info["worker"]
        self.record_take(request)
        self._unhealthy.discard(worker_id)
        self._seen_at[worker_id] = time.monotonic()
        self._changes.notify()
        return await self._changes.until(
            lambda: self._store.hand_out(worker_id, at_most) if _is_open(request) else [],
            self._config.long_poll_s,
            self._config.dispatch_jitter_s,
        )


async def _refusal(request: web.Request, body: object, limit_bytes: int) -> web.Response | None:
    if len(await request.read()) > limit_bytes:
        return too_large(limit_bytes)
    return not_json() if body is NOT_JSON else None


def _kind(body: object) -> PostKind:
    return "progress" if isinstance(body, dict) and body.get("status") == "IN_PROGRESS" else "final"


def _is_open(request: web.Request) -> bool:
    return request.transport is not None and not request.transport.is_closing()
