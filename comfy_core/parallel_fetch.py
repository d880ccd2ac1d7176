"""Downloads the images that one request names by URL, in parallel and within one overall timeout."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from comfy_core.images.codec import invalid_image
from comfy_core.safe_connection import FetchRules, Resolve, resolve_host
from comfy_core.safe_fetch import fetch_image

MAX_PARALLEL = 8
_TICK_S = 0.1
"""Interval between calls of `raise_if_stopped`."""


def fetch_images(
    wanted: Sequence[tuple[str, str]],
    rules: FetchRules,
    raise_if_stopped: Callable[[], None],
    *,
    resolve: Resolve = resolve_host,
) -> list[bytes]:
    """Return the bytes at each URL. `wanted` contains pairs of URL and path in the request, such as `images[0].image`.

    Blocks for at most `rules.total_timeout_s`. `raise_if_stopped` is called ten times a second; an exception that it
    raises ends the wait at once, and the downloads in progress end soon after, in their threads.

    Raises JobError (invalid_image) for the first download that fails, or at the timeout.
    """
    given_up = threading.Event()
    deadline = time.monotonic() + rules.total_timeout_s
    executor = ThreadPoolExecutor(MAX_PARALLEL, "fetch")
    futures = [
        executor.submit(fetch_image, url, field_path, rules, resolve=resolve, given_up=given_up)
        for url, field_path in wanted
    ]
    waiting = set(futures)
    try:
        while waiting:
            raise_if_stopped()
            if time.monotonic() > deadline:
                field_path = next(
                    field_path for future, (_, field_path) in zip(futures, wanted, strict=True) if future in waiting
                )
                problem = f"was not fetched: the request's URLs took more than {rules.total_timeout_s:g} s in all"
                raise invalid_image(field_path, problem)
            done, waiting = wait(waiting, _TICK_S, FIRST_EXCEPTION)
            for future in done:
                future.result()
        return [future.result() for future in futures]
    finally:
        given_up.set()
        executor.shutdown(wait=False, cancel_futures=True)
