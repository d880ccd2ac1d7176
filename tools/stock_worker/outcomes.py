"""Runs a case on a handler through RunPod's SDK, and reduces the response to the parts that are equal in every run."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import re
from collections.abc import Callable
from typing import Any

from PIL import Image
from runpod.serverless.modules.rp_job import run_job

from handler import make_handler, worker_from_settings
from simulators.comfyui import Simulator
from tools.stock_worker.cases import Case
from tools.stock_worker.recordings import Outcome
from worker.job_execution import Service
from worker.lifecycle import Lifecycle
from worker.settings import Settings

MODELS = {"checkpoints": ["flux1-dev-fp8.safetensors"]}
MAX_ERROR_LENGTH = 120
"""Maximum length of a recorded error."""
Handler = Callable[[Any], Any]


def outcome_of(case: Case, make_handler_for: Callable[[Simulator], Handler]) -> Outcome:
    """Run a case on a new simulated ComfyUI, and return its outcome."""
    with Simulator(models=MODELS) as simulator:
        handle = make_handler_for(simulator)
        for number, job_input in enumerate(case.before):
            _run_job(handle, f"before-{number}", job_input)
        case.prepare(simulator)
        return outcome_from(_run_job(handle, "job", case.input))


def our_handler(simulator: Simulator) -> Handler:
    """Return this worker's handler on a ComfyUI."""
    lifecycle = Lifecycle(stop_comfyui=_nothing, report_unhealthy=_nothing, grace_s=1, end=_nothing)
    settings = Settings.from_env({"COMFYUI_URL": simulator.url})
    return make_handler(Service(worker_from_settings(settings), lifecycle))


def outcome_from(result: dict[str, Any]) -> Outcome:
    """Return the outcome to record for a result of the SDK: images by format and size, an error by its text or code."""
    if "error" in result:
        return {"status": "FAILED", "error": _shortened(result["error"])}
    output = result["output"]
    images = [
        {"filename": image["filename"], "type": image["type"], "data": _format_and_size(image["data"])}
        for image in output.get("images", [])
    ]
    return {"status": "COMPLETED", "images": images, **({"errors": output["errors"]} if "errors" in output else {})}


def _run_job(handle: Handler, job_id: str, job_input: object) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()):
        return asyncio.run(run_job(handle, {"id": job_id, "input": job_input}))


def _format_and_size(text: str) -> str:
    data = base64.b64decode(text)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return f"{image.format} {image.width} x {image.height}"
    except OSError:
        return f"{len(data)} bytes"


def _shortened(error: str) -> str:
    """Return the code of this worker's error, the type and message of an exception, or the start of another error."""
    with contextlib.suppress(ValueError):
        match json.loads(error):
            case {"code": str(code)}:
                return code
            case {"error_type": str(kind), "error_message": str(message)}:
                return f"{kind}: {message}"
    line = re.sub(r"https?://[\w.]+:\d+", "http://COMFYUI", error).strip().partition("\n")[0]
    return line if len(line) <= MAX_ERROR_LENGTH else f"{line[:MAX_ERROR_LENGTH]}…"


def _nothing(*_: object) -> None:
    """Do nothing."""
