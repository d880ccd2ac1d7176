"""From a valid request to the graphs that ComfyUI runs: its pictures fetched and checked, within the job's time."""

from __future__ import annotations

import functools
from collections.abc import Callable

from comfy_client.fetch import FetchRules
from comfy_client.fetch_all import fetch_pictures
from comfy_client.picture_process import Check, check_picture, go_on
from comfy_client.request import Rendered, Request, draw_seed


def rendered(
    request: Request,
    rules: FetchRules | None = None,
    check: Check = go_on,
    random_seed: Callable[[], int] = draw_seed,
) -> Rendered:
    """Return what ComfyUI is to run. `check` is called while pictures are fetched and decoded, and may end both.

    Raises JobError: invalid_image if a picture cannot be fetched or used, and what Request.render raises.
    """
    fetched = request.with_fetched(lambda wanted: fetch_pictures(wanted, rules or FetchRules(), check))
    return fetched.render(random_seed, functools.partial(check_picture, check=check))
