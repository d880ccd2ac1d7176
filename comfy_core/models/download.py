"""Downloads missing models in parallel and with retries, or verifies existing ones. Safe to run concurrently.

A model is written to `<name>.part` next to its final path and hashed while it is written. It is moved to the final path
only when it is complete and has the listed sha256. So a file at its final path has been verified, even if the process
was killed during a download.
"""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from comfy_core.backoff import backoff_s
from comfy_core.models import files
from comfy_core.models.files import PartFile, Progress, locked_part
from comfy_core.models.listing import ModelError, ModelFile, ModelsError, WantedFile
from comfy_core.models.source import Hub, ModelSource, RetryableDownloadError, Stream

LOG = logging.getLogger(__name__)
JOBS = 4
MAX_BACKOFF_S = 30.0
MAX_RETRY_AFTER_S = 300.0
"""If the server's Retry-After is longer, the download fails at once."""


@dataclass(frozen=True)
class DownloadRetryPolicy:
    """Retry limits of a download. Retrying is safe: an attempt is a GET request that resumes at the current offset.

    Attributes:
        max_in_a_row: number of consecutive failures without a new byte, after which the download fails.
        max_total: number of failures of one model in all, after which the download fails.
        first_s: pause after the first failure; doubled after each further one, up to MAX_BACKOFF_S.
    """

    max_in_a_row: int = 6
    max_total: int = 200
    first_s: float = 0.5

    def is_over(self, failures: int, error: RetryableDownloadError) -> bool:
        """Return whether the download fails after this number of failures in a row, the last with `error`."""
        return failures >= self.max_in_a_row or (error.retry_after_s or 0.0) > MAX_RETRY_AFTER_S

    def pause_s(self, failures: int, error: RetryableDownloadError) -> float:
        """Return the seconds to wait after this number of failures in a row, the last with `error`."""
        backoff = backoff_s(failures - 1, first_s=self.first_s, longest_s=MAX_BACKOFF_S)
        return max(error.retry_after_s or 0.0, backoff * random.uniform(0.5, 1))  # noqa: S311 - no secret


DEFAULT_RETRY_POLICY = DownloadRetryPolicy()


class Source(Protocol):
    """Opens downloads, such as ModelSource."""

    def open(self, model: WantedFile, offset: int) -> AbstractContextManager[Stream]:
        """Request a file from `offset`. Raises RetryableDownloadError, or ModelError for a permanent failure."""


@dataclass(frozen=True)
class FetchContext:
    """Arguments shared by several downloads."""

    source: Source
    retry_policy: DownloadRetryPolicy
    stop: threading.Event
    progress: Progress


def ignore_progress(_model: WantedFile, _size: int) -> None:
    """Ignore the progress."""


def fetch_models(
    models: Iterable[ModelFile],
    directory: Path,
    hub: Hub,
    *,
    jobs: int = JOBS,
    stop: threading.Event | None = None,
    progress: Progress = ignore_progress,
    retry_policy: DownloadRetryPolicy = DEFAULT_RETRY_POLICY,
) -> None:
    """Download `models` into `directory`, ComfyUI's models folder. Blocks until all are present.

    An existing model is kept. If it was downloaded or verified before, only its size and modification time are checked;
    otherwise it is hashed once. A file with other content is replaced after the correct one has been downloaded. Raises
    ModelsError with every model that failed, after trying all of them. Setting `stop` ends the downloads early.
    """
    context = FetchContext(ModelSource(hub), retry_policy, stop or threading.Event(), progress)
    wanted: list[ModelFile] = []

    def decide(model: ModelFile) -> None:
        if not _is_present(model, directory / model.path, context):
            wanted.append(model)

    def fetch(model: ModelFile) -> None:
        _fetch(model, directory / model.path, context)

    def check_space(_: ModelFile) -> None:
        _require_space(wanted, directory)

    listed = list(models)
    _for_each(decide, listed, jobs, context.stop)
    _for_each(check_space, wanted[:1], jobs, context.stop)  # once, for all models
    _for_each(fetch, [model for model in listed if model in wanted], jobs, context.stop)


def check_models(
    models: Iterable[ModelFile],
    directory: Path,
    *,
    jobs: int = JOBS,
    stop: threading.Event | None = None,
    progress: Progress = ignore_progress,
) -> None:
    """Verify all `models` in `directory` without downloading. Raises ModelsError with every missing or wrong model."""
    stopping = stop or threading.Event()

    def check(model: ModelFile) -> None:
        if fault := _find_fault(model, directory / model.path, stopping, progress):
            raise ModelError(model, f"{fault}. Run the same command without --check to download it")
        LOG.info("%s: verified, %s bytes", model.path, f"{model.size:,}")

    _for_each(check, list(models), jobs, stopping)


def _require_space(models: Iterable[WantedFile], directory: Path) -> None:
    """Raise ModelError if a disk has too little space for the missing bytes of `models`."""
    needed: dict[int, int] = {}
    folders: dict[int, tuple[WantedFile, Path, int]] = {}
    for model in models:
        target = directory / model.path
        target.parent.mkdir(parents=True, exist_ok=True)
        device = target.parent.stat().st_dev
        # Read the free space before the part's size: another process may be writing the part, and the bytes it
        # writes in between must not be counted twice.
        folders.setdefault(device, (model, target.parent, files.free_bytes(target.parent)))
        needed[device] = needed.get(device, 0) + max(0, model.size - (files.size_of(files.part_of(target)) or 0))
    for device, (model, folder, free) in folders.items():
        if needed[device] > free:
            raise ModelError(
                model,
                f"the disk of {folder} has too little space for all missing models: {needed[device]:,} bytes are "
                f"needed, {free:,} are free. Free some space, use a larger volume, or select models with --only",
            )


