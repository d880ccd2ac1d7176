"""The simulated endpoint as a context manager: a thread that runs one server, with controls and state for tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self, TypeAlias, TypeVar

from aiohttp import hdrs, web

from simulators.aiohttp_server import serving

from .bodies import edge_page, parsed, problem, response_of
from .changes import Changes
from .client_routes import ClientRoutes
from .config import PlatformConfig
from .faults import QueueDrop, QueueFaults, QueueHang, QueueResponse
from .state import JobStore
from .values import Ping, Post, QueueJob, Take
from .worker_routes import WorkerRoutes

Route: TypeAlias = Callable[[web.Request, object], Awaitable[web.Response]]
_Found = TypeVar("_Found")

START_TIMEOUT_S = 120.0
POLLS = frozenset({"job-take", "job-take-batch", "job-stop"})
TAKES = frozenset({"job-take", "job-take-batch"})
READ_AND_REFUSED = frozenset({400, 413})


@dataclass(kw_only=True, eq=False)
class RunPodPlatform(PlatformConfig):
    """A RunPod serverless endpoint in a thread of this process. Its arguments are the settings of PlatformConfig."""

    def __post_init__(self) -> None:
        self._changes = Changes()
        self.faults = QueueFaults(self._changes)
        self._store = JobStore(self, self.faults, self._changes)
        self._workers = WorkerRoutes(self._store, self, self._changes, self.faults)
        self._clients = ClientRoutes(self._store, self, self._changes, self._workers.counts)
        self._thread = threading.Thread(target=self._serve, name="runpod-platform", daemon=True)
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_S) or not self._port:
            raise RuntimeError("the platform did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._changes.call_later(0, self._stop.set)
        self._thread.join()

    @property
    def base_url(self) -> str:
        """The base URL of all endpoints."""
        return f"http://{self.host}:{self._port}/v2"

    @property
    def endpoint_url(self) -> str:
        """The URL of the endpoint."""
        return f"{self.base_url}/{self.endpoint_id}"

    def worker_env(self, worker_id: str = "worker-1") -> dict[str, str]:
        """Return the environment variables of a worker of this platform."""
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.endpoint_url}/job-take/$ID?gpu=FAKE",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.endpoint_url}/job-done/$RUNPOD_POD_ID/$ID?gpu=FAKE",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{self.endpoint_url}/job-stream/$RUNPOD_POD_ID/$ID?gpu=FAKE",
            "RUNPOD_WEBHOOK_PING": f"{self.endpoint_url}/ping/$RUNPOD_POD_ID?gpu=FAKE",
            "RUNPOD_PING_INTERVAL": "2000",
            "RUNPOD_AI_API_KEY": self.api_key,
            "RUNPOD_POD_ID": worker_id,
            "RUNPOD_POD_HOSTNAME": f"{worker_id}-host",
            "RUNPOD_ENDPOINT_ID": self.endpoint_id,
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def client_env(self) -> dict[str, str]:
        """Return the environment variables of a client of this platform."""
        return {
            "RUNPOD_API_KEY": self.api_key,
            "RUNPOD_ENDPOINT_ID": self.endpoint_id,
            "RUNPOD_ENDPOINT_BASE_URL": self.base_url,
        }

    @property
    def jobs(self) -> Mapping[str, QueueJob]:
        """All jobs by id, including those that ended."""
        return self._store.jobs

    @property
    def takes(self) -> tuple[Take, ...]:
        """The requests of workers for jobs, in order."""
        return tuple(self._workers.takes)

    @property
    def posts(self) -> tuple[Post, ...]:
        """The POSTs of workers, in order."""
        return tuple(self._workers.posts)

    @property
    def pings(self) -> tuple[Ping, ...]:
        """The pings of workers, in order."""
        return tuple(self._workers.pings)

    @property
    def submissions(self) -> int:
        """The number of jobs accepted over HTTP. RunPod would bill each of them."""
        return self._clients.submissions

    def submit(self, job_input: object, **envelope: object) -> str:
        """Queue a job as POST run does, without HTTP; return its id."""
        return self._store.submit({"input": job_input, **envelope}).id

    def adopt(self, job_id: str) -> None:
        """Store a job that `faults.hand_out` handed out, so that its result counts."""
        self._store.adopt(job_id)

    def wait_for(self, job_id: str, timeout_s: float = 60.0) -> QueueJob:
        """Return the job once it has ended.

        Raises:
            AssertionError: the job did not end in time.
        """
        job = self._changes.wait(lambda: job if (job := self.jobs[job_id]).state.is_final else None, timeout_s)
        if job is None:
            raise AssertionError(f"not ended within {timeout_s} s: {self.jobs[job_id]}")
        return job

    def wait_until(self, predicate: Callable[[], _Found], timeout_s: float = 60.0) -> _Found:
        """Return the first true result of `predicate`, which is called after each change of the state.

        Raises:
            AssertionError: no result was true in time.
        """
        found = self._changes.wait(predicate, timeout_s)
        if not found:
            raise AssertionError(f"not so within {timeout_s} s; jobs: {self._store.counts()}, posts: {len(self.posts)}")
        return found

    def _serve(self) -> None:
        try:
            asyncio.run(self._run_server())
        finally:
            self._started.set()

    async def _run_server(self) -> None:
        # Without handler_cancellation a disconnected worker would still get a job.
        runner = web.AppRunner(self._app(), handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        async with serving(runner, self.host) as self._port:
            self._changes.attach(asyncio.get_running_loop())
            self._started.set()
            await self._stop.wait()
        self._changes.attach(None)

    def _app(self) -> web.Application:
        clients, workers = self._clients, self._workers
        app = web.Application(client_max_size=0)
        for method, name, rest, route in (
            (hdrs.METH_GET, "job-take", "/{worker}", workers.take),
            (hdrs.METH_GET, "job-take-batch", "/{worker}", workers.take_batch),
            (hdrs.METH_GET, "job-stop", "/{worker}", workers.jobs_to_stop),
            (hdrs.METH_POST, "job-done", "/{worker}/{job}", workers.done),
            (hdrs.METH_GET, "ping", "/{worker}", workers.ping),
            (hdrs.METH_POST, "run", "", clients.run),
            (hdrs.METH_POST, "runsync", "", clients.runsync),
            (hdrs.METH_GET, "status", "/{job}", clients.status),
            (hdrs.METH_POST, "cancel", "/{job}", clients.cancel),
            (hdrs.METH_POST, "retry", "/{job}", clients.retry),
            (hdrs.METH_POST, "purge-queue", "", clients.purge_queue),
            (hdrs.METH_GET, "health", "", clients.health),
        ):
            path = f"/v2/{{endpoint}}/{name}{rest}"
            app.router.add_route(method, path, partial(self._handle, name, route), name=name)
        return app

    async def _handle(self, name: str, route: Route, request: web.Request) -> web.Response:
        await asyncio.sleep(self.round_trip_s / 2)
        response = await self._respond(name, route, request)
        if name in POLLS and not 200 <= response.status < 400:  # noqa: PLR2004 - a failure
            await asyncio.sleep(self.poll_error_delay_s)
        await asyncio.sleep(self.round_trip_s / 2)
        return response

    async def _respond(self, name: str, route: Route, request: web.Request) -> web.Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        body = parsed(await request.read())
        kind = await self._workers.record_post(request, body) if name == "job-done" else name
        fault = self.faults.take_fault({name, kind, *({"take"} if name in TAKES else ())})
        if isinstance(fault, QueueHang):
            await asyncio.Future()
        if isinstance(fault, QueueResponse):
            if name in TAKES:
                self._workers.record_take(request)
            if kind == "final" and fault.status in READ_AND_REFUSED:
                self._workers.refuse(request.match_info["job"])
            return response_of(fault)
        is_dropped = isinstance(fault, QueueDrop) and not fault.after_handling
        response = web.Response() if is_dropped else await route(request, body)
        if fault is not None and request.transport is not None:
            request.transport.abort()
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        """Return the response to a request that does not reach the endpoint, or None."""
        if (status := self.faults.outage_status) is not None:
            return edge_page(status)
        if (key := request.headers.get(hdrs.AUTHORIZATION)) not in {self.api_key, f"Bearer {self.api_key}"}:
            return problem(401, "invalid api key" if key else "no token provided")
        if request.match_info["endpoint"] != self.endpoint_id:
            return problem(404, "endpoint not found")
        return None
