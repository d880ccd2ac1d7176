"""Polling loops and request bodies of real callers: each gets its image from a worker in production mode.

Clover's other loop gets its image directly from a ComfyUI.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from bench.worker_setup import WorkerSetup, running_worker
from simulators.comfyui import Simulator
from simulators.waiting import until
from tests.needs import require_programs
from tools.recorded_graphs import Graph
from tools.stock_worker.graphs import as_base64, checkpoint, custom_sampler, flux, png

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parent
MODELS = {"checkpoints": ["flux1-dev-fp8.safetensors"]}
POLL_S = 0.05


@pytest.fixture(scope="module")
def setup() -> Iterator[WorkerSetup]:
    """A worker on the simulated platform, whose ComfyUI takes a second for 20 steps."""
    with running_worker(step_s=0.05, models=MODELS) as setup:
        yield setup


@pytest.fixture(scope="module", params=["image", "both"])
def image_field_setup(request: pytest.FixtureRequest) -> Iterator[WorkerSetup]:
    """A worker whose results have images under the key `image`, alone or together with `data`."""
    with running_worker(environment={"WORKER_IMAGE_FIELD": request.param}) as setup:
        yield setup


def size_of(data: str) -> tuple[int, int]:
    """Return the size of an image in base64."""
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return image.size


def poll_until_ended(setup: WorkerSetup, response: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    """Poll /status until the job of `response` has ended; return the job. Like most callers, read only `status`."""
    responses = [response]

    def has_ended() -> bool:
        job_id = response["id"]
        responses.append(
            requests.get(f"{setup.platform.endpoint_url}/status/{job_id}", headers=headers, timeout=60).json()
        )
        return responses[-1]["status"] not in ("IN_QUEUE", "IN_PROGRESS")

    assert response["status"] == "COMPLETED" or until(has_ended)
    return responses[-1]


def submit_and_wait(setup: WorkerSetup, route: str, body: dict[str, Any]) -> dict[str, Any]:
    """Submit a request with this body; return the job when it has ended."""
    headers = {"Authorization": f"Bearer {setup.platform.api_key}"}
    response = requests.post(f"{setup.platform.endpoint_url}{route}", json=body, headers=headers, timeout=100)
    response.raise_for_status()
    return poll_until_ended(setup, response.json(), headers)


# --- SillyTavern


def test_sillytavern_gets_its_image(setup: WorkerSetup) -> None:
    """SillyTavern polls a job that reports progress, reads `output.images[0]`, and gets the image at the end."""
    require_programs("node")
    arguments = [setup.platform.endpoint_url, setup.platform.api_key, str(POLL_S * 1000), json.dumps(flux(steps=40))]
    ended = subprocess.run(
        ["node", str(FOLDER / "sillytavern.mjs"), *arguments],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    image = json.loads(ended.stdout)
    assert image["outputsWithoutImage"] > 0, "the caller got no progress, so the test proves nothing"
    assert (image["filename"], size_of(image["data"])) == ("output_00001_.png", (64, 64))


# --- the curl of worker-comfyui's README


def test_the_curl_of_the_stock_readme_gets_its_images(setup: WorkerSetup, tmp_path: Path) -> None:
    """The README's command works with its example: two save nodes, a preview, and an image that no node loads."""
    require_programs("curl")
    image = {"name": "test.png", "image": f"data:image/png;base64,{as_base64(png())}"}
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"input": {"images": [image], "workflow": checkpoint()}}))
    headers = ["-H", f"Authorization: Bearer {setup.platform.api_key}", "-H", "Content-Type: application/json"]
    ended = subprocess.run(
        ["curl", "-sS", "-X", "POST", *headers, "-d", f"@{body}", f"{setup.platform.endpoint_url}/runsync"],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    job = json.loads(ended.stdout)

    assert job["status"] == "COMPLETED", job
    assert {image["type"] for image in job["output"]["images"]} == {"base64"}
    assert [size_of(image["data"]) for image in job["output"]["images"]] == [(64, 64), (64, 64)]


# --- n8n and Zapier: empty fields, numbers as text


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(
            {
                "prompt": "a fox",
                "image": None,
                "negative_prompt": None,
                "width": "64",
                "height": "64",
                "steps": "2",
                "guidance": "3.5",
                "seed": None,
                "num_images": "1",
                "loras": None,
                "output_format": "PNG",
                "metadata": None,
            },
            id="n8n",
        ),
        pytest.param(
            {
                "prompt": "a fox",
                "width": "64",
                "height": "64.0",
                "steps": "2",
                "seed": "-1",
                "num_images": 1.0,
                "output_format": "jpg",
                "metadata": "false",
            },
            id="zapier",
        ),
    ],
)
def test_a_form_s_body_gets_its_image(setup: WorkerSetup, fields: dict[str, Any]) -> None:
    """Null counts as missing, numbers and switches may be text, and -1 is a random seed."""
    job = submit_and_wait(setup, "/run", {"input": fields})

    assert job["status"] == "COMPLETED", job
    [image] = job["output"]["images"]
    assert size_of(image["data"]) == (64, 64)
    assert 0 <= job["output"]["seed"] < 2**32


