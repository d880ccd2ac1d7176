"""Runs jobs: submits each one once, polls it until it ends, and stores its images. One asyncio task per job.

A job is acknowledged to the caller when it is stored, and submitted after that. Phase `sending` is stored before the
submit, and the endpoint's job id after the submit. So after a crash the next process can distinguish three cases:

- Not submitted: the job is submitted.
- Submitted: the job is polled.
- Unknown (`sending`): the job may be running. With RunPod it fails with MAYBE_SENT, because a second submit could
  create and bill a second job; RunPod has no idempotency key (docs/reference/runpod.md#submitting-a-job).

With a directly connected ComfyUI, jobs end with the process and cost nothing, so all of them are submitted again.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace

from comfy_client import coroutines
from comfy_client.gateway.scenario.asset_storage import AssetStorage
from comfy_client.gateway.scenario.errors import ShimError
from comfy_client.gateway.scenario.models import Phase, ShimAsset, ShimJob
from comfy_client.gateway.scenario.output_assets import output_assets
from comfy_client.job import Done, Event, JobPoller, Observer, ProviderUnavailable, Queued, Running, Sampling, Waiting
from comfy_client.providers.interface import (
    GenerationRequest,
    GenerationResult,
    JobState,
    JobStatus,
    Provider,
)
from comfy_client.providers.scenario_responses import Status
from comfy_core.backoff import backoff_s
from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError, JobCancelled, JobError, RequestError

SUBMITS_AT_ONCE = 16
LOCAL_JOBS_AT_ONCE = 4
"""Concurrent jobs at a directly connected ComfyUI, which runs one prompt at a time. Polling a job occupies a thread."""
SUBMIT_PATIENCE_S = 900.0
"""How long a submit is retried while the endpoint is unreachable or responds with 429."""
POLL_PATIENCE_S = 3600.0
"""How long polling is retried while the endpoint does not respond or responds with errors."""
MAX_JOB_LIFE_S = 7 * 86_400.0
"""The maximum lifetime of a job at RunPod."""
CANCEL_WAIT_S = 10.0
STOP_PATIENCE_S = 15.0
"""How long a shutdown waits for submits in progress."""
LARGE_IMAGE_CHARACTERS = 9_000_000
"""Size of an encoded image above which the request may exceed the 10 MiB limit of RunPod's /run."""
MAYBE_SENT = (
    "The shim was stopped while it submitted this job, so the endpoint may or may not have it. The job was not "
    "submitted again, because it might run and be billed twice. Check the endpoint's requests in RunPod's console, or "
    "start the job again."
)

_log = logging.getLogger(__name__)


