"""Jobs on their way: each is sent once, followed to its end, and its pictures are kept. One task a job.

A job is acknowledged when it is stored, and sent behind that. `sending` is written before the submit and the endpoint's
id behind it: so a process that was killed knows at its next start which jobs were surely not sent (they are), which run
(they are followed), and which may run (they end as a failure that says so: a second submit might be a second job, and
RunPod has no key that would tell, reference/runpod.md 3.1).
"""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

from comfy_client import steps
from comfy_client.contract import ErrorCode, ErrorReport
from comfy_client.errors import ComfyClientError, JobCancelled, JobError, RequestError
from comfy_client.job import Done, Event, JobStory, Queued, Running, Sampling, Unanswered, Waiting, backoff_s
from comfy_client.providers.interface import (
    GeneratedImage,
    GenerationRequest,
    GenerationResult,
    JobState,
    JobStatus,
    Provider,
)
from comfy_client.scenario.blobs import Blobs
from comfy_client.scenario.rows import AssetRow, JobRow, Phase, Status
from comfy_client.scenario.store import Store

SUBMITS_AT_ONCE = 16
SUBMIT_PATIENCE_S = 900.0
"""How long a job waits for an endpoint that surely did not take it: one that is away, or takes no more for now."""
FOLLOW_PATIENCE_S = 3600.0
"""How long a job is followed while the endpoint does not answer well."""
KEEP_PATIENCE_S = 1200.0
"""How long its pictures are tried to be kept: RunPod has them for 30 minutes (reference/runpod.md 3.5)."""
LONGEST_S = 7 * 86_400.0
"""RunPod's own longest life of a job."""
CANCEL_PATIENCE_S = 10.0
LARGE = 9_000_000
"""Characters of a picture from which on a request may be larger than the 10 MiB of /run."""
MAY_RUN = (
    "The shim was stopped while it sent this job: the endpoint may have it, or not. It was not sent again, since that "
    "might make, and bill, it twice. Look at the endpoint's requests in RunPod's console, or ask for it anew."
)

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")
Clock = Callable[[], float]


class Keeper:
    """What keeps things: the store (of the loop's thread), the blobs, and the time of day."""

    def __init__(self, store: Store, blobs: Blobs, clock: Clock = time.time) -> None:
        self.store = store
        self.blobs = blobs
        self.clock = clock
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def holding(self, *sha256s: str) -> AsyncIterator[None]:
        """Hold pictures between being put and being named by a row, or being found unused and deleted."""
        async with AsyncExitStack() as stack:
            for sha256 in sorted(set(sha256s)):
                await stack.enter_async_context(self._locks.setdefault(sha256, asyncio.Lock()))
            yield

    async def forget(self, *sha256s: str) -> None:
        """Delete the pictures that no row needs."""
        for sha256 in set(sha256s):
            async with self.holding(sha256):
                if not self.store.is_used(sha256):
                    await asyncio.to_thread(self.blobs.delete, sha256)


