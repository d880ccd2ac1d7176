"""What every provider takes and gives, as values, and the protocol that each of them implements. No I/O but `save`."""

from __future__ import annotations

import builtins
import enum
import io
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Protocol

from comfy_core.contract import ErrorReport, Fault, JsonObject
from comfy_core.errors import invalid_input

if TYPE_CHECKING:
    from PIL import Image

DAY_S = 86_400.0
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""The picture format that a file name's suffix stands for."""


@dataclass(frozen=True)
class JobOptions:
    """How RunPod runs a job: timeouts, priority, webhook. Other providers ignore them.

    Source: docs/reference/runpod.md#submitting-a-job.

    Attributes:
        execution_timeout_s: how long it may run, from 5 s to 7 days; the endpoint's own setting where it is None.
        ttl_s: how long RunPod keeps it from its submission on, even while it runs, from 10 s to 7 days; a day if None.
        low_priority: whether it waits for all others, and starts no worker.
        webhook: an https address that RunPod tells of its end. It is not signed: put a secret into it.
        s3_config: the job's own bucket: `accessId`, `accessSecret`, `bucketName`, `endpointUrl`.
    """

    execution_timeout_s: float | None = None
    ttl_s: float | None = None
    low_priority: bool = False
    webhook: str | None = field(default=None, repr=False)
    s3_config: Mapping[str, str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raises JobError (invalid_input) for what RunPod does not take."""
        ranges = (("execution_timeout_s", self.execution_timeout_s, 5.0), ("ttl_s", self.ttl_s, 10.0))
        faults = [
            Fault(f"options.{name}", f"must be from {least:g} s to {7 * DAY_S:,.0f} s (7 days), not {value!r}")
            for name, value, least in ranges
            if value is not None and not least <= value <= 7 * DAY_S
        ]
        if self.webhook is not None and not self.webhook.startswith(("https://", "http://")):
            faults.append(Fault("options.webhook", "must be an https address"))
        if faults:
            raise invalid_input(faults)

    def envelope(self) -> JsonObject:
        """Return what stands beside `input` in RunPod's request."""
        policy: JsonObject = {}
        if self.execution_timeout_s is not None:
            policy["executionTimeout"] = round(self.execution_timeout_s * 1000)
        if self.ttl_s is not None:
            policy["ttl"] = round(self.ttl_s * 1000)
        if self.low_priority:
            policy["lowPriority"] = True
        beside = {"webhook": self.webhook, "policy": policy, "s3Config": dict(self.s3_config or {})}
        return {name: value for name, value in beside.items() if value}


NO_OPTIONS = JobOptions()


@dataclass(frozen=True)
class GenerationRequest:
    """One job. `input` is the request of docs/api.md, with its pictures as base64 or https addresses."""

    input: JsonObject = field(repr=False)
    options: JobOptions = NO_OPTIONS


@dataclass(frozen=True)
class GeneratedFile:
    """One file that a job made. `asset_id` is Scenario's id of it; it is None with all other providers."""

    filename: str
    mime_type: str
    sha256: str
    bytes: builtins.bytes = field(repr=False)
    asset_id: str | None = None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file to `path`, or under its own name into the folder `path`, and return its path.

        Missing folders are made. The file appears whole or not at all, and replaces one of that name. Raises OSError
        that names it.
        """
        target = Path(path)
        if target.is_dir():
            target /= PureWindowsPath(self.filename).name
        data = self._encoded_for(target)
        try:
            if target.exists() and not target.is_file():
                target.write_bytes(data)  # a device or a pipe: os.replace would remove it
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                _write_whole(target, data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(target)) from error
        return target

    def _encoded_for(self, _target: Path) -> builtins.bytes:
        return self.bytes


def _write_whole(target: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".comfy-", delete=False) as part:
        try:
            part.write(data)
            part.close()
            Path(part.name).chmod(0o644)
            Path(part.name).replace(target)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise


@dataclass(frozen=True)
class GeneratedImage(GeneratedFile):
    """A picture. `seed` makes the same one again; it is None for a caller's own graph.

    `save` writes the format that the name's suffix says (.png, .jpg, .jpeg, .webp), and converts the picture if it has
    another one; a converted file has no embedded metadata. Notebooks show a GeneratedImage as a picture.
    """

    width: int = 0
    height: int = 0
    seed: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height

    def pil(self) -> Image.Image:
        """Return the picture, decoded."""
        from PIL import Image  # noqa: PLC0415 - most callers save the bytes as they are

        image = Image.open(io.BytesIO(self.bytes))
        image.load()
        return image

    def _encoded_for(self, target: Path) -> builtins.bytes:
        wanted = FORMATS.get(target.suffix.lower())
        return self.bytes if wanted is None or self.mime_type == f"image/{wanted}" else self._converted(wanted)

    def _converted(self, output_format: str) -> builtins.bytes:
        from comfy_core.images.codec import converted, identify  # noqa: PLC0415 - imports Pillow, as above

        found = identify(self.bytes)
        is_still = found is not None and not found.is_animated
        return converted(self.bytes, output_format).data if is_still else self.bytes  # a video, or all frames

    def _repr_png_(self) -> builtins.bytes:
        """Return the picture as PNG, for Jupyter."""
        return self.bytes if self.mime_type == "image/png" else self._converted("png")


@dataclass(frozen=True)
class GenerationResult:
    """What a job made. `delay_s` is from submission to start, `execution_s` is billed; None where nobody says."""

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

    @property
    def image(self) -> GeneratedImage:
        """The first picture. Raises LookupError where there is none."""
        if not self.images:
            raise LookupError(f"job {self.job_id} made no picture")
        return self.images[0]


class JobState(enum.StrEnum):
    """Where a job is, whatever its provider calls it."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether nothing more is to come."""
        return self not in {JobState.QUEUED, JobState.RUNNING}


@dataclass(frozen=True)
class Progress:
    """How far a job is: picture `picture` of `pictures`, at `step` of `steps`; a preview (JPEG) where one came."""

    stage: str = "sampling"
    picture: int = 1
    pictures: int = 1
    step: int = 0
    steps: int = 0
    percent: int = 0
    preview: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class JobStatus:
    """How a job stands. `error` is there if and only if it ended without a result; `output` is the provider's own."""

    job_id: str
    state: JobState
    progress: Progress | None = None
    output: object = field(default=None, repr=False)
    error: ErrorReport | None = None
    delay_s: float | None = None
    execution_s: float | None = None
    worker_id: str | None = None
    retries: int = 0


@dataclass(frozen=True)
class Health:
    """What an endpoint is doing. `why` says in a word, and `sentence` in one, why a job may have to wait.

    `why` is one of `idle`, `busy`, `cold`, `throttled`, `unhealthy`, `no_worker`.
    """

    jobs: Mapping[str, int]
    workers: Mapping[str, int]
    why: str
    sentence: str


class Provider(Protocol):
    """Where jobs run. Its calls block, may be made from several threads, and raise RequestError or JobError."""

    name: str
    """As IMAGE_GENERATION_PROVIDER has it."""
    jobs_outlive_process: bool
    """Whether a job goes on after this process ended, and any process finds it by its id. If not, no job is billed."""

    def submit(self, request: GenerationRequest, wait_s: float | None = None) -> JobStatus:
        """Start a job and return how it stands. It may answer up to `wait_s` later, if it can then tell the end.

        None means that nobody follows the job at once: its result is to be kept as long as possible.
        The job is sent once: a RequestError whose `report.details["may_run"]` is true may have started it.
        """
        ...

    def status(self, job_id: str) -> JobStatus:
        """Return how a job stands. Raises JobError (job_expired) for one that is not known, or not known yet."""
        ...

    def result(self, status: JobStatus) -> GenerationResult:
        """Return what a job made, of its final status. Raises JobError where it made nothing."""
        ...

    def cancel(self, job_id: str) -> None:
        """End a job; one that has ended stays as it is. Raises JobError (job_expired) as `status` does."""
        ...

    def retry(self, job_id: str) -> JobStatus:
        """Start a job that failed once more, under its own id. Raises RequestError where it did not fail."""
        ...

    def health(self) -> Health:
        """Return what the provider is doing."""
        ...

    def missing_models(self) -> list[str] | None:
        """Return the files of the workflows that are not there; None where that cannot be asked without a job."""
        ...

    def purge_queue(self) -> int:
        """Drop the jobs that wait, whoever sent them, and return how many those were."""
        ...

    def pause_s(self, waited_s: float) -> float:
        """Return how long to wait before the next `status`, for a job that has not changed for `waited_s`."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...
