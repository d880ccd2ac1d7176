"""The pictures of one request by URL: several at once, all of them within one time limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from comfy_core.contract import ErrorCode
from comfy_core.errors import JobError
from comfy_core.safe_fetch import FetchRules, Resolve, fetch_picture, resolve_host

PARALLEL = 8
_TICK_S = 0.1
"""How long one wait lasts before `check` is called again."""


def fetch_pictures(
    wanted: Sequence[tuple[str, str]],
    rules: FetchRules,
    check: Callable[[], None],
    *,
    resolve: Resolve = resolve_host,
) -> list[bytes]:
    """Return what each URL of `wanted` answers; each comes with the request's key that held it.

    Blocks for at most `rules.all_s`. What `check` raises, ten times a second, ends the wait at once; requests that are
    under way end soon after, in their own threads. Raises JobError (invalid_image) for the first that fails.
    """
    given_up = threading.Event()
    deadline = time.monotonic() + rules.all_s
    threads = ThreadPoolExecutor(PARALLEL, "fetch")
    futures = [
        threads.submit(fetch_picture, url, path, rules, resolve=resolve, given_up=given_up) for url, path in wanted
    ]
    waiting = set(futures)
    try:
        while waiting:
            check()
            if time.monotonic() > deadline:
                late = next(path for future, (_, path) in zip(futures, wanted, strict=True) if future in waiting)
                problem = (
                    f"the request's addresses took more than {rules.all_s:g} s; send the picture itself, as base64"
                )
                raise JobError.because(ErrorCode.INVALID_IMAGE, f"{late} was not fetched: {problem}.", path=late)
            done, waiting = wait(waiting, _TICK_S, FIRST_EXCEPTION)
            for future in done:
                future.result()
        return [future.result() for future in futures]
    finally:
        given_up.set()
        threads.shutdown(wait=False, cancel_futures=True)
