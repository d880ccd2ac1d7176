"""Files of a job: gone with it where the worker reaches ComfyUI's folders, returned where they are no pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from PIL import Image

from comfy_client.comfyui.run import PromptResult, SavedFile, SavedImage
from comfy_client.comfyui.server import ComfyServer
from comfy_client.request import read_request
from comfy_client.simulator import Simulator
from comfy_client.workflows import Workflow, render
from worker.jobs import Control, Worker, run_job
from worker.outputs import encoded_images, other_files


def picture(image_format: str = "PNG") -> bytes:
    """Return a small picture's file."""
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(encoded, image_format)
    return encoded.getvalue()


@pytest.fixture
def beside(tmp_path: Path, workflows: Mapping[str, Workflow]) -> Iterator[tuple[Simulator, Worker]]:
    """A worker that reaches the folders of its ComfyUI, as in the container."""
    with Simulator(base_directory=tmp_path) as simulator:
        server = ComfyServer(simulator.url, directory=tmp_path)
        yield simulator, Worker(server, workflows, 20, 8 * 1024 * 1024)
        server.close()


def test_uploads_and_outputs_are_deleted(beside: tuple[Simulator, Worker], workflows: Mapping[str, Workflow]) -> None:
    """An upload, a file that was saved after a lost socket, and their folders are gone with the job."""
    simulator, worker = beside
    [graph] = render(workflows["flux-dev-img2img"], {"image": "in.png", "width": 64, "height": 64})
    simulator.faults.drop_socket(at_step=1)
    image = base64.b64encode(picture()).decode()
    job_input = {"workflow": graph, "images": [{"name": "in.png", "image": image}]}
    result = run_job(worker, {"id": "test", "input": job_input}, Control())

    assert result["images"]
    assert list(simulator.input_dir.iterdir()) == []
    assert list(simulator.output_dir.iterdir()) == []
    assert list(simulator.temp_dir.iterdir()) == []


def test_a_picture_that_the_graph_encoded_itself_stays_as_it_is(workflows: Mapping[str, Workflow]) -> None:
    """A JPEG of a save node of the graph's own is delivered with its own type, whatever output_format says."""
    jpeg = picture("JPEG")
    result = PromptResult("id", (SavedImage(jpeg, "photo"),), (), ())
    request = read_request({"prompt": "x", "seed": 1, "output_format": "webp"}, workflows)
    [output] = encoded_images(request, request.render(lambda: 0), (result,))

    assert output.data == jpeg
    assert (output.mime_type, output.filename) == ("image/jpeg", "photo_00001_.jpg")


def test_what_is_no_still_picture_comes_as_a_file() -> None:
    """A video has its name, type and hash, and no size in pixels."""
    result = PromptResult("id", (), (SavedFile(b"video", "a.mp4"), SavedFile(b"?", "b.unknown-kind")), ())
    outputs = list(other_files((result,)))

    assert [output.mime_type for output in outputs] == ["video/mp4", "application/octet-stream"]
    assert outputs[0].data == b"video"
    assert "width" not in outputs[0].entry("base64", "")
