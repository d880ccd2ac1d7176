"""A plan's pictures, made: several at once, each once, going on where an earlier run was stopped or killed."""

from __future__ import annotations

import base64
import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from comfy_client import coroutines
from comfy_client.batch.destination import BucketDestination
from comfy_client.batch.journal import FAILED, INTENT, MADE, SENT, UNSENT, UPLOADED, Journal
from comfy_client.batch.plan import AssetPlan, PlannedAsset
from comfy_client.client import Client
from comfy_client.job import JobPoller, backoff_s
from comfy_client.providers.interface import GenerationRequest, GenerationResult, JobState, JobStatus
from comfy_core.contract import ErrorCode, JsonObject
from comfy_core.errors import ComfyClientError, ConfigError, JobError, RequestError

ATTEMPTS = 3
"""Jobs of one picture in one run: the first, and two more where an earlier one surely ended with what may pass."""
JOB_TIMEOUT_S = 3600.0
_AGAIN = frozenset(
    {
        ErrorCode.OUT_OF_MEMORY,
        ErrorCode.INTERRUPTED,
        ErrorCode.DEADLINE_EXCEEDED,
        ErrorCode.COMFYUI_UNAVAILABLE,
        ErrorCode.WORKER_LOST,
        ErrorCode.OUTPUT_NOT_STORED,
    }
)
"""What a job ends with that another one may do better; it did not leave a picture, so nothing is paid twice for it."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AssetOutcome:
    """What became of one asset: `outcome` is made, reused, failed, unsure or stopped."""

    asset: PlannedAsset
    outcome: str
    facts: JsonObject = field(default_factory=dict)
    error: ComfyClientError | None = None


class _StoppedError(Exception):
    """The run is to end; the job goes on, and the next run finds it."""


@dataclass(frozen=True)
class BatchSettings:
    """How a run is done.

    Attributes:
        concurrency: pictures at once.
        resend_unsure: whether to send again what may have been sent; it may then be paid twice.
        cancel_when_stopped: whether jobs under way are cancelled where the run is stopped.
    """

    concurrency: int = 4
    resend_unsure: bool = False
    cancel_when_stopped: bool = False


class Batch:
    """One run of a plan into `folder`, and into a bucket where there is one."""

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
        self._sending = threading.Lock()

    def run(self, plan: AssetPlan, tell: Callable[[AssetOutcome], None] = lambda _: None) -> list[AssetOutcome]:
        """Return what became of each asset, in the plan's order; `tell` hears of each as it ends.

        Ctrl-C sends no more: jobs under way go on, and are picked up by the next run, unless they are to be cancelled.
        """
        futures: dict[str, Future[AssetOutcome]] = {}
        pool = ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="batch")
        try:
            for asset in plan.assets:
                # A source stands before what starts from it, and a pool takes its work in order: nobody waits in vain.
                futures[asset.path] = pool.submit(self._asset, asset, futures.get(asset.source), tell)
            return [futures[asset.path].result() for asset in plan.assets]
        except KeyboardInterrupt:
            self._stopped.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=self._stopped.is_set())

    def _asset(
        self, asset: PlannedAsset, source: Future[AssetOutcome] | None, tell: Callable[[AssetOutcome], None]
    ) -> AssetOutcome:
        try:
            made = self._made(asset, source.result() if source else None)
        except _StoppedError:
            made = AssetOutcome(asset, "stopped")
        except ComfyClientError as error:
            made = AssetOutcome(asset, "failed", error=error)
        tell(made)
        return made

    def _made(self, asset: PlannedAsset, source: AssetOutcome | None) -> AssetOutcome:
        if source is not None and not source.facts:
            return AssetOutcome(
                asset, "stopped" if source.outcome == "stopped" else "failed", error=_no_source(asset, source)
            )
        entry = self._journal.entry(asset.digest)
        outcome = "reused" if entry.state == MADE and self._is_there(asset, entry.made) else "made"
        if outcome == "made":
            if entry.may_run and not self._settings.resend_unsure:
                return AssetOutcome(asset, "unsure", error=_unsure(asset))
            self._make(asset, source, entry.job_id if entry.state == SENT else "")
        facts = self._journal.entry(asset.digest).made
        self._upload(asset, facts)
        return AssetOutcome(asset, outcome, facts)

    def _is_there(self, asset: PlannedAsset, facts: Mapping[str, object]) -> bool:
        """Return whether the picture that was made is in the folder, whole; one of an earlier name is moved there."""
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

    # --- making

    def _make(self, asset: PlannedAsset, source: AssetOutcome | None, job_id: str) -> None:
        """Make a picture, and write it down. Raises ComfyClientError, and _StoppedError."""
        for attempt in range(ATTEMPTS):
            try:
                job_id = job_id or self._send(asset, source)
                result = self._wait(job_id)
                self._keep(asset, result)
            except JobError as error:
                self._note(FAILED, asset, code=error.code.value, job_id=job_id)
                if error.code not in _AGAIN or attempt + 1 == ATTEMPTS:
                    raise
                _log.warning("%s: %s; it is made once more", asset.path, error.code.value)
            else:
                return
            job_id = ""
            self._pause(backoff_s(attempt))

    def _send(self, asset: PlannedAsset, source: AssetOutcome | None) -> str:
        """Send a job and return its id. One at a time: a kill then leaves at most one that nobody knows of."""
        request = self._request(asset, source)
        attempt = 0
        while True:
            with self._sending:
                if self._stopped.is_set():
                    raise _StoppedError
                self._note(INTENT, asset)
                try:
                    status = self._provider.submit(request)
                except RequestError as error:
                    if error.report.details.get("may_run"):
                        raise
                    self._note(UNSENT, asset)
                    if (not error.is_transient and error.code is not ErrorCode.RATE_LIMITED) or attempt + 1 == ATTEMPTS:
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
        picture = base64.b64encode(self._read(source.asset)).decode("ascii")
        return GenerationRequest({**asset.input, "image": picture})

    def _wait(self, job_id: str) -> GenerationResult:
        # As one that was just sent: RunPod may not know it for some seconds (docs/reference/runpod.md#job-states).
        poller = JobPoller(self._provider, job_id, JobStatus(job_id, JobState.QUEUED))
        try:
            return coroutines.run(poller.wait(JOB_TIMEOUT_S), self._pause)
        except _StoppedError:
            if self._settings.cancel_when_stopped:
                coroutines.run(poller.cancel(5.0))
            raise

    def _keep(self, asset: PlannedAsset, result: GenerationResult) -> None:
        if not result.images:
            raise JobError.because(ErrorCode.NO_OUTPUT, f"The job of {asset.path} made no picture.")
        image = result.image
        self._write(asset, image.bytes)
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
            warnings=list(result.warnings),
        )

    def _write(self, asset: PlannedAsset, data: bytes) -> None:
        """Write a picture, whole or not at all. Raises ConfigError: what was made is not lost, RunPod keeps it."""
        path = self._folder / asset.filename
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise ConfigError(
                f"{path} cannot be written: {error.strerror}. Make room and run again: the picture is fetched anew, "
                "within 30 minutes without paying for it again"
            ) from error

    def _read(self, asset: PlannedAsset) -> bytes:
        """Return a picture that was made. Raises ConfigError where somebody took it away."""
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
        """Put a picture where it is not yet. Raises JobError; the picture stays in the folder for the next run."""
        if self._destination is None:
            return
        place = f"{self._destination.place}/{asset.filename}"
        if place in self._journal.entry(asset.digest).urls:
            return
        data = self._read(asset)
        url = self._destination.put(asset.filename, data, str(facts["mime_type"]))
        self._note(UPLOADED, asset, to=place, url=url)

    def _pause(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise _StoppedError


def _no_source(asset: PlannedAsset, source: AssetOutcome) -> ComfyClientError:
    return JobError.because(
        ErrorCode.INVALID_IMAGE, f"{asset.path} starts from {asset.source}, which is {source.outcome}."
    )


def _unsure(asset: PlannedAsset) -> ComfyClientError:
    return RequestError(
        f"{asset.path} was being sent when an earlier run ended: its job may have run, and nobody knows its id. Look "
        "at the endpoint's requests in RunPod's console; --resend-unsure sends it again, and may pay it twice",
        may_run=True,
    )


def failures(made: list[AssetOutcome]) -> Iterator[AssetOutcome]:
    """Yield what did not become a picture."""
    yield from (each for each in made if each.outcome not in ("made", "reused"))
