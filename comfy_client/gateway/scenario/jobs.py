"""Jobs on their way: each is sent once, followed to its end, and its pictures are stored. One task a job.

A job is acknowledged when it is stored, and sent after that. `sending` is written before the submit and the endpoint's
id after it. So after a kill the next process knows which jobs were surely not sent (it sends them), which run (it
follows them), and which may run. At RunPod the last end as a failure that says so: a second submit might be a second
job and a second bill, and RunPod has no idempotency key (docs/reference/runpod.md#submitting-a-job). With a ComfyUI
that is reached directly, jobs end with the process and cost nothing, so all of them are sent again.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace

from comfy_client import coroutines
from comfy_client.gateway.scenario.errors import ShimError
from comfy_client.gateway.scenario.keeper import Keeper
from comfy_client.gateway.scenario.made import made_assets
from comfy_client.gateway.scenario.models import AssetRow, JobRow, Phase, Status
from comfy_client.job import Done, Event, JobPoller, ProviderUnavailable, Queued, Running, Sampling, Waiting, backoff_s
from comfy_client.providers.interface import (
    GenerationRequest,
    GenerationResult,
    JobState,
    JobStatus,
    Provider,
)
from comfy_core.contract import ErrorCode, ErrorReport
from comfy_core.errors import ComfyClientError, JobCancelled, JobError, RequestError

SUBMITS_AT_ONCE = 16
LOCAL_JOBS_AT_ONCE = 4
"""Jobs that a directly reached ComfyUI has at once: it runs one at a time, and each is polled by threads of ours."""
SUBMIT_PATIENCE_S = 900.0
"""How long a job waits for an endpoint that surely did not take it: one that is away, or takes no more for now."""
FOLLOW_PATIENCE_S = 3600.0
"""How long a job is followed while the endpoint does not answer well."""
LONGEST_S = 7 * 86_400.0
"""RunPod's own longest life of a job."""
CANCEL_PATIENCE_S = 10.0
STOP_PATIENCE_S = 15.0
"""How long a stop waits for submits under way."""
LARGE = 9_000_000
"""Characters of a picture from which on a request may be larger than the 10 MiB of /run."""
MAY_RUN = (
    "The shim was stopped while it sent this job: the endpoint may have it, or not. It was not sent again, since that "
    "might make, and bill, it twice. Look at the endpoint's requests in RunPod's console, or start the job again."
)

_log = logging.getLogger(__name__)