def test_a_graph_with_nulls_beside_it_gets_its_image(setup: WorkerSetup) -> None:
    """An n8n expression without a value sends null for the optional fields of worker-comfyui."""
    job = submit_and_wait(setup, "/run", {"input": {"workflow": flux(), "images": None, "comfy_org_api_key": None}})

    assert job["status"] == "COMPLETED", job
    assert len(job["output"]["images"]) == 1


# --- hassoncs/clover, api/src/ai/comfyui.ts at bfcf338: the first client of this project


@pytest.mark.parametrize("name", ["txt2img", "img2img", "custom sampler"])
def test_clover_serverless_gets_its_image(image_field_setup: WorkerSetup, name: str) -> None:
    """Clover sends a graph and its image to /runsync, polls /status, and reads `images[].image`."""
    request: dict[str, Any] = {"workflow": custom_sampler() if name == "custom sampler" else flux()}
    if name == "img2img":
        image_name = "input_1764345600000.png"
        request = {"workflow": flux(image=image_name), "images": [{"name": image_name, "image": as_base64(png(64))}]}
    job = submit_and_wait(image_field_setup, "/runsync", {"input": request})

    assert job["status"] == "COMPLETED", job
    [image] = job["output"]["images"]
    assert (image["filename"], size_of(image["image"])) == ("output_00001_.png", (64, 64))


@pytest.mark.parametrize("image_name", [None, "input_1764345600000.png"], ids=["txt2img", "img2img"])
def test_clover_direct_gets_its_image(image_name: str | None) -> None:
    """Clover uploads, queues, polls /history and downloads the saved file from a ComfyUI, here the simulator."""
    with Simulator(step_s=0.01) as simulator:
        if image_name:
            upload = {"image": (image_name, png(64))}
            requests.post(f"{simulator.url}/upload/image", files=upload, timeout=60).raise_for_status()
        entry = _direct(simulator.url, flux(image=image_name))
        saved = [image for output in entry["outputs"].values() for image in output.get("images", [])]
        files = [requests.get(f"{simulator.url}/view", params=image, timeout=60).content for image in saved]

    assert [image["filename"] for image in saved] == ["output_00001_.png"]
    assert [size_of(as_base64(file)) for file in files] == [(64, 64)]


def _direct(url: str, graph: Graph) -> dict[str, Any]:
    """Queue a graph without a client id, and poll /history until it is completed; return its history entry."""
    prompt_id = requests.post(f"{url}/prompt", json={"prompt": graph}, timeout=60).json()["prompt_id"]
    found: list[dict[str, Any]] = []

    def is_completed() -> bool:
        history = requests.get(f"{url}/history/{prompt_id}", timeout=60).json()
        found.extend(entry for entry in history.values() if entry["status"]["completed"])
        return bool(found)

    assert until(is_completed)
    return found[0]
