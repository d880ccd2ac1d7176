"""Generates a plan's images concurrently, each once. Resumes a run that was stopped or killed."""

from __future__ import annotations

import base64
import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from comfy_client import coroutines
from comfy_client.batch.destination import BucketDestination
from comfy_client.batch.journal import FAILED, INTENT, MADE, SENT, UNSENT, UPLOADED, Journal
from comfy_client.batch.plan import AssetPlan, PlannedAsset
from comfy_client.client import Client
from comfy_client.job import JobPoller
from comfy_client.providers.interface import GenerationRequest, GenerationResult, JobState, JobStatus
from comfy_core.backoff import backoff_s
from comfy_core.contract import ErrorReport, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError, ConfigError, JobError, RequestError
from comfy_core.files import write_atomically
from comfy_core.thread_call import NotStarted, ThreadCall

ATTEMPTS = 3
"""Maximum number of jobs for one image in one run, and of submits for one job.

Only errors that `_is_resendable` accepts lead to another job, and only transient errors to another submit.
"""
ASSET_TIMEOUT_S = 3600.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AssetOutcome:
    """The outcome of one asset.

    Attributes:
        outcome: made, reused, failed, unsure (an earlier run may have submitted a job) or stopped.
        facts: data of the image, as recorded in the journal; empty unless the outcome is made or reused.
        error: the reason for failed and unsure, and for stopped if the source was stopped.
    """

    asset: PlannedAsset
    outcome: str
    facts: JsonObject = field(default_factory=dict)
    error: ComfyClientError | None = None


class _StoppedError(Exception):
    """The run was stopped. The next run resumes the job, unless it was cancelled."""


@dataclass(frozen=True)
class BatchSettings:
    """Options of a run.

    Attributes:
        concurrency: maximum number of concurrent jobs.
        resend_unsure: submit jobs again that an earlier run may have submitted. They may then be paid twice.
        cancel_when_stopped: cancel running jobs when the run is stopped.
    """

    concurrency: int = 4
    resend_unsure: bool = False
    cancel_when_stopped: bool = False