class JobRunner:
    """Runs the stored jobs at `provider`. All its calls are made in one event loop."""

    def __init__(self, provider: Provider, keeper: Keeper) -> None:
        self._provider = provider
        self._keeper = keeper
        self._store = keeper.store
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancels: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(SUBMITS_AT_ONCE)
        self._in_hand: AbstractAsyncContextManager[None] = asyncio.Semaphore(LOCAL_JOBS_AT_ONCE)
        if provider.jobs_outlive_process:
            self._in_hand = contextlib.nullcontext()
        self._is_stopping = False

    def resume(self) -> int:
        """Continue the jobs of an earlier process; return how many there are. Raises ShimError."""
        unfinished = self._store.unfinished()
        for job in unfinished:
            if not self._provider.jobs_outlive_process:
                self._store.change(job, phase=Phase.STORED, status=Status.QUEUED, progress=0.0, endpoint_id="")
            self.begin(job.id)
        return len(unfinished)

    def begin(self, job_id: str) -> None:
        """Start the task of a stored job."""
        task = asyncio.get_running_loop().create_task(self._run(job_id), name=job_id)
        self._tasks[job_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job_id, None))

    async def cancel(self, job_id: str) -> None:
        """End a job: before it is sent at once, else at the endpoint. One that has ended stays as it is.

        Returns after CANCEL_PATIENCE_S at most; an endpoint that does not answer is asked on until the job has ended.
        """
        job = self._job(job_id)
        if job.phase is Phase.ENDED or job.is_cancel_wanted:
            return
        job = self._store.change(job, is_cancel_wanted=True)
        if job.phase is Phase.STORED:
            self._end(job_id, Status.CANCELED)
        elif job.phase is Phase.SENT:
            await asyncio.wait({self._cancelling(job)}, timeout=CANCEL_PATIENCE_S)

    async def stop(self) -> None:
        """Send no more, let the submits under way end, and leave the rest to the next start."""
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

    def _is_sending(self, job: JobRow) -> bool:
        return job.phase is Phase.SENDING and job.id in self._tasks

    def _job(self, job_id: str) -> JobRow:
        job = self._store.job(job_id)
        if job is None:
            raise LookupError(job_id)
        return job

    async def _run(self, job_id: str) -> None:
        """Take a job from where it is to its end. An unforeseen error ends the job too, and not the shim."""
        try:
            async with self._in_hand:
                await self._advance(job_id)
        except ComfyClientError as error:
            await self._fail(job_id, error.report)
        finally:
            if not self._is_stopping and self._job(job_id).phase is not Phase.ENDED:
                _log.error("a bug in the shim ended job %s", job_id)
                await self._fail(
                    job_id, ErrorReport(ErrorCode.INTERNAL, "A bug in the shim ended the job; see its log.")
                )
        with suppress(OSError, ComfyClientError):
            await self._forget_picture(self._job(job_id))

    async def _advance(self, job_id: str) -> None:
        if self._job(job_id).phase is Phase.SENDING:
            raise JobError.because(ErrorCode.NETWORK, MAY_RUN)
        if self._job(job_id).phase is Phase.STORED:
            await self._send(job_id)
        if self._job(job_id).phase is Phase.SENT:
            await self._follow(job_id)

    async def _forget_picture(self, job: JobRow) -> None:
        """Delete the picture that a job started from, where nothing else needs it."""
        if job.phase is Phase.ENDED and job.picture and not _is_address(job.picture):
            await self._keeper.forget(job.picture)

    # --- sending

    async def _send(self, job_id: str) -> None:
        """Send the job; a submit that surely did not arrive is repeated, no other."""
        give_up_at = time.monotonic() + SUBMIT_PATIENCE_S
        attempt = 0
        while True:
            async with self._turns:
                try:
                    await self._submit(job_id)
                except RequestError as error:
                    if not self._is_unsent(error):
                        raise
                    await self._change(job_id, phase=Phase.STORED)
                    if not _may_pass(error) or time.monotonic() > give_up_at:
                        raise
                    pause_s = backoff_s(attempt, error.retry_after_s)
                else:
                    return
            attempt += 1
            await asyncio.sleep(pause_s)

    async def _submit(self, job_id: str) -> None:
        """Send the job once, unless it was cancelled."""
        job = self._job(job_id)
        if job.phase is not Phase.STORED:
            return
        if job.is_cancel_wanted:
            await self._keeper.write(lambda: self._end(job_id, Status.CANCELED))
            return
        request = await asyncio.to_thread(self._request, job)
        if self._is_stopping or self._job(job_id).phase is not Phase.STORED:
            return
        await self._change(job_id, phase=Phase.SENDING)
        # Followed at once, a large one may go by RunPod's other door: see RunPodEndpoint.submit.
        is_large = len(request.input.get("image", "")) > LARGE
        status = await asyncio.to_thread(self._provider.submit, request, 0.0 if is_large else None)
        await self._change(job_id, phase=Phase.SENT, endpoint_id=status.job_id)

    def _is_unsent(self, error: RequestError) -> bool:
        """Return whether a submit that failed may be repeated: it surely did not arrive, or a second one is free."""
        is_sure = error.is_unsent or error.report.details.get("may_run") is False
        return is_sure or not self._provider.jobs_outlive_process

    async def _change(self, job_id: str, **changes: object) -> None:
        await self._keeper.write(lambda: self._store.change(self._job(job_id), **changes))

    def _request(self, job: JobRow) -> GenerationRequest:
        """Return the request with its picture. Blocks. Raises JobError where the picture is not there any more."""
        picture = job.picture
        if picture and not _is_address(picture):
            try:
                picture = base64.b64encode(self._keeper.blobs.get(picture)).decode("ascii")
            except FileNotFoundError:
                raise JobError.because(ErrorCode.INVALID_IMAGE, "The picture to start from is gone.") from None
        return GenerationRequest({**job.input, **({"image": picture} if picture else {})})

    # --- following

    async def _follow(self, job_id: str) -> None:
        """Follow the job to its end, however long the endpoint does not answer, within FOLLOW_PATIENCE_S."""
        answered_at = time.monotonic()
        while True:
            job = self._job(job_id)
            if job.is_cancel_wanted and job.id not in self._cancels:
                self._cancelling(job)
            # As one that was just submitted: RunPod may not know it for some seconds
            # (docs/reference/runpod.md#job-states).
            story = JobPoller(self._provider, job.endpoint_id, JobStatus(job.endpoint_id, JobState.QUEUED))
            events: AsyncIterator[Event] = coroutines.aiterate(story.events(LONGEST_S))
            try:
                async for event in events:
                    if not isinstance(event, Queued | ProviderUnavailable):  # both come before any response
                        answered_at = time.monotonic()
                    if isinstance(event, Done):
                        await self._keep(job_id, event.result)
                        return
                    with suppress(ShimError):  # a full disk: the next event shows how far it is
                        self._tell(job_id, event)
            except JobCancelled:
                await self._keeper.write(lambda: self._end(job_id, Status.CANCELED))
                return
            except RequestError as error:
                if not _may_pass(error) or time.monotonic() > answered_at + FOLLOW_PATIENCE_S:
                    raise
            await asyncio.sleep(backoff_s(2))

    def _tell(self, job_id: str, event: Event) -> None:
        job = self._job(job_id)
        match event:
            case Waiting(why="cold" | "no_worker" | "throttled"):
                self._move(job, Status.WARMING_UP, job.progress)
            case Running():
                self._move(job, Status.IN_PROGRESS, job.progress)
            case Sampling(percent=percent):
                self._move(job, Status.IN_PROGRESS, min(0.99, max(job.progress, percent / 100)))

    def _cancelling(self, job: JobRow) -> asyncio.Task[None]:
        """Return the task that cancels a job at the endpoint."""
        task = asyncio.get_running_loop().create_task(self._cancel_at_endpoint(job), name=f"cancel {job.id}")
        self._cancels[job.id] = task
        task.add_done_callback(lambda _: self._cancels.pop(job.id, None))
        return task

    async def _cancel_at_endpoint(self, job: JobRow) -> None:
        """Ask the endpoint to end a job until it has answered, or the job has ended: a cancel may be repeated."""
        story = JobPoller(self._provider, job.endpoint_id, JobStatus(job.endpoint_id, JobState.QUEUED))
        while self._job(job.id).phase is not Phase.ENDED:
            try:
                await coroutines.arun(story.cancel())
            except RequestError as error:
                _log.warning("job %s could not be cancelled yet: %s", job.id, error)
                if not _may_pass(error):
                    return
            except JobError:
                return  # the endpoint does not know it: who follows it finds that out
            else:
                return

    # --- keeping

    async def _keep(self, job_id: str, result: GenerationResult) -> None:
        """Store the pictures, then write `success`: whoever reads that finds them."""
        if not result.images:
            raise JobError.because(ErrorCode.NO_OUTPUT, "The job made no picture.")
        await self._keeper.write(lambda: self._move(self._job(job_id), Status.FINALIZING, 1.0))
        async with self._keeper.holding(*(image.sha256 for image in result.images)):
            try:
                for image in result.images:
                    await self._keeper.put(image.bytes, image.mime_type)
            except (OSError, ComfyClientError) as error:
                raise JobError.because(
                    ErrorCode.OUTPUT_NOT_STORED, f"The shim could not store the pictures ({error}): look at its disk."
                ) from error
            assets = made_assets(self._job(job_id), result, self._keeper.clock())
            await self._keeper.write(lambda: self._succeed(job_id, result, assets))

    def _succeed(self, job_id: str, result: GenerationResult, assets: list[AssetRow]) -> None:
        ended = self._moved(self._job(job_id), Status.SUCCESS, 1.0)
        ended = replace(
            ended,
            phase=Phase.ENDED,
            notes=(*ended.notes, *result.warnings),
            asset_ids=tuple(asset.id for asset in assets),
            execution_s=result.execution_s,
            error="",
            error_code="",
        )
        self._store.add(*assets, ended)

    # --- how it stands

    def _moved(self, job: JobRow, status: Status, progress: float) -> JobRow:
        now = self._keeper.clock()
        history = job.history if job.status is status else (*job.history, (now, status.value))
        return replace(job, status=status, progress=progress, history=history, updated_at=now)

    def _move(self, job: JobRow, status: Status, progress: float) -> JobRow:
        moved = self._moved(job, status, progress)
        return self._store.change(
            job, status=status, progress=progress, history=moved.history, updated_at=moved.updated_at
        )

    def _end(self, job_id: str, status: Status, error: ErrorReport | None = None) -> None:
        job = self._job(job_id)
        ended = replace(
            self._moved(job, status, job.progress),
            phase=Phase.ENDED,
            error=error.message if error else "",
            error_code=error.code.value if error else "",
        )
        self._store.add(ended)

    async def _fail(self, job_id: str, report: ErrorReport) -> None:
        _log.warning("job %s failed: %s", job_id, report.code.value)
        await self._keeper.write(lambda: self._end(job_id, Status.FAILURE, report))


def _is_address(picture: str) -> bool:
    return picture.startswith("https://")


def _may_pass(error: RequestError) -> bool:
    return error.is_transient or error.code is ErrorCode.RATE_LIMITED
