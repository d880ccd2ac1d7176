"""The requests of the soak, each with the outcome that it has without faults."""

from __future__ import annotations

import base64
import hashlib
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.workflows import default_directory, load_workflows, render
from simulators.comfyui import Simulator
from worker.jobs import Control, Worker, run_job
from worker.settings import Settings

SHORT_TIMEOUT_S = 3.0
"""Timeout of each job. A worker needs up to two seconds to notice that the frame of a prompt's end was lost."""


@dataclass(frozen=True)
class SoakCase:
    """A request and its outcome without faults.

    Attributes:
        inputs: the job's input.
        result: the result; None if the job must fail.
        code: the error code; None if the job must succeed.
        reaches_comfyui: whether the job is sent to ComfyUI, so that faults can change its outcome.
    """

    inputs: object
    result: JsonObject | None = None
    code: ErrorCode | None = None
    reaches_comfyui: bool = True


def png(side: int, colour: int) -> bytes:
    """Return an image of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), f"#{colour:06x}").save(file, "PNG")
    return file.getvalue()


def in_base64(data: bytes) -> str:
    """Return bytes in base64, as requests contain them."""
    return base64.b64encode(data).decode()


def good_requests(rng: random.Random, count: int) -> list[JsonObject]:
    """Return small requests of every kind. No two of them generate the same image."""
    workflow = load_workflows(default_directory())["flux-dev-txt2img"]
    good: list[JsonObject] = []
    for number in range(count):
        drawn = {"prompt": f"knight {number}", "seed": rng.randrange(2**40), "steps": rng.randint(3, 5)}
        drawn |= {side: rng.choice((64, 80, 96)) for side in ("width", "height")}
        image = in_base64(png(rng.randint(64, 96), rng.randrange(1 << 24)))
        kinds: tuple[JsonObject, ...] = (
            drawn,
            {**drawn, "num_images": rng.randint(2, 3)},
            {**drawn, "image": image, "strength": 0.7},
            {**drawn, "output_format": rng.choice(("webp", "jpeg"))},
            {"workflow": render(workflow, drawn)[0]},
            {**drawn, "negative_prompt": "blur", "negative_strength": 1.5, "metadata": False},
            {"prompt": drawn["prompt"], "seed": drawn["seed"], "steps": 4, "image": image, "num_images": 2},
        )
        good.append({**kinds[number % len(kinds)], "timeout_s": SHORT_TIMEOUT_S})
    return good


def invalid_requests(rng: random.Random) -> list[SoakCase]:
    """Return requests that cannot succeed, each with its expected error code."""
    image = png(64, rng.randrange(1 << 24))
    empty = {"workflow": {"1": {"class_type": "EmptyImage", "inputs": {}}}}
    lora = {"prompt": "x", "loras": [{"name": "no-such.safetensors"}], "timeout_s": SHORT_TIMEOUT_S}
    return [
        *(
            SoakCase(inputs, code=ErrorCode.INVALID_INPUT, reaches_comfyui=False)
            for inputs in (None, "text", [1], {"promt": "x"}, {"prompt": "x", "steps": 0}, {"prompt": "x", "seed": "1"})
        ),
        SoakCase({"prompt": "x", "image": in_base64(b"none")}, code=ErrorCode.INVALID_IMAGE, reaches_comfyui=False),
        SoakCase({"prompt": "x", "image": in_base64(image[:-40])}, code=ErrorCode.INVALID_IMAGE, reaches_comfyui=False),
        SoakCase({"workflow": "sdxl", "prompt": "x"}, code=ErrorCode.UNKNOWN_WORKFLOW, reaches_comfyui=False),
        SoakCase(lora, code=ErrorCode.MODEL_MISSING),
        SoakCase({**empty, "timeout_s": SHORT_TIMEOUT_S}, code=ErrorCode.WORKFLOW_REJECTED),
    ]


def with_results(inputs: Sequence[JsonObject]) -> list[SoakCase]:
    """Run the requests without faults; return each with its result."""
    with Simulator() as simulator:
        server = ComfyServer(simulator.url)
        worker = Worker(server, load_workflows(default_directory()), Settings(job_timeout_s=60))
        cases = [SoakCase(each, run_job(worker, {"id": "alone", "input": each}, Control())) for each in inputs]
        server.close()
    return cases


def stable_parts(result: Mapping[str, object]) -> object:
    """Return the parts of a result that are equal in every run, without ids, times and PNG compression.

    Returns None if `result` does not have the keys of a result.
    """
    match result:
        case {"images": list(images), "inputs": inputs, "seed": seed, "workflow": workflow}:
            return [inputs, seed, workflow, [_stable_parts_of_image(image) for image in images]]
    return None


def _stable_parts_of_image(image: Mapping[str, Any]) -> object:
    data = base64.b64decode(image["data"])
    sha256 = hashlib.sha256(data).hexdigest()
    with Image.open(io.BytesIO(data)) as decoded:
        pixels = hashlib.sha256(decoded.convert("RGB").tobytes()).hexdigest()
        size = decoded.size
    is_whole = (image["sha256"], image["bytes"], (image["width"], image["height"])) == (sha256, len(data), size)
    return [image["filename"], image["mime_type"], image["seed"], size, pixels, is_whole]
