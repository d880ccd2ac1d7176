"""Models by address, and a ComfyUI's own folder, on the simulator or a real ComfyUI.

The models folder of the real one is COMFYUI_MODELS_DIR.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from comfy_client.client import Client
from comfy_client.providers.direct import DirectProvider
from comfy_core.comfyui.model_inputs import FETCHED_FOLDER
from comfy_core.comfyui.server import ComfyServer
from comfy_core.workflows import Workflow
from simulators.comfyui import Simulator
from simulators.hugging_face import ModelServer
from tests.comfyui.random_lora import random_lora
from tests.conftest import COMFYUI_URL
from tests.core.models.addresses import CIVITAI_PATH, HF, HF_PATH, local_hosts, sha256
from tests.worker.addressed import Addressed
from worker.jobs import Control, Worker, run_job
from worker.settings import Settings

RunJob = Callable[[dict[str, Any]], dict[str, Any]]
MODELS_DIRECTORY = os.environ.get("COMFYUI_MODELS_DIR", "")


@pytest.fixture
def comfyui(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The URL of a ComfyUI, and its models folder."""
    if not COMFYUI_URL:
        (tmp_path / "models").mkdir()
        with Simulator(base_directory=tmp_path) as simulator:
            yield simulator.url, tmp_path / "models"
        return
    if not MODELS_DIRECTORY:
        pytest.skip("set COMFYUI_MODELS_DIR to the models folder of the ComfyUI at COMFYUI_URL")
    links = Path(MODELS_DIRECTORY)
    yield COMFYUI_URL, links
    shutil.rmtree(links / "loras" / FETCHED_FOLDER, ignore_errors=True)


@pytest.fixture
def run(comfyui: tuple[str, Path], tmp_path: Path, workflows: Mapping[str, Workflow]) -> Iterator[RunJob]:
    """Return a function that runs a small job on a worker that downloads models from a server with two LoRAs."""
    url, links = comfyui
    server = ComfyServer(url)
    with ModelServer() as models:
        models.put(CIVITAI_PATH, random_lora(1))
        models.put(HF_PATH, random_lora(2))
        addressed = Addressed(models, tmp_path / "cache", links)
        worker = addressed.worker(Worker(server, workflows, Settings(job_timeout_s=110)))
        small = {"prompt": "a knight", "seed": 5, "steps": 2, "width": 64, "height": 64}
        yield lambda inputs: run_job(worker, {"id": "test", "input": {**small, **inputs}}, Control())
    server.close()


def sha256s(result: dict[str, Any]) -> list[str]:
    """Return the hashes of a result's images."""
    return [image["sha256"] for image in result["images"]]


def test_a_lora_changes_the_image_and_its_absence_restores_it(run: RunJob) -> None:
    """A downloaded LoRA changes the image, two others change it differently, and without it the file is the same."""
    plain = sha256s(run({"metadata": False}))
    first = sha256s(run({"metadata": False, "loras": [{"civitai": 123}]}))
    second = sha256s(run({"metadata": False, "loras": [{"civitai": 123}, HF]}))

    assert len({*plain, *first, *second}) == 3
    assert sha256s(run({"metadata": False})) == plain
    assert sha256s(run({"metadata": False, "loras": ["civitai:123:1.0"]})) == first


def test_a_lora_downloaded_into_the_folder_is_used_and_deleted(
    comfyui: tuple[str, Path], workflows: Mapping[str, Workflow]
) -> None:
    """A LoRA that the client downloads into ComfyUI's folder changes the image by its name, until it is deleted."""
    url, models_directory = comfyui
    small: dict[str, Any] = {"seed": 5, "steps": 2, "width": 64, "height": 64, "metadata": False}
    with ModelServer() as server:
        server.put(HF_PATH, random_lora(2))
        hosts = local_hosts(server.server_port)
        provider = DirectProvider(url, workflows, directory=models_directory.parent, model_hosts=lambda: hosts)
        with Client(provider) as client:
            added = client.models.download(HF, "loras")
            plain = client.txt2img("a knight", **small).image
            styled = client.txt2img("a knight", loras=["knight.safetensors"], **small).image
            listed = {model.path: model.sha256 for model in client.models.list("loras").models}
            client.models.delete(added.path)
            left = {model.path for model in client.models.list("loras").models}

    assert added.sha256 == listed[added.path] == sha256(random_lora(2))
    assert styled.sha256 != plain.sha256
    assert added.path not in left
