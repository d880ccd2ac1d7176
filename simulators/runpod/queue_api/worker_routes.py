"""The routes that workers call, and what is known of the workers."""

from __future__ import annotations

import time

from aiohttp import web

from .bodies import NOT_JSON, not_json, problem, too_large
from .changes import Changes
from .config import MIB, PlatformConfig
from .faults import QueueFaults
from .state import JobStore
from .values import JsonObject, Ping, Post, PostKind, QueueJobState, Take

CHUNK_LIMIT_BYTES = MIB
SILENCE_S = 15.0
"""A worker of which nothing is heard for so long is no worker any more. The SDK pings every 10 s."""


class WorkerRoutes:
    """What workers may ask, and what was heard of them, in order. A route gets the request and what its body holds."""

    def __init__(self, store: JobStore, config: PlatformConfig, changes: Changes, faults: QueueFaults) -> None:
        self._store = store
        self._config = config
        self._changes = changes
        self._faults = faults
        self._heard_at: dict[str, float] = {}
        self._unhealthy: set[str] = set()
        self.takes: list[Take] = []
        self.posts: list[Post] = []
        self.pings: list[Ping] = []

    async def take(self, request: web.Request, _: object) -> web.Response:
        """Hand out one job."""
        jobs = await self._taken(request, 1)
        return web.json_response(jobs[0]) if jobs else web.Response(status=204)

    async def take_batch(self, request: web.Request, _: object) -> web.Response:
        """Hand out as many jobs as there are, up to the size of the batch."""
        jobs = await self._taken(request, int(request.query.get("batch_size", "1")))
        return web.json_response(jobs) if jobs else web.Response(status=204)

    async def stop(self, request: web.Request, _: object) -> web.Response:
        """Name the jobs that are to be stopped."""
        worker_id = request.match_info["worker"]
        job_ids = await self._changes.until(lambda: self._store.stop_signals(worker_id), self._config.long_poll_s)
        return web.json_response({"jobsToStop": job_ids}) if job_ids else web.Response(status=204)

    async def done(self, request: web.Request, body: object) -> web.Response:
        """Take a result or progress."""
        job_id = request.match_info["job"]
        if job_id not in self._store.jobs:
            return problem(404, "job not found")
        refusal = await _refusal(request, body, self._config.result_limit_bytes)
        fields = body if isinstance(body, dict) else {}
        if _kind(body) == "final":
            is_lost = refusal is not None or self._faults.loses_result()
            self._store.finish(job_id, *() if is_lost else (fields.get("output"), fields.get("error")))
        elif refusal is None:
            self._store.progress(job_id, fields.get("output"))
        return web.json_response({}) if refusal is None else refusal

    async def chunk(self, request: web.Request, body: object) -> web.Response:
        """Take one chunk of a stream."""
        job_id = request.match_info["job"]
        if job_id not in self._store.jobs:
            return problem(404, "job not found")
        refusal = await _refusal(request, body, CHUNK_LIMIT_BYTES)
        if refusal is not None:
            return refusal
        self._store.chunk(job_id, body.get("output") if isinstance(body, dict) else body)
        return web.json_response({})

    async def ping(self, request: web.Request, _: object) -> web.Response:
        """Note that a worker lives, or that it is unwell."""
        worker_id, query = request.match_info["worker"], request.query
        is_unhealthy = query.get("status") == "unhealthy"
        job_ids = tuple(filter(None, query.get("job_id", "").split(",")))
        ping = Ping(worker_id, time.monotonic(), job_ids, is_unhealthy, query.get("check", ""), query.get("reason", ""))
        self.pings.append(ping)
        (self._unhealthy.add if is_unhealthy else self._unhealthy.discard)(worker_id)
        self._heard_at[worker_id] = ping.at
        self._store.mark_running(job_ids)
        self._changes.ring()
        return web.json_response({})

    async def note_post(self, request: web.Request, body: object) -> PostKind:
        """Keep that a worker posted something; return what it is."""
        kind = "chunk" if request.match_info.route.name == "job-stream" else _kind(body)
        stops_pod = isinstance(body, dict) and body.get("stopPod") is True
        job_id, worker_id, size = request.match_info["job"], request.match_info["worker"], len(await request.read())
        self.posts.append(Post(job_id, worker_id, kind, time.monotonic(), size, stops_pod))
        self._changes.ring()
        return kind

    def refuse(self, job_id: str) -> None:
        """End a job of which a fault refused the result."""
        if job_id in self._store.jobs:
            self._store.finish(job_id)

    def counts(self) -> dict[str, int]:
        """Return the workers of /health."""
        now = time.monotonic()
        alive = {
            worker
            for worker, heard_at in self._heard_at.items()
            if now < heard_at + SILENCE_S + self._config.long_poll_s
        }
        unhealthy, well = alive & self._unhealthy, alive - self._unhealthy
        busy = well & {job.worker_id for job in self._store.jobs.values() if job.state is QueueJobState.IN_PROGRESS}
        idle = well - busy
        shortage = self._faults.shortage
        return {
            "idle": 0 if shortage else len(idle),
            "initializing": max(1, len(idle)) if shortage == "initializing" else 0,
            "ready": len(busy) if shortage else len(well),
            "running": len(busy),
            "throttled": max(1, len(idle)) if shortage == "throttled" else 0,
            "unhealthy": len(unhealthy),
        }

    def note_take(self, request: web.Request) -> None:
        """Keep that a worker asked for jobs."""
        batch_size = int(request.query.get("batch_size", "1"))
        self.takes.append(Take(request.match_info["worker"], time.monotonic(), batch_size))

    async def _taken(self, request: web.Request, at_most: int) -> list[JsonObject]:
        worker_id = request.match_info["worker"]
        self.note_take(request)
        self._unhealthy.discard(worker_id)
        self._heard_at[worker_id] = time.monotonic()
        self._changes.ring()
        return await self._changes.until(
            lambda: self._store.hand_out(worker_id, at_most) if _is_open(request) else [], self._config.long_poll_s
        )


async def _refusal(request: web.Request, body: object, limit_bytes: int) -> web.Response | None:
    if len(await request.read()) > limit_bytes:
        return too_large(limit_bytes)
    return not_json() if body is NOT_JSON else None


def _kind(body: object) -> PostKind:
    return "progress" if isinstance(body, dict) and body.get("status") == "IN_PROGRESS" else "final"


def _is_open(request: web.Request) -> bool:
    return request.transport is not None and not request.transport.is_closing()
