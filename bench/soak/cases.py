"""The soak's requests, each with the end that it has where nothing else fails."""

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
from comfy_core.contract import ErrorCode, JsonObject
from comfy_core.workflows import default_directory, load_workflows, render
from simulators.comfyui import Simulator
from worker.jobs import Control, Worker, run_job

TIMEOUT_S = 3.0
"""What each job may take: it finds within two seconds that the end of its run was lost with a socket."""


@dataclass(frozen=True)
class Case:
    """A request and how it ends where nothing else fails: with this result, or refused with this code."""

    inputs: object
    result: JsonObject | None = None
    code: ErrorCode | None = None
    reaches_comfyui: bool = True


def png(side: int, colour: int) -> bytes:
    """Return a picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), f"#{colour:06x}").save(file, "PNG")
    return file.getvalue()


def base64_of(data: bytes) -> str:
    """Return `data` as a request carries it."""
    return base64.b64encode(data).decode()


def good_requests(dice: random.Random, count: int) -> list[JsonObject]:
    """Return small requests of every kind, no two of which make the same picture."""
    workflow = load_workflows(default_directory())["flux-dev-txt2img"]
    requests_made: list[JsonObject] = []
    for number in range(count):
        drawn = {"prompt": f"knight {number}", "seed": dice.randrange(2**40), "steps": dice.randint(3, 5)}
        drawn |= {side: dice.choice((64, 80, 96)) for side in ("width", "height")}
        picture = base64_of(png(dice.randint(64, 96), dice.randrange(1 << 24)))
        kinds: tuple[JsonObject, ...] = (
            drawn,
            {**drawn, "num_images": dice.randint(2, 3)},
            {**drawn, "image": picture, "strength": 0.7},
            {**drawn, "output_format": dice.choice(("webp", "jpeg"))},
            {"workflow": render(workflow, drawn)[0]},
            {**drawn, "negative_prompt": "blur", "negative_strength": 1.5, "metadata": False},
            {"prompt": drawn["prompt"], "seed": drawn["seed"], "steps": 4, "image": picture, "num_images": 2},
        )
        requests_made.append({**kinds[number % len(kinds)], "timeout_s": TIMEOUT_S})
    return requests_made


def refused(dice: random.Random) -> list[Case]:
    """Return requests that no ComfyUI will run, each with the code that says why."""
    picture = png(64, dice.randrange(1 << 24))
    empty = {"workflow": {"1": {"class_type": "EmptyImage", "inputs": {}}}}
    lora = {"prompt": "x", "loras": [{"name": "no-such.safetensors"}], "timeout_s": TIMEOUT_S}
    return [
        *(
            Case(inputs, code=ErrorCode.INVALID_INPUT, reaches_comfyui=False)
            for inputs in (None, "text", [1], {"promt": "x"}, {"prompt": "x", "steps": 0}, {"prompt": "x", "seed": "1"})
        ),
        Case({"prompt": "x", "image": base64_of(b"none")}, code=ErrorCode.INVALID_IMAGE, reaches_comfyui=False),
        Case({"prompt": "x", "image": base64_of(picture[:-40])}, code=ErrorCode.INVALID_IMAGE, reaches_comfyui=False),
        Case({"workflow": "sdxl", "prompt": "x"}, code=ErrorCode.UNKNOWN_WORKFLOW, reaches_comfyui=False),
        Case(lora, code=ErrorCode.MODEL_MISSING),
        Case({**empty, "timeout_s": TIMEOUT_S}, code=ErrorCode.WORKFLOW_REJECTED),
    ]


def with_results(inputs: Sequence[JsonObject]) -> list[Case]:
    """Return the requests with their results, from a worker around which nothing fails."""
    with Simulator() as simulator:
        server = ComfyServer(simulator.url)
        worker = Worker(server, load_workflows(default_directory()), 60, 8 * 1024 * 1024)
        cases = [Case(each, run_job(worker, {"id": "alone", "input": each}, Control())) for each in inputs]
        server.close()
    return cases


def essence(result: Mapping[str, object]) -> object:
    """Return what of a result does not differ from run to run: all but ids, times and how PNG was compressed."""
    match result:
        case {"images": list(images), "inputs": inputs, "seed": seed, "workflow": workflow}:
            return [inputs, seed, workflow, [_essence_of_image(image) for image in images]]
    return None


def _essence_of_image(image: Mapping[str, Any]) -> object:
    data = base64.b64decode(image["data"])
    sha256 = hashlib.sha256(data).hexdigest()
    with Image.open(io.BytesIO(data)) as decoded:
        pixels = hashlib.sha256(decoded.convert("RGB").tobytes()).hexdigest()
        size = decoded.size
    is_whole = (image["sha256"], image["bytes"], (image["width"], image["height"])) == (sha256, len(data), size)
    return [image["filename"], image["mime_type"], image["seed"], size, pixels, is_whole]
