"""Models onto a disk: which are missing, what is done in which order, what is tried again. Safe to run twice at once.

A model is written to `<name>.part` beside its place and hashed on the way; only whole and with the list's sha256 is it
moved there. So what stands in its place was right once, whoever was killed when.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from worker.models import files
from worker.models.files import PartFile, Progress, locked_part
from worker.models.listing import ModelError, ModelFile, ModelsError, WrongContentError
from worker.models.source import Hub, ModelSource, RetryableDownloadError

LOG = logging.getLogger(__name__)
JOBS = 4


@dataclass(frozen=True)
class DownloadRetryPolicy:
    """How often a model is asked for again, and when. Asking is safe to repeat: a GET, from where it was cut.

    Attributes:
        in_a_row: failures without a new byte between them, after which it is given up.
        in_all: failures of one model.
        first_s: the pause after the first failure; it doubles with each that follows.
        longest_s: the longest pause of our own choice.
        longest_retry_after_s: the longest one that a server may ask for.
        connect_s: the longest wait for a connection.
        silence_s: the longest silence of a server in the middle of an answer.
        for_lock_s: how long another process may hold a part without writing to it.
    """

    in_a_row: int = 6
    in_all: int = 200
    first_s: float = 0.5
    longest_s: float = 30.0
    longest_retry_after_s: float = 300.0
    connect_s: float = 10.0
    silence_s: float = 60.0
    for_lock_s: float = 900.0

    def pause_s(self, failures: int, retry_after_s: float | None, chance: float) -> float:
        """Return the seconds to wait after `failures` in a row; `chance` (0 to 1) keeps many workers from one beat."""
        chosen_s = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 30)) * (0.5 + chance / 2)
        return max(chosen_s, retry_after_s or 0.0)


@dataclass(frozen=True)
class FetchContext:
    """What a run of fetch_models is given, beside the models and the place."""

    source: ModelSource
    retry_policy: DownloadRetryPolicy
    stop: threading.Event
    progress: Progress


def ignore_progress(_model: ModelFile, _size: int) -> None:
    """Take no notice of progress."""


def fetch_models(
    models: Iterable[ModelFile],
    directory: Path,
    hub: Hub,
    *,
    jobs: int = JOBS,
    stop: threading.Event | None = None,
    progress: Progress = ignore_progress,
    retry_policy: DownloadRetryPolicy | None = None,
) -> None:
    """Bring `models` into `directory`, ComfyUI's models folder. Blocks until all are there; `stop` ends it early.

    A model that is there is left alone: where this function has fetched or verified it, after a look at its size and
    time of change; else after reading it whole, once. One that is there with other bytes is replaced, when the right
    ones have come. Raises ModelsError with every model that is not there, after having tried them all.
    """
    retry_policy = retry_policy or DownloadRetryPolicy()
    source = ModelSource(hub, connect_s=retry_policy.connect_s, silence_s=retry_policy.silence_s)
    context = FetchContext(source, retry_policy, stop or threading.Event(), progress)
    wanted: list[ModelFile] = []

    def decide(model: ModelFile) -> None:
        if not _is_there(model, directory / model.path, context):
            wanted.append(model)

    def fetch(model: ModelFile) -> None:
        _fetch(model, directory / model.path, context)

    def find_space(_: ModelFile) -> None:
        files.require_space(wanted, directory)

    listed = list(models)
    _all(decide, listed, jobs, context.stop)
    _all(find_space, wanted[:1], jobs, context.stop)  # once, for all of them
    _all(fetch, [model for model in listed if model in wanted], jobs, context.stop)


def check_models(
    models: Iterable[ModelFile],
    directory: Path,
    *,
    jobs: int = JOBS,
    stop: threading.Event | None = None,
    progress: Progress = ignore_progress,
) -> None:
    """Read all of `models` in `directory` and fetch none. Raises ModelsError with every one that is not right."""
    ends = stop or threading.Event()

    def check(model: ModelFile) -> None:
        target = directory / model.path
        size = files.size_of(target)
        if size is None:
            raise ModelError(model, f"is not there ({target}). Fetch it: the same command without --check")
        if size != model.size:
            raise WrongContentError(
                model, f"wrong size: {model.size:,} bytes were expected, {target} has {size:,}. {_REPLACE}"
            )
        actual_sha256 = files.verify(model, target, ends, progress)
        if actual_sha256 != model.sha256:
            raise WrongContentError(
                model, f"wrong bytes: sha256 {model.sha256} was expected, {target} has {actual_sha256}. {_REPLACE}"
            )
        LOG.info("%s: verified, %s bytes", model.path, f"{model.size:,}")

    _all(check, list(models), jobs, ends)


_REPLACE = "The same command without --check replaces it"


def _all(step: Callable[[ModelFile], None], models: list[ModelFile], jobs: int, stop: threading.Event) -> None:
    """Take `step` with every model, `jobs` at a time. Raises ModelsError with all that failed."""
    errors: dict[ModelFile, ModelError] = {}

    def attempt(model: ModelFile) -> None:
        try:
            step(model)
        except ModelError as error:
            errors[model] = error
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
            errors[model] = ModelError(model, f"its place on the disk cannot be read or written ({reason})")

    with ThreadPoolExecutor(max_workers=jobs) as threads, contextlib.ExitStack() as cut_short:
        # Ctrl-C, or a bug: the threads are waited for, so they have to hear of it.
        cut_short.callback(_signal_stop, stop)
        for _ in threads.map(attempt, models):
            pass
        cut_short.pop_all()
    if errors:
        raise ModelsError(tuple(errors[model] for model in models if model in errors))


def _signal_stop(stop: threading.Event) -> None:
    stop.set()
    LOG.warning("stopping, once the servers' next bytes or the end of their time have come")


def _is_there(model: ModelFile, target: Path, context: FetchContext) -> bool:
    if files.is_verified(model, target):
        LOG.info("%s: is there", model.path)
        return True
    size = files.size_of(target)
    if size is None:
        return False
    problem = f"{size:,} bytes instead of {model.size:,}"
    if size == model.size:
        LOG.info("%s: is there and not verified yet; reading it once", model.path)
        actual_sha256 = files.verify(model, target, context.stop, context.progress)
        if actual_sha256 == model.sha256:
            return True
        problem = f"sha256 {actual_sha256} instead of {model.sha256}"
    LOG.warning("%s: is another file (%s) and will be replaced", model.path, problem)
    return False


def _fetch(model: ModelFile, target: Path, context: FetchContext) -> None:
    begun = time.monotonic()
    with locked_part(model, target, context.stop, lock_timeout_s=context.retry_policy.for_lock_s) as part:
        if _is_there(model, target, context):
            LOG.info("%s: another process has fetched it", model.path)
            return
        part.read_back(context.stop, context.progress)
        kept = part.size
        if kept:
            LOG.info("%s: going on from %s of %s bytes", model.path, f"{kept:,}", f"{model.size:,}")
        try:
            _download(model, part, context)
            if kept and part.sha256() != model.sha256:
                # What an earlier run left may be spoilt, after a loss of power say; what this one fetches is not.
                LOG.warning(
                    "%s: the %s bytes kept from an earlier run were wrong; beginning anew", model.path, f"{kept:,}"
                )
                part.clear()
                _download(model, part, context)
            _require_sha256(model, part)
        except WrongContentError:
            part.discard()
            raise
        part.become(target)
    LOG.info("%s: fetched and verified, %s bytes in %.1f s", model.path, f"{model.size:,}", time.monotonic() - begun)


def _require_sha256(model: ModelFile, part: PartFile) -> None:
    if part.sha256() != model.sha256:
        raise WrongContentError(
            model,
            f"wrong bytes: sha256 {model.sha256} was expected, {part.sha256()} was received. Nothing was "
            "kept. The file on the server has changed, the line in the list is wrong, or a proxy changes the content",
        )


def _download(model: ModelFile, part: PartFile, context: FetchContext) -> None:
    """Fill `part` up to the model's size, asking again as retry_policy allows."""
    failures = 0
    for total in itertools.count(1):
        if part.size > model.size:
            part.clear()
        had = part.size
        try:
            _append_rest(model, part, context)
        except RetryableDownloadError as error:
            failures = 1 if part.size > had else failures + 1
            if error.must_restart:
                part.clear()
            retry_policy, retry_after_s = context.retry_policy, error.retry_after_s or 0.0
            is_over = failures >= retry_policy.in_a_row or total >= retry_policy.in_all
            if is_over or retry_after_s > retry_policy.longest_retry_after_s:
                raise _given_up(model, part, error, total) from error
            pause_s = retry_policy.pause_s(failures, error.retry_after_s, random.random())  # noqa: S311 - no secret
            LOG.warning("%s: %s; asking again in %.1f s", model.path, error, pause_s)
            context.stop.wait(pause_s)
        else:
            return


