"""Turns a valid request into the graphs to run: downloads and checks its images, and renders its workflow."""

from __future__ import annotations

import time
from collections.abc import Callable

from comfy_core.images.child_process import IMAGE_TIMEOUT_S, Check, check_image, never_stop
from comfy_core.images.codec import EncodedImage, invalid_image
from comfy_core.parallel_fetch import fetch_images
from comfy_core.request.reading import Rendered, Request, draw_seed
from comfy_core.safe_fetch import FetchRules

DECODE_TIMEOUT_S = 120.0
"""Time limit for decoding all images of one request."""


def render_request(
    request: Request,
    rules: FetchRules | None = None,
    check: Check = never_stop,
    random_seed: Callable[[], int] = draw_seed,
    decode_s: float = DECODE_TIMEOUT_S,
) -> Rendered:
    """Return the graphs and uploads for ComfyUI. `check` is called regularly, and may raise to end the work.

    Raises JobError: invalid_image if an image cannot be downloaded or used, and the errors of Request.render.
    """
    fetched = request.with_fetched(lambda wanted: fetch_images(wanted, rules or FetchRules(), check))
    deadline = time.monotonic() + decode_s

    def check_in_time(data: bytes, path: str, *, flatten: bool) -> EncodedImage:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise invalid_image(path, f"was not decoded: the request's images took more than {decode_s:g} s")
        return check_image(data, path, flatten=flatten, check=check, timeout_s=min(IMAGE_TIMEOUT_S, left_s))

    return fetched.render(random_seed, check_in_time)
