"""Progress of a job while it samples."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class Sampling:
    """Sampling has reached step `step` of `steps` of image `picture` of `pictures`; `percent` is of the whole job.

    The field names are those of the worker's progress report.
    """

    picture: int = 1
    pictures: int = 1
    step: int = 0
    steps: int = 0
    percent: int = 0


@dataclass(frozen=True)
class Progress(Sampling):
    """A job's progress, with a JPEG preview of the unfinished image if there is one."""

    stage: str = "sampling"
    preview: bytes | None = field(default=None, repr=False)

    @staticmethod
    def at(image: int, images: int, step: int = 0, steps: int = 0) -> Progress:
        """Return the progress at a step of image number `image` (from 1). `percent` counts the steps of all images."""
        done = image - 1 + (step / steps if steps else 0)
        return Progress(image, images, step, steps, int(100 * done / images))

    @property
    def sampling(self) -> Sampling:
        """The progress without stage and preview."""
        return Sampling(*(getattr(self, each.name) for each in fields(Sampling)))