class Batch:
    """One run of a plan. Images are written to `folder`, and uploaded to `destination` if given."""

    def __init__(
        self,
        client: Client,
        journal: Journal,
        folder: Path,
        settings: BatchSettings,
        destination: BucketDestination | None = None,
    ) -> None:
        self._client = client
        self._provider = client.provider
        self._journal = journal
        self._folder = folder
        self._settings = settings
        self._destination = destination
        self._stopped = threading.Event()
        self._submit_lock = threading.Lock()

    def run(self, plan: AssetPlan, report: Callable[[AssetOutcome], None] = lambda _: None) -> list[AssetOutcome]:
        """Generate the images and return the outcome of each asset, in the plan's order.

        `report` is called with each outcome, as soon as the asset is finished. After Ctrl-C no more jobs are submitted,
        and KeyboardInterrupt is raised. Running jobs continue and the next run resumes them, unless
        `cancel_when_stopped` is set.
        """
        making = ThreadCall(lambda: self._make_all(plan, report))
        try:
            return making.run()
        except KeyboardInterrupt:
            self._stopped.set()
            with suppress(NotStarted):
                making.result()
            raise

    def _make_all(self, plan: AssetPlan, report: Callable[[AssetOutcome], None]) -> list[AssetOutcome]:
        futures: dict[str, Future[AssetOutcome]] = {}
        with ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="batch") as pool:
            for asset in plan.assets:
                # A source is submitted before its derived images, and the pool runs work in order: no deadlock.
                futures[asset.path] = pool.submit(self._run_asset, asset, futures.get(asset.source), report)
        return [futures[asset.path].result() for asset in plan.assets]

    def _run_asset(
        self, asset: PlannedAsset, source: Future[AssetOutcome] | None, report: Callable[[AssetOutcome], None]
    ) -> AssetOutcome:
        if self._stopped.is_set():
            return AssetOutcome(asset, "stopped")
        try:
            outcome = self._process(asset, source.result() if source else None)
        except _StoppedError:
            outcome = AssetOutcome(asset, "stopped")
        except ComfyClientError as error:
            outcome = AssetOutcome(asset, "failed", error=error)
        report(outcome)
        return outcome

    def _process(self, asset: PlannedAsset, source: AssetOutcome | None) -> AssetOutcome:
        if source is not None and not source.facts:
            return AssetOutcome(
                asset, "stopped" if source.outcome == "stopped" else "failed", error=_no_source(asset, source)
            )
        entry = self._journal.entry(asset.digest)
        outcome = "reused" if entry.state == MADE and self._reuse_image(asset, entry.made) else "made"
        if outcome == "made":
            if entry.may_run and not self._settings.resend_unsure:
                return AssetOutcome(asset, "unsure", error=_unsure(asset))
            self._generate(asset, source, entry.job_id if entry.state == SENT else "")
        facts = self._journal.entry(asset.digest).made
        self._upload(asset, facts)
        return AssetOutcome(asset, outcome, facts)

    def _reuse_image(self, asset: PlannedAsset, facts: Mapping[str, object]) -> bool:
        """Return whether the folder has the undamaged image. A file with an earlier name is copied to the new name."""
        for name in (asset.filename, str(facts.get("file", ""))):
            try:
                data = (self._folder / name).read_bytes()
            except OSError:
                continue
            if hashlib.sha256(data).hexdigest() == facts.get("sha256"):
                if name != asset.filename:
                    self._write(asset, data)
                return True
        return False

    def _generate(self, asset: PlannedAsset, source: AssetOutcome | None, job_id: str) -> None:
        """Generate and save an image, and record it. Raises ComfyClientError and _StoppedError."""
        for attempt in range(ATTEMPTS):
            try:
                job_id = job_id or self._send(asset, source)
                result = self._wait(job_id)
                self._save(asset, result)
            except JobError as error:
                self._note(FAILED, asset, code=error.code.value, job_id=job_id)
                if not _is_resendable(error) or attempt + 1 == ATTEMPTS:
                    raise
                _log.warning("%s: job failed with %s; submitting it again", asset.path, error.code.value)
            else:
                return
            job_id = ""
            self._pause(backoff_s(attempt))

    def _send(self, asset: PlannedAsset, source: AssetOutcome | None) -> str:
        """Submit a job and return its id. Only one submit runs at a time, so a killed run loses at most one job id."""
        request = self._request(asset, source)
        attempt = 0
        while True:
            with self._submit_lock:
                if self._stopped.is_set():
                    raise _StoppedError
                self._note(INTENT, asset)
                try:
                    status = self._provider.submit(request)
                except RequestError as error:
                    if error.report.details.get("may_run"):
                        raise
                    self._note(UNSENT, asset)
                    if not error.is_transient or attempt + 1 == ATTEMPTS:
                        raise
                    pause_s = backoff_s(attempt, error.retry_after_s)
                except JobError:
                    self._note(UNSENT, asset)
                    raise
                else:
                    self._note(SENT, asset, job_id=status.job_id)
                    return status.job_id
            attempt += 1
            self._pause(pause_s)

    def _request(self, asset: PlannedAsset, source: AssetOutcome | None) -> GenerationRequest:
        if source is None:
            return GenerationRequest(dict(asset.input))
        image = base64.b64encode(self._read(source.asset)).decode("ascii")
        return GenerationRequest({**asset.input, "image": image})

    def _wait(self, job_id: str) -> GenerationResult:
        # The status of a new job, so that the poller tolerates 404, which RunPod may return for the first seconds of a
        # job (docs/reference/runpod.md#job-states).
        poller = JobPoller(self._provider, job_id, JobStatus(job_id, JobState.QUEUED))
        try:
            return coroutines.run(poller.wait(ASSET_TIMEOUT_S), self._pause)
        except _StoppedError:
            if self._settings.cancel_when_stopped:
                coroutines.run(poller.cancel(5.0))
            raise

    def _save(self, asset: PlannedAsset, result: GenerationResult) -> None:
        if not result.images:
            raise JobError.because(ErrorCode.NO_OUTPUT, f"The job of {asset.path} produced no image")
        image = result.image
        self._write(asset, image.bytes)
        self._client.note_files(result.job_id, [self._folder / asset.filename])
        self._note(
            MADE,
            asset,
            file=asset.filename,
            sha256=image.sha256,
            seed=image.seed,
            width=image.width,
            height=image.height,
            mime_type=image.mime_type,
            provider=result.provider,
            job_id=result.job_id,
            provider_asset_id=image.asset_id or f"sha256:{image.sha256}",
            execution_s=result.execution_s,
            cost_usd=result.cost,
            warnings=list(result.warnings),
        )

    def _write(self, asset: PlannedAsset, data: bytes) -> None:
        """Write an image atomically. Raises ConfigError; the next run fetches the result if it still exists."""
        path = self._folder / asset.filename
        try:
            write_atomically(path, data)
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written: {error.strerror}. Make room and run again. For 30 minutes the image can be "
                "downloaded again without paying again"
            ) from error

    def _read(self, asset: PlannedAsset) -> bytes:
        """Read a saved image. Raises ConfigError if it was removed."""
        try:
            return (self._folder / asset.filename).read_bytes()
        except OSError as error:
            raise ConfigError(f"{self._folder / asset.filename} cannot be read: {error.strerror}. Run again") from error

    def _note(self, event: str, asset: PlannedAsset, **facts: object) -> None:
        try:
            self._journal.note(event, asset.digest, path=asset.path, **facts)
        except OSError as error:
            raise ConfigError(f"The journal cannot be written: {error.strerror}. Make room, and run again") from error

    def _upload(self, asset: PlannedAsset, facts: JsonObject) -> None:
        """Upload an image, unless it was uploaded before. Raises JobError; the next run tries again."""
        if self._destination is None:
            return
        s3_url = f"{self._destination.url}/{asset.filename}"
        if s3_url in self._journal.entry(asset.digest).urls:
            return
        data = self._read(asset)
        url = self._destination.put(asset.filename, data, str(facts["mime_type"]))
        self._note(UPLOADED, asset, to=s3_url, url=url)

    def _pause(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise _StoppedError


def _is_resendable(error: JobError) -> bool:
    """Return whether a failed job is submitted again. A job that expired may have been paid, so the user decides."""
    return error.report.retryable and error.code is not ErrorCode.JOB_EXPIRED


def _no_source(asset: PlannedAsset, source: AssetOutcome) -> ComfyClientError:
    message = f"{asset.path} is derived from {asset.source}, which is {source.outcome}."
    return JobError(ErrorReport(ErrorCode.INVALID_IMAGE, message))


def _unsure(asset: PlannedAsset) -> ComfyClientError:
    return RequestError(
        f"{asset.path} was being submitted when an earlier run ended. Its job may have run, but its id is unknown. "
        "Look at the endpoint's requests in RunPod's console. --resend-unsure submits it again, and may pay twice",
        may_run=True,
    )


def without_image(outcomes: Iterable[AssetOutcome]) -> Iterator[AssetOutcome]:
    """Yield the outcomes of the assets that have no image after the run."""
    yield from (each for each in outcomes if each.outcome not in ("made", "reused"))
