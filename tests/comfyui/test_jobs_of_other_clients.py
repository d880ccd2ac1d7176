"""ComfyUI keeps what another client needs to read the result of a submitted job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy_client.client import Client
from comfy_client.providers.direct_jobs import find_job
from comfy_core.comfyui.server import ComfyServer

SMALL: dict[str, Any] = {"prompt": "a knight", "width": 64, "height": 64, "steps": 2, "seed": 5, "num_images": 2}


def test_another_client_gets_the_result(
    comfyui_url: str, server: ComfyServer, get_json: Callable[[str], dict[str, Any]]
) -> None:
    """A job that was submitted by a closed client has its images, seeds and inputs; then it can be removed."""
    with Client(comfyui_url=comfyui_url) as submitter:
        job_id = submitter.submit(**SMALL).id
    with Client(comfyui_url=comfyui_url, timeout_s=250) as client:
        found = client.job(job_id).wait()
        followed = client.run(**SMALL)
    traces = find_job(server, job_id).traces
    traces.remove(server)

    assert [image.seed for image in found.images] == [5, 6]
    assert [image.pil().tobytes() for image in found.images] == [image.pil().tobytes() for image in followed.images]
    assert found.inputs == followed.inputs
    assert [get_json(f"/history/{prompt_id}") for prompt_id in traces.prompt_ids] == [{}, {}]