def _find_fault(model: ModelFile, target: Path, stop: threading.Event, progress: Progress) -> str:
    """Return the problem with the file at `target`, or an empty string. A file of the right size is hashed."""
    size = files.size_of(target)
    if size is None:
        return f"does not exist ({target})"
    if size != model.size:
        return f"wrong size: {model.size:,} bytes were expected, {target} has {size:,}"
    sha256 = files.hash_and_mark(model, target, stop, progress)
    return "" if sha256 == model.sha256 else f"wrong bytes: sha256 {model.sha256} was expected, {target} has {sha256}"


def _for_each(step: Callable[[ModelFile], None], models: list[ModelFile], jobs: int, stop: threading.Event) -> None:
    """Call `step` for every model, `jobs` in parallel. Raises ModelsError with all errors."""
    errors: dict[ModelFile, ModelError] = {}

    def attempt(model: ModelFile) -> None:
        try:
            step(model)
        except ModelError as error:
            errors[model] = error
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
            errors[model] = ModelError(model, f"its file cannot be read or written ({reason})")

    with ThreadPoolExecutor(max_workers=jobs) as threads:
        try:
            list(threads.map(attempt, models))
        except BaseException:  # leaving the pool waits for its threads, so signal them to stop
            stop.set()
            LOG.warning("stopping; running downloads end with their next data or timeout")
            raise
    if errors:
        raise ModelsError(tuple(errors[model] for model in models if model in errors))


def _is_present(model: ModelFile, target: Path, context: FetchContext) -> bool:
    if files.is_verified(model, target):
        LOG.info("%s: already present", model.path)
        return True
    if files.size_of(target) is None:
        return False
    LOG.info("%s: present but not verified yet", model.path)
    if fault := _find_fault(model, target, context.stop, context.progress):
        LOG.warning("%s: %s; it will be replaced", model.path, fault)
    return not fault


def _fetch(model: ModelFile, target: Path, context: FetchContext) -> None:
    begun_at = time.monotonic()
    with locked_part(model, target, context.stop) as part:
        if _is_present(model, target, context):
            LOG.info("%s: another process has downloaded it", model.path)
            return
        fill_part(model, part, context)
        part.move_to(target)
    LOG.info(
        "%s: downloaded and verified, %s bytes in %.1f s", model.path, f"{model.size:,}", time.monotonic() - begun_at
    )


def fill_part(model: WantedFile, part: PartFile, context: FetchContext) -> None:
    """Resume or start the download of `model` into `part`, and verify its hash, if it is known. Raises ModelError."""
    part.read_back(context.stop, context.progress)
    kept = part.size
    if kept:
        LOG.info("%s: resuming at %s of %s bytes", model.path, f"{kept:,}", f"{model.size:,}")
    _download(model, part, context)
    if kept and model.sha256 not in {"", part.sha256()}:
        # The bytes of an earlier run may be corrupt, for example after a power failure.
        LOG.warning("%s: the %s bytes of an earlier run were wrong; starting over", model.path, f"{kept:,}")
        part.clear()
        _download(model, part, context)
    if model.sha256 not in {"", part.sha256()}:
        part.discard()
        raise ModelError(
            model,
            f"wrong bytes: sha256 {model.sha256} was expected, {part.sha256()} was received. Nothing was kept. "
            "The file on the server has changed, the expected hash is wrong, or a proxy changes the content",
        )


def _download(model: WantedFile, part: PartFile, context: FetchContext) -> None:
    """Fill `part` up to the model's size, retrying according to the policy."""
    failures = 0
    for total in itertools.count(1):
        if part.size > model.size:
            part.clear()
        size_before = part.size
        try:
            _append_rest(model, part, context)
        except RetryableDownloadError as error:
            failures = 1 if part.size > size_before else failures + 1
            if error.must_restart:
                part.clear()
            if context.retry_policy.is_over(failures, error) or total >= context.retry_policy.max_total:
                raise _give_up_error(model, part, error, total) from error
            pause_s = context.retry_policy.pause_s(failures, error)
            LOG.warning("%s: %s; retrying in %.1f s", model.path, error, pause_s)
            context.stop.wait(pause_s)
        else:
            return


def _append_rest(model: WantedFile, part: PartFile, context: FetchContext) -> None:
    """Request the missing bytes once. Raises RetryableDownloadError if not all were received."""
    if context.stop.is_set():
        raise files.stopped_error(model)
    if part.size == model.size:
        return
    with context.source.open(model, part.size) as stream:
        if stream.start != part.size:
            LOG.warning("%s: the server does not support resuming; starting from byte 0", model.path)
            part.clear()
        for chunk in stream.chunks:
            if context.stop.is_set():
                raise files.stopped_error(model)
            if part.size + len(chunk) > model.size:
                part.discard()
                raise ModelError(
                    model,
                    f"wrong size: {model.size:,} bytes were expected, more were received. Nothing was kept. The file "
                    "on the server is a different one, or the expected size is wrong",
                )
            part.append(chunk)
            context.progress(model, part.size)
    if part.size < model.size:
        raise RetryableDownloadError(
            f"the response ended after {part.size:,} of {model.size:,} bytes", "Try again later"
        )


def _give_up_error(model: WantedFile, part: PartFile, error: RetryableDownloadError, tries: int) -> ModelError:
    retry_after = f" with Retry-After {error.retry_after_s:g} s" if error.retry_after_s else ""
    kept = f" The {part.size:,} received bytes are kept; a later run resumes." if part.size else ""
    return ModelError(
        model, f"{error}{retry_after}; given up after {tries} attempts. {error.remedy}.{kept}", is_temporary=True
    )
