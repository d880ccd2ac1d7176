"""Takes jobs from RunPod's worker API, reads stop signals, and posts results. Tolerates invalid responses.

The SDK's loops, pings, arguments and signals stay in use. Three of its functions are replaced, through the keys that
its JobScaler has for that: `jobs_fetcher`, `stop_signals_fetcher` and `jobs_handler`. The SDK reads these keys only
outside production, according to the flag IS_LOCAL_TEST of its module rp_scale (runpod 1.12), which `sdk_config` sets.
The differences from the SDK's functions:

- If part of a response is invalid, only that part is lost (`job_messages`). Polls that return nothing are at least a
  second apart, and up to MAX_WAIT_S apart after failures. A continuing failure is logged once per LOG_EVERY_S.
- A job that is already in progress is not started a second time.
- A result is posted with a timeout and several attempts, also after a lost connection. Until then the job stays in the
  SDK's list, so that pings include it, but it no longer occupies a slot: the SDK is given SPARE_SLOTS more slots than
  the worker has, and this module enforces the real limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from comfy_core.backoff import backoff_s
from comfy_core.contract import JsonObject
from comfy_core.errors import JobError
from worker.job_messages import done_body, progress_body, read_stops, read_take_response
from worker.lifecycle import Lifecycle, shutdown_error

if TYPE_CHECKING:
    import aiohttp

SPARE_SLOTS = 6
"""Number of results that may be in upload while other jobs run. Each has up to WORKER_MAX_RESULT_MB."""
POST_TIMEOUT_S = 30.0
POST_ATTEMPTS = 5
POST_WAIT_S = 0.5
"""Wait before the second attempt; doubled before each further attempt."""
MIN_WAIT_S = 1.0
MAX_WAIT_S = 8.0
LOG_EVERY_S = 60.0
LONG_POLL_TIMEOUT_S = 75.0
SLOT_TIMEOUT_S = 5.0
"""LONG_POLL_TIMEOUT_S and SLOT_TIMEOUT_S are below the SDK's timeout of 90 s, at which the SDK could lose a new job."""
_SHUTDOWN_POLL_S = 0.25
_RETRYABLE_STATUSES = frozenset({408, 425, 429})
"""Statuses after which a post is retried, in addition to 5xx."""
_NO_JOB_STATUSES = frozenset({204, 400})
"""Statuses without a job. job-take returns 400 when FlashBoot is about to resume the worker (rp_job.py of the SDK)."""

log = logging.getLogger(__name__)

Handler = Callable[[JsonObject], Coroutine[Any, Any, JsonObject]]
_Item = TypeVar("_Item")


