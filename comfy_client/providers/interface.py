"""The Provider protocol, and the request, status and result types of all providers. No I/O except `save`."""

from __future__ import annotations

import builtins
import enum
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Protocol

from comfy_core.contract import ErrorReport, Fault, JsonObject
from comfy_core.errors import RequestError, invalid_input
from comfy_core.files import write_atomically
from comfy_core.progress import Progress

if TYPE_CHECKING:
    from PIL import Image

DAY_S = 86_400.0
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""The image format of each file name suffix."""


@dataclass(frozen=True)
class JobOptions:
    """RunPod's options for a job: timeouts, priority, webhook, bucket.

    Source: docs/reference/runpod.md#submitting-a-job.

    Attributes:
        execution_timeout_s: how long the job may run, 5 s to 7 days. Default: the endpoint's own setting.
        ttl_s: time after submission at which RunPod deletes the job, even while it runs, 10 s to 7 days. Default: one
            day.
        low_priority: whether the job waits for all other jobs and starts no worker.
        webhook: http or https URL that RunPod calls when the job ends. The call is not signed: put a secret into the
            URL. The input `webhook` of this project's worker is signed (docs/webhooks.md).
        s3_config: bucket for this job's output: `accessId`, `accessSecret`, `bucketName`, `endpointUrl`.
    """

    execution_timeout_s: float | None = None
    ttl_s: float | None = None
    low_priority: bool = False
    webhook: str | None = field(default=None, repr=False)
    s3_config: Mapping[str, str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raise JobError (invalid_input) if a time is out of RunPod's range, or the webhook is not a URL."""
        ranges = (("execution_timeout_s", self.execution_timeout_s, 5.0), ("ttl_s", self.ttl_s, 10.0))
        faults = [
            Fault(f"options.{name}", f"must be from {min_s:g} s to {7 * DAY_S:,.0f} s (7 days), not {value!r}")
            for name, value, min_s in ranges
            if value is not None and not min_s <= value <= 7 * DAY_S
        ]
        if self.webhook is not None and not self.webhook.startswith(("https://", "http://")):
            faults.append(Fault("options.webhook", "must be an https URL"))
        if faults:
            raise invalid_input(faults)

    def envelope(self) -> JsonObject:
        """Return the fields that these options add to RunPod's request, beside `input`."""
        policy: JsonObject = {}
        if self.execution_timeout_s is not None:
            policy["executionTimeout"] = round(self.execution_timeout_s * 1000)
        if self.ttl_s is not None:
            policy["ttl"] = round(self.ttl_s * 1000)
        if self.low_priority:
            policy["lowPriority"] = True
        fields = {"webhook": self.webhook, "policy": policy, "s3Config": dict(self.s3_config or {})}
        return {name: value for name, value in fields.items() if value}


NO_OPTIONS = JobOptions()


@dataclass(frozen=True)
class GenerationRequest:
    """A request for one job. docs/api.md describes `input`. Images are text in it; `make_request` converts them."""

    input: JsonObject = field(repr=False)
    options: JobOptions = NO_OPTIONS


def bucket_fault(provider: str) -> Fault:
    """Return the fault for `delivery` s3 in a request to a `provider` that does not use the worker's bucket."""
    remedy = "omit it, or use IMAGE_GENERATION_PROVIDER=comfyui on RunPod"
    return Fault("delivery", f"s3 is the bucket of this project's worker, which {provider} does not use: {remedy}")


def webhook_fault(provider: str) -> Fault:
    """Return the fault for `webhook` in a request to a `provider` that does not deliver it."""
    remedy = "omit it, or use IMAGE_GENERATION_PROVIDER=comfyui on RunPod"
    return Fault("webhook", f"is delivered by this project's worker, which {provider} does not use: {remedy}")


def submit_error(error: RequestError, platform: str, place: str) -> RequestError:
    """Return the error of a failed submit, with `details["may_run"]`: whether `platform` may have accepted the job.

    `place` says where the user can check that.
    """
    is_rejected = error.status is not None and 400 <= error.status < 500  # noqa: PLR2004 - HTTP statuses
    if error.is_unsent or is_rejected:
        error.report.details["may_run"] = False
        return error
    return RequestError(
        f"{error}. The job was sent, and {platform} may have accepted it, so it was not sent again. Before you send it "
        f"again, look at {place}",
        status=error.status,
        body=error.body,
        may_run=True,
    )


