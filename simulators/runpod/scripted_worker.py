"""A worker without ComfyUI: a function returns the result of each job.

It implements the protocol of docs/reference/runpod.md#worker-protocol without RunPod's SDK, in threads of this process.
"""

from __future__ import annotations

import base64
import hashlib
import io
import random
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Self, TypeAlias

import requests
from PIL import Image

from simulators.runpod.queue_api import RunPodPlatform

Body: TypeAlias = dict[str, Any]
MakeResult: TypeAlias = Callable[[Body], Body]
"""Returns the body of a job's result: `{"output": …}` or `{"error": …}`. Its argument is the job from job-take."""

TAKE_TIMEOUT_S = 15.0
POST_TIMEOUT_S = 30.0


class ScriptedWorker:
    """Takes jobs and posts the results of `make_result`, in `threads` threads inside its `with` block."""

    def __init__(self, platform: RunPodPlatform, make_result: MakeResult, threads: int = 1) -> None:
        self._platform = platform
        self._make_result = make_result
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(TAKE_TIMEOUT_S)

    def _work(self, number: int) -> None:
        session = requests.Session()
        session.trust_env = False
        session.headers["Authorization"] = self._platform.api_key
        worker = f"scripted-{number}"
        while not self._ended.is_set():
            try:
                taken = session.get(f"{self._platform.endpoint_url}/job-take/{worker}?gpu=FAKE", timeout=TAKE_TIMEOUT_S)
                if taken.status_code != requests.codes.ok:
                    continue
                job = taken.json()
                url = f"{self._platform.endpoint_url}/job-done/{worker}/{job['id']}?gpu=FAKE&isStream=false"
                session.post(url, json=self._make_result(job), timeout=POST_TIMEOUT_S)
            except requests.RequestException:
                self._ended.wait(0.05)
        session.close()


@cache
def png(side: int = 8, seed: int = 0) -> bytes:
    """Return a PNG of one colour, which depends on the seed."""
    encoded = io.BytesIO()
    Image.new("RGB", (side, side), (seed % 256, seed // 256 % 256, 80)).save(encoded, "PNG")
    return encoded.getvalue()


def incompressible_png(width: int, height: int) -> bytes:
    """Return a PNG of random pixels, which cannot be compressed."""
    encoded = io.BytesIO()
    pixels = random.Random(1).randbytes(width * height * 3)  # noqa: S311 - no secret
    Image.frombytes("RGB", (width, height), pixels).save(encoded, "PNG", compress_level=0)
    return encoded.getvalue()


def image_entry(data: bytes, seed: int | None = 0, **changes: Any) -> Body:  # noqa: ANN401 - any JSON value
    """Return an image's entry in a result of docs/api.md. The default width and height are those of `png()`."""
    return {
        "filename": "flux-dev_00001_.png",
        "type": "base64",
        "data": base64.b64encode(data).decode(),
        "mime_type": "image/png",
        "width": 8,
        "height": 8,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "seed": seed,
        **changes,
    }


def image_result(job: Body) -> Body:
    """Return a result with one small image that depends on the seed."""
    seed = job["input"].get("seed", 0)
    return {"output": {"images": [image_entry(png(8, seed), seed)], "workflow": "flux-dev-txt2img", "seed": seed}}
