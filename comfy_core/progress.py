"""Progress of a job while it samples, or while the models that it names by address are downloaded."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

MODEL_STAGE = "model"
"""The stage in which models are downloaded, before the job's prompts are queued."""


@dataclass(frozen=True)
class Sampling:
    """Sampling has reached step `step` of `steps` of image `picture` of `pictures`; `percent` is of the whole job.

    In a graph with several samplers, `step` and `percent` start again with each.

    The field names are those of the worker's progress report.
    """

    picture: int = 1
    pictures: int = 1
    step: int = 0
    steps: int = 0
    percent: int = 0


@dataclass(frozen=True)
class Progress(Sampling):
    """A job's progress, with a JPEG preview of the unfinished image if there is one.

    While models are downloaded, the stage is MODEL_STAGE, and `done_bytes` of `total_bytes` were received.
    """

    stage: str = "sampling"
    preview: bytes | None = field(default=None, repr=False)
    done_bytes: int = 0
    total_bytes: int = 0

    @staticmethod
    def at(image: int, images: int, step: int = 0, steps: int = 0) -> Progress:
        """Return the progress at a step of image number `image` (from 1). `percent` counts the steps of all images."""
        done = image - 1 + (step / steps if steps else 0)
        return Progress(image, images, step, steps, int(100 * done / images))

    @staticmethod
    def of_models(done_bytes: int, total_bytes: int) -> Progress:
        """Return the progress of a download of models."""
        return Progress(stage=MODEL_STAGE, done_bytes=done_bytes, total_bytes=total_bytes)

    @property
    def bytes_fields(self) -> dict[str, int]:
        """The fields about bytes; empty in the other stages."""
        is_download = self.stage == MODEL_STAGE
        return {"done_bytes": self.done_bytes, "total_bytes": self.total_bytes} if is_download else {}

    @property
    def sampling(self) -> Sampling:
        """The progress without stage and preview."""
        return Sampling(*(getattr(self, each.name) for each in fields(Sampling)))