class PollBackoff:
    """Computes the wait before the next request of one kind of long poll, and logs failed requests."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._failures = 0
        self._logged_at = 0.0

    def wait_s(self, duration_s: float, problem: str | None) -> float:
        """Log the outcome of a poll if necessary, and return how long to wait if it returned nothing.

        `problem` says why the poll failed; None if it succeeded.
        """
        if problem is None:
            if self._failures:
                log.info("%s succeeded again after %d failures", self._name, self._failures)
            self._failures = 0
            return max(0.0, MIN_WAIT_S - duration_s)
        self._failures += 1
        if self._failures == 1 or time.monotonic() - self._logged_at >= LOG_EVERY_S:
            self._logged_at = time.monotonic()
            log.warning("%s failed: %s (failure %d in a row)", self._name, problem, self._failures)
        return backoff_s(self._failures - 1, first_s=MIN_WAIT_S, longest_s=MAX_WAIT_S)


class RunPodWorkerApi:
    """The three replacement functions for the SDK, and the posting of progress.

    Args:
        concurrency: maximum number of running jobs.
        lifecycle: reports whether the worker is shutting down, and counts the active jobs.
    """

    def __init__(self, concurrency: int, lifecycle: Lifecycle) -> None:
        self._concurrency = concurrency
        self._lifecycle = lifecycle
        self._running: set[str] = set()
        self._active: set[str] = set()
        self._rejected: dict[str, JobError] = {}
        self._slot_freed = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None
        self._rejections: set[asyncio.Future[None]] = set()
        self._takes, self._stops = PollBackoff("job-take"), PollBackoff("job-stop")

    def sdk_config(self, handler: Handler, on_start: Callable[[], None]) -> dict[str, Any]:
        """Return the configuration for `runpod.serverless.start`. `on_start` is called in the SDK's running loop."""
        from runpod.serverless.modules import rp_scale  # noqa: PLC0415 - the SDK takes 1.6 s to import

        rp_scale.IS_LOCAL_TEST = True

        def concurrency(_current: int) -> int:
            on_start()
            return self._concurrency + SPARE_SLOTS

        return {
            "handler": handler,
            "concurrency_modifier": concurrency,
            "jobs_fetcher": self.take,
            "stop_signals_fetcher": self.stop_signals,
            "jobs_handler": self.handle,
        }

    async def take(self, session: aiohttp.ClientSession, _wanted: int) -> list[JsonObject]:
        """Wait for jobs, and return at most as many as there are free slots. Replaces the SDK's get_job."""
        from runpod.serverless.modules.rp_job import _job_get_url  # noqa: PLC0415 - the SDK takes 1.6 s to import

        self._session = session
        free = self._concurrency - len(self._running)
        if free < 1:
            self._slot_freed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SLOT_TIMEOUT_S):
                    await self._slot_freed.wait()
            return []
        if self._is_ending():
            await asyncio.sleep(MIN_WAIT_S)
            return []
        poll = asyncio.ensure_future(self._poll(session, _job_get_url(free), self._takes, self._accept))
        try:
            while not (await asyncio.wait({poll}, timeout=_SHUTDOWN_POLL_S))[0]:
                if self._is_ending():  # a job that arrives now is left to another worker
                    return []
            jobs = poll.result()
        finally:
            poll.cancel()
        return self._reject_late_jobs(session, jobs) if self._is_ending() else jobs

    def _reject_late_jobs(self, session: aiohttp.ClientSession, jobs: list[JsonObject]) -> list[JsonObject]:
        """Post an error for jobs received during shutdown, and return an empty list. The SDK may run no more jobs."""
        for job in jobs:
            self._rejected[job["id"]] = shutdown_error()
            task = asyncio.ensure_future(self.handle(session, {}, job))
            self._rejections.add(task)  # the event loop only keeps weak references to tasks
            task.add_done_callback(self._rejections.discard)
        return []

    async def stop_signals(self, session: aiohttp.ClientSession) -> list[str]:
        """Wait for stop signals, and return the ids of the jobs to stop. Replaces the SDK's get_stop_signals."""
        from runpod.serverless.modules.rp_job import _job_stop_url  # noqa: PLC0415 - the SDK takes 1.6 s to import

        url = _job_stop_url()
        if url is None:
            log.warning("jobs cannot be cancelled: RUNPOD_WEBHOOK_GET_JOB does not contain /job-take/")
            await asyncio.Event().wait()  # the SDK calls this again after its own timeout
        return await self._poll(session, str(url), self._stops, read_stops)

    async def handle(self, session: aiohttp.ClientSession, config: JsonObject, job: JsonObject) -> None:
        """Run one job and post its result. Nothing is posted for a stopped job. Replaces the SDK's handle_job."""
        job_id = str(job["id"])
        try:
            try:
                rejection = self._rejected.pop(job_id, None)
                if rejection is None:
                    result = await config["handler"](job)
                else:
                    self._lifecycle.note_job()
                    result = {"error": rejection.report.to_json()}
            finally:
                self._running.discard(job_id)
                self._slot_freed.set()
            await self._post(session, job_id, done_body(result), POST_ATTEMPTS)
        finally:
            self._active.discard(job_id)

    async def post_progress(self, job: JsonObject, progress: JsonObject) -> None:
        """Post the progress of a job. There is no retry."""
        if self._session is not None:
            await self._post(self._session, str(job["id"]), progress_body(progress), 1)

    def _is_ending(self) -> bool:
        return self._lifecycle.is_ending

    def _accept(self, body: bytes) -> list[JsonObject]:
        """Record the jobs of a response as active. Return those that were not active, including rejected jobs."""
        taken = read_take_response(body)
        for reason in taken.drop_reasons:
            log.error("dropped a job whose result cannot be posted: %s", reason)
        accepted = []
        for job in (*taken.jobs, *({"id": job_id, "input": None} for job_id in taken.rejected)):
            if job["id"] in self._active:
                log.warning("job %.80s was received again while it is active; ignored", job["id"])
                continue
            self._active.add(job["id"])
            self._running.add(job["id"])
            accepted.append(job)
        self._rejected.update(taken.rejected)
        return accepted

    async def _poll(
        self, session: aiohttp.ClientSession, url: str, poll: PollBackoff, read: Callable[[bytes], list[_Item]]
    ) -> list[_Item]:
        """Send one long poll and return the items of its response. If there are none, wait and return an empty list."""
        begun_at = time.monotonic()
        found: list[_Item] = []
        problem = None
        try:
            async with asyncio.timeout(LONG_POLL_TIMEOUT_S) as limit, session.get(url) as response:
                body = await response.read()
            if response.status == HTTPStatus.OK:
                found = read(body)
            elif response.status not in _NO_JOB_STATUSES:
                problem = f"RunPod returned {response.status}"
        except _network_errors() as error:
            problem = None if limit.expired() else type(error).__name__
        except ValueError as error:
            problem = f"the response cannot be read ({str(error)[:100]})"
        wait_s = poll.wait_s(time.monotonic() - begun_at, problem)
        if not found:
            await asyncio.sleep(wait_s)
        return found

    async def _post(self, session: aiohttp.ClientSession, job_id: str, body: bytes, attempts: int) -> None:
        """Post a body to job-done. Repeating it is safe: RunPod keeps the first result of a job."""
        from runpod.serverless.modules.rp_http import JOB_DONE_URL  # noqa: PLC0415 - the SDK takes 1.6 s to import

        quoted = quote(job_id, safe="")
        url = f"{JOB_DONE_URL.replace('$ID', quoted)}&isStream=false"
        headers = {
            "charset": "utf-8",
            "Content-Type": "application/x-www-form-urlencoded",  # as the SDK posts its JSON
            "X-Request-ID": quoted,
        }
        for attempt in range(attempts):
            if attempt:
                await asyncio.sleep(backoff_s(attempt - 1, first_s=POST_WAIT_S))
            try:
                async with asyncio.timeout(POST_TIMEOUT_S), session.post(url, data=body, headers=headers) as response:
                    await response.read()
            except _network_errors() as error:
                problem = type(error).__name__
            else:
                if response.ok:
                    return
                problem = f"RunPod returned {response.status}"
                if response.status < HTTPStatus.INTERNAL_SERVER_ERROR and response.status not in _RETRYABLE_STATUSES:
                    break
            log.warning("job %.80s: attempt %d of %d to post failed: %s", job_id, attempt + 1, attempts, problem)
        log.error("job %.80s: %d bytes could not be posted: %s", job_id, len(body), problem)


def _network_errors() -> tuple[type[Exception], ...]:
    import aiohttp  # noqa: PLC0415 - comes with the SDK

    return (aiohttp.ClientError, TimeoutError, OSError)


def secure_local_api() -> None:
    """Make the SDK's local API ignore `webhook`, and log a warning that it has no login.

    The SDK would post a job's result to any URL that the job names, including internal ones, without authentication.
    """
    from runpod.serverless.modules import rp_fastapi  # noqa: PLC0415 - the SDK takes 1.6 s to import

    def ignore(_url: str, _payload: object) -> bool:
        log.warning("ignored a job's webhook: the local API does not call webhooks")
        return False

    rp_fastapi._send_webhook = ignore  # noqa: SLF001 - the only place that posts to webhooks
    log.warning(
        "the local API has no login: anyone who can reach its port can run jobs. Use it on your own machine only. It "
        "takes no jobs from RunPod and ignores `webhook`"
    )
