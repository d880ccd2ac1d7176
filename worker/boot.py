"""Before the first job: ComfyUI up, its models there and loaded. What fails here keeps the worker from taking jobs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial

from comfy_client.comfyui.follow import Limits
from comfy_client.comfyui.run import run_graphs
from comfy_client.comfyui.server import ComfyServer
from comfy_client.errors import JobError
from comfy_client.workflows import Workflow, render
from worker.comfyui_process import ComfyProcess, await_ready
from worker.settings import Settings

WARMUP_WORKFLOW = "flux-dev-txt2img"
WARMUP_INPUTS = {"prompt": "warm-up", "width": 256, "height": 256, "steps": 1, "seed": 0}
WARMUP_TIMEOUT_S = 300.0

log = logging.getLogger(__name__)


def comfyui_command(settings: Settings) -> list[str]:
    """Return how ComfyUI is started: headless, quiet, without nodes that need the network or that nobody asked for.

    SaveImageWebsocket stands among the custom nodes that ComfyUI ships (0.3.64, custom_nodes/websocket_image_save.py).
    """
    return [
        settings.comfyui_python,
        "main.py",
        "--listen",
        "127.0.0.1",
        "--port",
        str(settings.comfyui_port),
        "--disable-auto-launch",
        "--disable-metadata",
        "--disable-api-nodes",
        "--disable-all-custom-nodes",
        "--whitelist-custom-nodes",
        "websocket_image_save",
        *(["--preview-method", "latent2rgb"] if settings.previews else []),
        *settings.comfyui_arguments,
    ]


def make_process(
    settings: Settings,
    server: ComfyServer,
    workflows: Mapping[str, Workflow],
    environment: Mapping[str, str],
    on_lost: Callable[[], None],
) -> ComfyProcess | None:
    """Return the worker's own ComfyUI, not started yet, or None where it runs elsewhere."""
    if not settings.comfyui_is_ours or settings.comfyui_directory is None:
        return None
    wait = partial(await_ready, server, models_of(workflows), settings.ready_timeout_s)
    return ComfyProcess(comfyui_command(settings), settings.comfyui_directory, environment, wait, on_lost)


def models_of(workflows: Mapping[str, Workflow]) -> list[str]:
    """Return the files that the workflows load, as `folder/file`."""
    return sorted({model for workflow in workflows.values() for model in workflow.schema.get("x-models", ())})


def await_boot(
    settings: Settings, server: ComfyServer, workflows: Mapping[str, Workflow], process: ComfyProcess | None
) -> None:
    """Return when the first job can be taken: ComfyUI answers, its models are there and, after a warm-up, loaded.

    Raises JobError or ModelsMissing with what is wrong; a ComfyUI of the worker's own is stopped then.
    """
    begun_at = time.monotonic()
    if process is None:
        await_ready(server, models_of(workflows), settings.ready_timeout_s, lambda: None)
    else:
        process.await_start()
    ready_at = time.monotonic()
    log.info("ComfyUI %s is ready after %.2f s", server.version(), ready_at - begun_at)
    if settings.warmup and WARMUP_WORKFLOW in workflows:
        limits = Limits(timeout_s=WARMUP_TIMEOUT_S, queue_timeout_s=WARMUP_TIMEOUT_S)
        graphs = render(workflows[WARMUP_WORKFLOW], WARMUP_INPUTS)
        try:
            run_graphs(server, graphs, [], limits, lambda: process.failure_since(0) if process else None)
        except JobError:
            if process is not None:
                process.stop()
            raise
        log.info("warmed up in %.2f s", time.monotonic() - ready_at)