def _append_rest(model: ModelFile, part: PartFile, context: FetchContext) -> None:
    """Ask once for what is missing. Raises RetryableDownloadError where not all of it actual_sha256."""
    if context.stop.is_set():
        raise files.stopped(model)
    if part.size == model.size:
        return
    with context.source.open(model, part.size) as stream:
        if stream.start != part.size:
            LOG.warning("%s: the server sends it from the start only", model.path)
            part.clear()
        for piece in stream.pieces:
            if context.stop.is_set():
                raise files.stopped(model)
            if part.size + len(piece) > model.size:
                raise WrongContentError(
                    model,
                    f"wrong size: {model.size:,} bytes were expected, more were received. Nothing was "
                    "kept. The file on the server is a different one, or the line in the list is wrong",
                )
            part.append(piece)
            context.progress(model, part.size)
    if part.size < model.size:
        raise RetryableDownloadError(f"the answer ended after {part.size:,} of {model.size:,} bytes", "Try again later")


def _given_up(model: ModelFile, part: PartFile, error: RetryableDownloadError, tries: int) -> ModelError:
    asked = f", asking for a pause of {error.retry_after_s:g} s" if error.retry_after_s else ""
    kept = f" The {part.size:,} bytes that came are kept and gone on with." if part.size else ""
    return ModelError(model, f"{error}{asked}; given up after {tries} tries. {error.remedy}.{kept}")