@dataclass(frozen=True)
class GeneratedFile:
    """A file that a job created. `asset_id` is the file's id at Scenario, and None with any other provider."""

    filename: str
    mime_type: str
    sha256: str
    bytes: builtins.bytes = field(repr=False)
    asset_id: str | None = None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file to `path` and return the path. If `path` is a folder, save the file there as `filename`.

        Missing folders are created. The write is atomic and replaces an existing file. Raises OSError with the path.
        """
        target = Path(path)
        if target.is_dir():
            target /= PureWindowsPath(self.filename).name
        data = self._encoded_for(target)
        try:
            if target.exists() and not target.is_file():
                target.write_bytes(data)  # a device or a pipe, which os.replace would remove
            else:
                write_atomically(target, data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(target)) from error
        return target

    def _encoded_for(self, _target: Path) -> builtins.bytes:
        return self.bytes


@dataclass(frozen=True)
class GeneratedImage(GeneratedFile):
    """A generated image. `seed` reproduces the image; it is None if it is unknown, as for a caller's own graph.

    `save` converts the image to the format of the file name's suffix (.png, .jpg, .jpeg, .webp) if necessary. An
    animation is never converted. A converted file has no embedded metadata but the AI mark. Jupyter displays a
    GeneratedImage as an image.
    """

    width: int = 0
    height: int = 0
    seed: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height

    def pil(self) -> Image.Image:
        """Return the image as a PIL image."""
        from PIL import Image  # noqa: PLC0415 - most callers save the bytes unchanged

        image = Image.open(io.BytesIO(self.bytes))
        image.load()
        return image

    def as_png(self) -> builtins.bytes:
        """Return the image as PNG. An animation is returned unchanged."""
        return self.bytes if self.mime_type == "image/png" else self._converted("png")

    def _encoded_for(self, target: Path) -> builtins.bytes:
        wanted = FORMATS.get(target.suffix.lower())
        return self.bytes if wanted is None or self.mime_type == f"image/{wanted}" else self._converted(wanted)

    def _converted(self, output_format: str) -> builtins.bytes:
        from comfy_core.images.codec import converted, identify  # noqa: PLC0415 - imports Pillow, as above

        found = identify(self.bytes)
        is_still = found is not None and not found.is_animated
        return (
            converted(self.bytes, output_format).data if is_still else self.bytes
        )  # a video or an animation is not converted

    def _repr_png_(self) -> builtins.bytes | None:
        """Return the image as PNG, for Jupyter; None for a JPEG, which `_repr_jpeg_` returns."""
        if self.mime_type == "image/jpeg":
            return None
        return self.as_png()

    def _repr_jpeg_(self) -> builtins.bytes | None:
        """Return a JPEG unchanged, for Jupyter; None for other formats."""
        return self.bytes if self.mime_type == "image/jpeg" else None


@dataclass(frozen=True, repr=False)
class GenerationResult:
    """The result of a job.

    Attributes:
        delay_s: the time from submission to start, or None if it is unknown.
        execution_s: the time from start to end, or None if it is unknown.
        report: the whole result of a job of the task `models`; empty for a job that generates images.
        gpu: the driver's name of the worker's GPU, or None if it is unknown.
        cost: US dollars for the seconds in which the job kept its worker busy, without cold start and idle time. None
            if nothing is paid (a ComfyUI that is called directly), or the price of a second is unknown (docs/cost.md).
    """

    images: tuple[GeneratedImage, ...]
    provider: str
    job_id: str
    files: tuple[GeneratedFile, ...] = ()
    texts: tuple[str, ...] = ()
    workflow: str = "custom"
    inputs: JsonObject = field(default_factory=dict)
    seed: int | None = None
    warnings: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    delay_s: float | None = None
    execution_s: float | None = None
    worker_id: str | None = None
    retries: int = 0
    report: JsonObject = field(default_factory=dict)
    gpu: str | None = None
    cost: float | None = None

    def __repr__(self) -> str:
        images = [f"{each.filename}: {each.width} x {each.height}, {len(each.bytes):,} bytes" for each in self.images]
        files = [f"{each.filename}: {len(each.bytes):,} bytes" for each in self.files]
        shown = {"job_id": self.job_id, "workflow": self.workflow, "seed": self.seed, "images": images}
        optional = {name: value for name, value in (("files", files), ("warnings", list(self.warnings))) if value}
        return f"GenerationResult({', '.join(f'{name}={value!r}' for name, value in {**shown, **optional}.items())})"

    @property
    def image(self) -> GeneratedImage:
        """The first image. Raises LookupError if there is none."""
        if not self.images:
            raise LookupError(f"job {self.job_id} produced no image")
        return self.images[0]


class JobState(enum.StrEnum):
    """The state of a job. All providers use these states."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self not in {JobState.QUEUED, JobState.RUNNING}


