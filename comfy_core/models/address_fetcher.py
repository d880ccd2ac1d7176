"""Downloads the model files that one job names by address into the cache, in parallel, and holds them for the job."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from comfy_core.comfyui.prompt_monitor import Observe
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.models.address_cache import AddressCache, Lease
from comfy_core.models.address_source import AddressSource, ModelHosts
from comfy_core.models.listing import ModelError
from comfy_core.progress import Progress
from comfy_core.request.model_address import ModelAddress

MAX_PARALLEL = 4
"""Maximum number of parallel downloads of one job."""
AT_HAND_S = 0.25
"""A job whose models are not there after this time lets jobs that arrived later queue their prompts first."""
TICK_S = 0.1


@dataclass(frozen=True)
class AddressFetcher:
    """What a job needs to download models by address.

    Attributes:
        hosts: the allowed hosts, and the tokens that are used if the job has none.
        cache: the folder for the files.
    """

    hosts: ModelHosts
    cache: AddressCache


@dataclass(frozen=True)
class JobHooks:
    """How the download of one job's models takes part in the job.

    Attributes:
        check: raises the error with which the job must end.
        observe: called with the progress.
        set_aside: returns a context in which jobs that arrived later may queue their prompts.
    """

    check: Callable[[], None]
    observe: Observe
    set_aside: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext


@contextlib.contextmanager
def leased_models(
    fetcher: AddressFetcher, addresses: Sequence[ModelAddress], tokens: Mapping[str, str], hooks: JobHooks
) -> Iterator[Mapping[ModelAddress, Lease]]:
    """Yield the files at `addresses`, downloaded. They are not removed inside the block. Raises JobError."""
    stop = threading.Event()
    source = AddressSource(fetcher.hosts, tokens, stop)
    sizes: dict[ModelAddress, tuple[int, int]] = {}
    threads = ThreadPoolExecutor(MAX_PARALLEL, thread_name_prefix="models")

    def fetch(address: ModelAddress) -> Lease:
        return fetcher.cache.fetch(address, source, stop, lambda done, total: sizes.__setitem__(address, (done, total)))

    futures = {address: threads.submit(fetch, address) for address in addresses}
    try:
        _await_all(list(futures.values()), sizes, hooks)
        _raise_errors(futures)
        yield {address: future.result() for address, future in futures.items()}
    finally:
        stop.set()
        for future in futures.values():
            future.add_done_callback(_release)
        threads.shutdown(wait=False, cancel_futures=True)


def _release(future: Future[Lease]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().release()


def _await_all(futures: list[Future[Lease]], sizes: Mapping[ModelAddress, tuple[int, int]], hooks: JobHooks) -> None:
    """Return when all downloads have ended, or as soon as one has failed for good. Raises the error of `check`."""
    if not wait(futures, AT_HAND_S).not_done:
        return
    reported: tuple[int, int] | None = None
    with hooks.set_aside():
        while wait(futures, TICK_S).not_done and not _has_failed(futures):
            hooks.check()
            known = list(sizes.values())
            progress = sum(done for done, _ in known), sum(total for _, total in known)
            if known and progress != reported:
                reported = progress
                hooks.observe(Progress.of_models(*progress))


def _has_failed(futures: list[Future[Lease]]) -> bool:
    return any(future.done() and (error := future.exception()) and not _is_temporary(error) for future in futures)


def _is_temporary(error: BaseException | None) -> bool:
    return isinstance(error, ModelError) and error.is_temporary


def _raise_errors(futures: Mapping[ModelAddress, Future[Lease]]) -> None:
    """Raise JobError (invalid_model, or model_download_failed) with all failed downloads; an unexpected error as is."""
    failed: list[tuple[ModelAddress, ModelError]] = []
    for address, future in futures.items():
        error = future.exception() if future.done() else None
        if isinstance(error, ModelError):
            failed.append((address, error))
        elif error is not None:
            raise error
    if not failed:
        return
    problem = "; ".join(f"{address.source} {error.problem}" for address, error in failed)
    models = [{"address": address.source, "problem": error.problem} for address, error in failed]
    if all(error.is_temporary for _, error in failed):
        raise JobError.because(ErrorCode.MODEL_DOWNLOAD_FAILED, problem, models=models)
    raise JobError.because(ErrorCode.INVALID_MODEL, problem, models=models)
