"""Turns a valid request into graphs and uploads: downloads and checks the images, and renders the workflow."""

from __future__ import annotations

import time
from collections.abc import Callable

from comfy_core.images.child_process import IMAGE_TIMEOUT_S, StopCheck, check_image, never_stop
from comfy_core.images.codec import EncodedImage, invalid_image
from comfy_core.images.forms import ImageForm
from comfy_core.parallel_fetch import fetch_images
from comfy_core.request.rendering import Rendered, Request, draw_seed
from comfy_core.safe_connection import FetchRules

DECODE_TIMEOUT_S = 120.0
"""Time limit for decoding all images of one request."""


def render_request(
    request: Request,
    rules: FetchRules | None = None,
    raise_if_stopped: StopCheck = never_stop,
    random_seed: Callable[[], int] = draw_seed,
    decode_timeout_s: float = DECODE_TIMEOUT_S,
) -> Rendered:
    """Return the graphs and uploads for ComfyUI.

    `raise_if_stopped` is called regularly during downloads and checks. An exception that it raises ends the work.

    Raises JobError: invalid_image if an image cannot be downloaded or used, invalid_input if the files are too large in
    total, and the errors of Request.render.
    """
    fetched = request.with_fetched(lambda wanted: fetch_images(wanted, rules or FetchRules(), raise_if_stopped))
    deadline = time.monotonic() + decode_timeout_s

    def check_image_before_deadline(data: bytes, field_path: str, *, form: ImageForm) -> EncodedImage:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise invalid_image(
                field_path, f"was not decoded: the request's images took more than {decode_timeout_s:g} s"
            )
        return check_image(
            data,
            field_path,
            form=form,
            raise_if_stopped=raise_if_stopped,
            timeout_s=min(IMAGE_TIMEOUT_S, remaining_s),
        )

    return fetched.render(random_seed, check_image_before_deadline)