@dataclass(frozen=True)
class JobStatus:
    """The status of a job.

    `error` is set if and only if the job ended without a result. `output` is the output of a job that has ended, in the
    provider's format, or None. `Provider.result` reads it. `cost` is that of a job that has ended, also
    without a result: see GenerationResult.
    """

    job_id: str
    state: JobState
    progress: Progress | None = None
    output: object = field(default=None, repr=False)
    error: ErrorReport | None = None
    delay_s: float | None = None
    execution_s: float | None = None
    worker_id: str | None = None
    retries: int = 0
    cost: float | None = None


@dataclass(frozen=True)
class Health:
    """The state of a provider, as counts of jobs and workers by state.

    `why` says whether a job has to wait, and why. It is one of `idle`, `busy`, `cold`, `throttled`, `unhealthy`,
    `no_worker`. `sentence` explains it.
    """

    jobs: Mapping[str, int]
    workers: Mapping[str, int]
    why: str
    sentence: str


class Provider(Protocol):
    """A service that runs jobs. Methods block, are thread-safe, and raise RequestError or JobError."""

    name: str
    """The value of IMAGE_GENERATION_PROVIDER that selects this provider."""
    jobs_outlive_process: bool
    """Whether every job continues after this process exits.

    If False, only a job that was submitted with a `wait_s` of None does. Its jobs must then be free, because the
    gateway submits unfinished jobs again after a restart.
    """

    def submit(self, request: GenerationRequest, wait_s: float | None = None) -> JobStatus:
        """Submit a job and return its status. Waits up to `wait_s` for the job's end, if the provider supports that.

        `wait_s` is None if the caller does not poll the job at once. The result must then be kept as long as possible.
        The job is sent once. After a RequestError with `report.details["may_run"]` true, the job may be running.
        """
        ...

    def status(self, job_id: str) -> JobStatus:
        """Return a job's status. Raises JobError (job_expired) for a job that is unknown, or not known yet."""
        ...

    def result(self, status: JobStatus) -> GenerationResult:
        """Return the result for a final status. Raises JobError if the job has no result."""
        ...

    def cancel(self, job_id: str) -> None:
        """Cancel a job. No effect on a finished job. Raises JobError (job_expired) like `status`."""
        ...

    def retry(self, job_id: str) -> JobStatus:
        """Start a failed or timed out job again under the same id.

        Raises RequestError if the job is in another state, or the provider has no retry.
        """
        ...

    def health(self) -> Health:
        """Return counts of jobs and workers, and why a job may have to wait."""
        ...

    def missing_models(self) -> list[str] | None:
        """Return the model files that the workflows need and the provider lacks, or None if that cannot be checked."""
        ...

    def purge_queue(self) -> int:
        """Remove all queued jobs and return how many were removed. On RunPod, jobs of other clients are included.

        Raises RequestError if the provider cannot do this.
        """
        ...

    def pause_s(self, waited_s: float) -> float:
        """Return the polling interval for a job whose status has not changed for `waited_s`."""
        ...

    def close(self) -> None:
        """Close the connections. Jobs that do not outlive the process are interrupted."""
        ...