class JobRunner:
    """Runs the stored jobs at `provider`. All its calls are made in one event loop."""

    def __init__(self, provider: Provider, keeper: Keeper) -> None:
        self._provider = provider
        self._keeper = keeper
        self._store = keeper.store
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancels: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(SUBMITS_AT_ONCE)
        self._is_stopping = False

    def resume(self) -> int:
        """Go on with what an earlier process left; return how many jobs those are."""
        unfinished = self._store.unfinished()
        for job in unfinished:
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
            self._end(job, Status.CANCELED)
        elif job.phase is Phase.SENT:
            await asyncio.wait({self._cancelling(job)}, timeout=CANCEL_PATIENCE_S)

    async def stop(self) -> None:
        """Send no more, let the submits under way end, and leave the rest to the next start."""
        self._is_stopping = True
        while sending := [self._tasks[each.id] for each in self._store.unfinished() if self._is_sending(each)]:
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
        """Take a job from where it is to its end. An error that nobody foresaw ends the job too, and not the shim."""
        try:
            if self._job(job_id).phase is Phase.SENDING:
                raise JobError.because(ErrorCode.NETWORK, MAY_RUN)
            if self._job(job_id).phase is Phase.STORED:
                await self._send(job_id)
            if self._job(job_id).phase is Phase.SENT:
                await self._follow(job_id)
        except ComfyClientError as error:
            self._fail(self._job(job_id), error.report)
        finally:
            job = self._store.job(job_id)
            if job is not None and not self._is_stopping and job.phase is not Phase.ENDED:
                _log.error("a bug in the shim ended job %s", job_id)
                self._fail(job, ErrorReport(ErrorCode.INTERNAL, "A bug in the shim ended the job; its log has more."))
        with suppress(OSError, ComfyClientError):
            await self._forget_picture(self._job(job_id))

    async def _forget_picture(self, job: JobRow) -> None:
        """Delete the picture that a job started from, where nothing else needs it."""
        if job.phase is Phase.ENDED and job.picture and not _is_address(job.picture):
            await self._keeper.forget(job.picture)

    # --- sending

    async def _send(self, job_id: str) -> None:
        """Send the job once it surely can be; a submit that surely did not arrive is made again, no other."""
        give_up_at = time.monotonic() + SUBMIT_PATIENCE_S
        attempt = 0
        while True:
            async with self._turns:
                job = self._job(job_id)
                if self._is_stopping or job.phase is not Phase.STORED:
                    return
                request = await asyncio.to_thread(self._request, job)
                job = self._job(job_id)
                if job.phase is not Phase.STORED:
                    return
                job = self._store.change(job, phase=Phase.SENDING)
                try:
                    # Followed at once, a large one may go by RunPod's other door: see RunPodEndpoint.submit.
                    is_large = len(request.input.get("image", "")) > LARGE
                    status = await asyncio.to_thread(self._provider.submit, request, 0.0 if is_large else None)
                except RequestError as error:
                    if error.report.details.get("may_run") is not False and not error.is_unsent:
                        raise
                    job = self._store.change(self._job(job_id), phase=Phase.STORED)
                    if not _may_pass(error) or time.monotonic() > give_up_at:
                        raise
                    pause_s = backoff_s(attempt, error.retry_after_s)
                else:
                    job = self._store.change(self._job(job_id), phase=Phase.SENT, endpoint_id=status.job_id)
                    return
            if job.is_cancel_wanted:
                self._end(job, Status.CANCELED)
                return
            attempt += 1
            await asyncio.sleep(pause_s)

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
            # As one that was just submitted: RunPod may not know it for some seconds (reference/runpod.md 3.2).
            story = JobStory(self._provider, job.endpoint_id, JobStatus(job.endpoint_id, JobState.QUEUED))
            events: AsyncIterator[Event] = steps.aiterate(story.events(LONGEST_S))
            try:
                async for event in events:
                    if not isinstance(event, Queued | Unanswered):  # which are told before anything was answered
                        answered_at = time.monotonic()
                    if isinstance(event, Done):
                        await self._keep(job_id, event.result)
                        return
                    self._tell(job_id, event)
            except JobCancelled:
                self._end(self._job(job_id), Status.CANCELED)
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
        story = JobStory(self._provider, job.endpoint_id, JobStatus(job.endpoint_id, JobState.QUEUED))
        while self._job(job.id).phase is not Phase.ENDED:
            try:
                await steps.arun(story.cancel())
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
        """Keep the pictures, then say `success`: whoever sees that finds them."""
        job = self._move(self._job(job_id), Status.FINALIZING, 1.0)
        if not result.images:
            raise JobError.because(ErrorCode.NO_OUTPUT, "The job made no picture.")
        async with self._keeper.holding(*(image.sha256 for image in result.images)):
            for image in result.images:
                await _patiently(partial(self._keeper.blobs.put, image.bytes, image.mime_type))
            assets = list(self._assets(job, result))
            ended = self._moved(self._job(job_id), Status.SUCCESS, 1.0)
            self._store.add(
                *assets,
                replace(
                    ended,
                    phase=Phase.ENDED,
                    notes=(*ended.notes, *result.warnings),
                    asset_ids=tuple(asset.id for asset in assets),
                    execution_s=result.execution_s,
                ),
            )

    def _assets(self, job: JobRow, result: GenerationResult) -> Iterator[AssetRow]:
        now = self._keeper.clock()
        classic = job.job_type == "inference"
        for number, image in enumerate(result.images):
            yield AssetRow(
                id=new_id("asset"),
                owner=job.owner,
                created_at=now,
                updated_at=now,
                sha256=image.sha256,
                mime_type=image.mime_type,
                width=image.width,
                height=image.height,
                bytes=len(image.bytes),
                name=image.filename,
                type=f"inference-{job.task}" if classic else job.task,
                source=f"inference-{job.task[:3]}" if classic else job.task,
                job_id=job.id,
                model_id=job.model_id,
                output_index=number,
                is_hidden=job.is_hidden,
                about=_about(job, image, number),
            )

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

    def _end(self, job: JobRow, status: Status, error: ErrorReport | None = None) -> None:
        ended = self._moved(job, status, job.progress)
        self._store.add(
            replace(
                ended,
                phase=Phase.ENDED,
                error=error.message if error else "",
                error_code=error.code.value if error else "",
            )
        )

    def _fail(self, job: JobRow, report: ErrorReport) -> None:
        _log.warning("job %s failed: %s", job.id, report.code.value)
        self._end(job, Status.FAILURE, report)


def _about(job: JobRow, image: GeneratedImage, number: int) -> dict[str, object]:
    """Return what a made picture's `metadata` says (reference/scenario.md 4.2)."""
    asked = {name: job.asked.get(name) for name in ("prompt", "negativePrompt", "guidance", "numInferenceSteps")}
    about = {
        **asked,
        "seed": None if image.seed is None else str(image.seed),
        "modelId": job.model_id,
        "inferenceId": job.id,
        "outputIndex": number,
        "strength": job.input.get("strength"),
        "scheduler": job.asked.get("scheduler"),
    }
    return {name: value for name, value in about.items() if value is not None}


async def _patiently(keep: Callable[[], _Answer]) -> _Answer:
    """Keep something in a thread, again and again for KEEP_PATIENCE_S: putting the same bytes twice changes nothing."""
    give_up_at = time.monotonic() + KEEP_PATIENCE_S
    attempt = 0
    while True:
        try:
            return await asyncio.to_thread(keep)
        except (OSError, ComfyClientError) as error:
            if time.monotonic() > give_up_at:
                raise JobError.because(
                    ErrorCode.OUTPUT_NOT_STORED, f"The shim could not keep the pictures ({error}): look at its disk."
                ) from error
            _log.warning("a picture could not be kept yet: %s", type(error).__name__)
        await asyncio.sleep(backoff_s(attempt))
        attempt += 1


def _is_address(picture: str) -> bool:
    return picture.startswith("https://")


def _may_pass(error: RequestError) -> bool:
    return error.is_transient or error.code is ErrorCode.RATE_LIMITED


def new_id(kind: str) -> str:
    """Return a new id in Scenario's manner: `job_`, `asset_` or `upload_`, and 24 letters and digits."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    return f"{kind}_{''.join(secrets.choice(alphabet) for _ in range(24))}"