class JobRunner:
    """Runs the stored jobs at `provider`. `on_ended` gets each job that has ended.

    All methods must be called in one event loop.
    """

    def __init__(self, provider: Provider, storage: AssetStorage, on_ended: Callable[[ShimJob], None]) -> None:
        self._provider = provider
        self._on_ended = on_ended
        self._storage = storage
        self._store = storage.store
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancels: dict[str, asyncio.Task[None]] = {}
        self._submit_slots = asyncio.Semaphore(SUBMITS_AT_ONCE)
        self._run_slots: AbstractAsyncContextManager[None] = asyncio.Semaphore(LOCAL_JOBS_AT_ONCE)
        if provider.jobs_outlive_process:
            self._run_slots = contextlib.nullcontext()
        self._is_stopping = False
        self._stopping = asyncio.Event()
        self.observers: dict[str, list[Observer]] = {}
        """The observers of the jobs that are observed, by the job's id."""

    def resume(self) -> int:
        """Resume the unfinished jobs of earlier processes and return their number. Raises ShimError."""
        unfinished = self._store.unfinished()
        for job in unfinished:
            if not self._provider.jobs_outlive_process:
                self._store.change(job, phase=Phase.STORED, status=Status.QUEUED, progress=0.0, endpoint_id="")
            self.start(job.id)
        return len(unfinished)

    def start(self, job_id: str) -> None:
        """Start the task of a stored job."""
        task = asyncio.get_running_loop().create_task(self._run(job_id), name=job_id)
        self._tasks[job_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job_id, None))

    async def wait(self, job_id: str) -> ShimJob:
        """Return a job when it has ended, or when `release_waits` is called."""
        if (task := self._tasks.get(job_id)) is not None:
            stopping = asyncio.create_task(self._stopping.wait())
            try:
                await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopping.cancel()
        return self._job(job_id)

    def release_waits(self) -> None:
        """End each `wait`, because the server stops."""
        self._stopping.set()

    @contextlib.contextmanager
    def observed(self, job_id: str, observer: Observer) -> Iterator[None]:
        """Call `observer` with each event of a running job, until the context ends."""
        observers = self.observers.setdefault(job_id, [])
        observers.append(observer)
        try:
            yield
        finally:
            observers.remove(observer)
            if not observers:
                del self.observers[job_id]

    async def cancel(self, job_id: str) -> None:
        """Cancel a job. A finished job does not change.

        A job that was not submitted yet ends immediately. For a submitted job, a cancel request is sent to the
        endpoint, with retries in the background. While the submit is in progress, the cancel request is sent after it.
        Returns after CANCEL_WAIT_S at most.
        """
        job = self._job(job_id)
        if job.phase is Phase.ENDED or job.is_cancel_wanted:
            return
        job = self._store.change(job, is_cancel_wanted=True)
        if job.phase is Phase.STORED:
            self._end(job_id, Status.CANCELED)
        elif job.phase is Phase.SENT:
            await asyncio.wait({self._start_cancel(job)}, timeout=CANCEL_WAIT_S)

    async def stop(self) -> None:
        """Stop submitting, wait for submits in progress, and leave unfinished jobs to the next process."""
        self._is_stopping = True
        give_up_at = time.monotonic() + STOP_PATIENCE_S
        while time.monotonic() < give_up_at and (
            sending := [self._tasks[each.id] for each in self._store.unfinished() if self._is_sending(each)]
        ):
            await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED, timeout=0.05)
        tasks = [*self._tasks.values(), *self._cancels.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_sending(self, job: ShimJob) -> bool:
        return job.phase is Phase.SENDING and job.id in self._tasks

    def _job(self, job_id: str) -> ShimJob:
        job = self._store.job(job_id)
        if job is None:
            raise LookupError(job_id)
        return job

    async def _run(self, job_id: str) -> None:
        """Continue a job from its current phase to its end. An unexpected error fails the job, not the shim."""
        try:
            async with self._run_slots:
                await self._advance(job_id)
        except ComfyClientError as error:
            await self._fail(job_id, error.report)
        finally:
            if not self._is_stopping and self._job(job_id).phase is not Phase.ENDED:
                _log.error("job %s failed because of a bug in the shim", job_id)
                await self._fail(
                    job_id,
                    ErrorReport.because(ErrorCode.INTERNAL, "The job failed because of a bug in the shim"),
                )
        if (job := self._job(job_id)).phase is Phase.ENDED:
            self._on_ended(job)
        with suppress(OSError, ComfyClientError):
            await self._delete_unused_image(job)

    async def _advance(self, job_id: str) -> None:
        if self._job(job_id).phase is Phase.SENDING:
            raise JobError(ErrorReport(ErrorCode.NETWORK, MAYBE_SENT, {"may_run": True}))
        if self._job(job_id).phase is Phase.STORED:
            await self._send(job_id)
        if self._job(job_id).phase is Phase.SENT:
            await self._poll(job_id)

    async def _delete_unused_image(self, job: ShimJob) -> None:
        """Delete a finished job's start image, unless another job or asset uses it."""
        if job.phase is Phase.ENDED and job.picture and not _is_url(job.picture):
            await self._storage.delete_unused(job.picture)

    async def _send(self, job_id: str) -> None:
        """Submit the job. After a temporary error the submit is retried if `_is_safe_to_resend`."""
        give_up_at = time.monotonic() + SUBMIT_PATIENCE_S
        attempt = 0
        while True:
            async with self._submit_slots:
                try:
                    await self._submit(job_id)
                except RequestError as error:
                    if not self._is_safe_to_resend(error):
                        raise
                    await self._change(job_id, phase=Phase.STORED)
                    if not error.is_transient or time.monotonic() > give_up_at:
                        raise
                    pause_s = backoff_s(attempt, error.retry_after_s)
                else:
                    return
            attempt += 1
            await asyncio.sleep(pause_s)

    async def _submit(self, job_id: str) -> None:
        """Submit the job once, unless the job was cancelled or the shim stops."""
        job = self._job(job_id)
        if job.phase is not Phase.STORED:
            return
        if job.is_cancel_wanted:
            await self._storage.write(lambda: self._end(job_id, Status.CANCELED))
            return
        request = await asyncio.to_thread(self._request, job)
        if self._is_stopping or self._job(job_id).phase is not Phase.STORED:
            return
        await self._change(job_id, phase=Phase.SENDING)
        # With a `wait_s` of 0, a request that is too large for RunPod's /run uses /runsync: see RunPodEndpoint.submit.
        is_large = len(request.input.get("image", "")) > LARGE_IMAGE_CHARACTERS
        # A directly called ComfyUI keeps no files of a job that was submitted with a `wait_s`.
        wait_s = 0.0 if is_large or not self._provider.jobs_outlive_process else None
        status = await asyncio.to_thread(self._provider.submit, request, wait_s)
        await self._change(job_id, phase=Phase.SENT, endpoint_id=status.job_id)

    def _is_safe_to_resend(self, error: RequestError) -> bool:
        """Return whether a failed submit may be retried: it created no job, or a second job costs nothing."""
        is_sure = error.is_unsent or error.report.details.get("may_run") is False
        return is_sure or not self._provider.jobs_outlive_process

    async def _change(self, job_id: str, **changes: object) -> None:
        await self._storage.write(lambda: self._store.change(self._job(job_id), **changes))

    def _request(self, job: ShimJob) -> GenerationRequest:
        """Return the request with its start image. Blocks. Raises JobError if the image does not exist any more."""
        image = job.picture
        if image and not _is_url(image):
            try:
                image = base64.b64encode(self._storage.blobs.get(image)).decode("ascii")
            except FileNotFoundError:
                raise JobError.because(ErrorCode.INVALID_IMAGE, "The start image does not exist any more") from None
        return GenerationRequest({**job.worker_request, **({"image": image} if image else {})})

    async def _poll(self, job_id: str) -> None:
        """Poll the job until it ends. Temporary errors of the endpoint are tolerated for POLL_PATIENCE_S."""
        last_response_at = time.monotonic()
        while True:
            job = self._job(job_id)
            if job.is_cancel_wanted and job.id not in self._cancels:
                self._start_cancel(job)
            # Start as if the job had just been submitted: RunPod may return 404 for some seconds
            # (docs/reference/runpod.md#job-states).
            poller = JobPoller(self._provider, job.endpoint_id, JobStatus(job.endpoint_id, JobState.QUEUED))
            events: AsyncIterator[Event] = coroutines.aiterate(poller.events(MAX_JOB_LIFE_S))
            try:
                async for event in events:
                    if not isinstance(event, Queued | ProviderUnavailable):  # These events need no response.
                        last_response_at = time.monotonic()
                    if isinstance(event, Done):
                        await self._store_result(job_id, event.result)
                        return
                    with suppress(ShimError):  # The disk may be full. The next event updates the progress.
                        self._record_progress(job_id, event)
                    for observer in self.observers.get(job_id, ()):
                        observer(event)
            except JobCancelled:
                await self._storage.write(lambda: self._end(job_id, Status.CANCELED))
                return
            except RequestError as error:
                if not error.is_transient or time.monotonic() > last_response_at + POLL_PATIENCE_S:
                    raise
            await asyncio.sleep(backoff_s(2))

    def _record_progress(self, job_id: str, event: Event) -> None:
        job = self._job(job_id)
        match event:
            case Waiting(why="cold" | "no_worker" | "throttled"):
                self._set_status(job, Status.WARMING_UP, job.progress)
            case Running():
                self._set_status(job, Status.IN_PROGRESS, job.progress)
            case Sampling(percent=percent):
                self._set_status(job, Status.IN_PROGRESS, min(0.99, max(job.progress, percent / 100)))

    def _start_cancel(self, job: ShimJob) -> asyncio.Task[None]:
        """Start and return the task that cancels a job at the endpoint."""
        task = asyncio.get_running_loop().create_task(self._cancel_at_endpoint(job), name=f"cancel {job.id}")
        self._cancels[job.id] = task
        task.add_done_callback(lambda _: self._cancels.pop(job.id, None))
        return task

    async def _cancel_at_endpoint(self, job: ShimJob) -> None:
        """Cancel a job at the endpoint. Temporary errors are retried until the job has ended."""
        poller = JobPoller(self._provider, job.endpoint_id, JobStatus(job.endpoint_id, JobState.QUEUED))
        while self._job(job.id).phase is not Phase.ENDED:
            try:
                await coroutines.arun(poller.cancel())
            except RequestError as error:
                _log.warning("job %s could not be cancelled, will retry if the error is temporary: %s", job.id, error)
                if not error.is_transient:
                    return
            except JobError:
                return  # The endpoint does not have the job. `_poll` handles that.
            else:
                return

    async def _store_result(self, job_id: str, result: GenerationResult) -> None:
        """Store the images before the status `success`, so that a client that sees `success` can download them."""
        if not result.images:
            raise JobError.because(ErrorCode.NO_OUTPUT, "The job produced no image")
        await self._storage.write(lambda: self._set_status(self._job(job_id), Status.FINALIZING, 1.0))
        async with self._storage.locked(*(image.sha256 for image in result.images)):
            try:
                for image in result.images:
                    await self._storage.put(image.bytes, image.mime_type)
            except (OSError, ComfyClientError) as error:
                message = f"The shim could not store the images. Check its disk. {error}"
                raise JobError(ErrorReport(ErrorCode.OUTPUT_NOT_STORED, message)) from error
            assets = output_assets(self._job(job_id), result, self._storage.clock())
            await self._storage.write(lambda: self._succeed(job_id, result, assets))

    def _succeed(self, job_id: str, result: GenerationResult, assets: list[ShimAsset]) -> None:
        ended = self._with_status(self._job(job_id), Status.SUCCESS, 1.0)
        ended = replace(
            ended,
            phase=Phase.ENDED,
            notes=(*ended.notes, *result.warnings),
            asset_ids=tuple(asset.id for asset in assets),
            execution_s=result.execution_s,
            cost_usd=result.cost,
            error="",
            error_code="",
        )
        self._store.add(*assets, ended)

    def _with_status(self, job: ShimJob, status: Status, progress: float) -> ShimJob:
        now = self._storage.clock()
        history = job.history if job.status is status else (*job.history, (now, status.value))
        return replace(job, status=status, progress=progress, history=history, updated_at=now)

    def _set_status(self, job: ShimJob, status: Status, progress: float) -> ShimJob:
        moved = self._with_status(job, status, progress)
        return self._store.change(
            job, status=status, progress=progress, history=moved.history, updated_at=moved.updated_at
        )

    def _end(self, job_id: str, status: Status, error: ErrorReport | None = None) -> None:
        job = self._job(job_id)
        ended = replace(
            self._with_status(job, status, job.progress),
            phase=Phase.ENDED,
            error=error.message if error else "",
            error_code=error.code.value if error else "",
        )
        self._store.add(ended)

    async def _fail(self, job_id: str, report: ErrorReport) -> None:
        _log.warning("job %s failed: %s", job_id, report.code.value)
        await self._storage.write(lambda: self._end(job_id, Status.FAILURE, report))


def _is_url(image: str) -> bool:
    return image.startswith("https://")
