"""Input and output images of a job: time limits, cancellation, too large results, and animations and videos."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfy_client.providers.interface import GenerationResult, JobState, JobStatus
from comfy_client.providers.results import read_result
from comfy_core.comfyui.outputs import OutputImage, PromptResult, job_outputs
from comfy_core.comfyui.responses import OutputFile
from comfy_core.comfyui.server import ComfyServer
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.request import intake
from comfy_core.request.reading import read_request
from comfy_core.safe_connection import FetchRules
from comfy_core.workflows import Workflow
from simulators.comfyui import Simulator
from simulators.waiting import until
from tests.core.test_safe_fetch import LOOPBACK
from tests.hostile_images import gif, slow_jpeg, tiff_chain
from tests.worker.workers import configured
from worker.jobs import Control, Worker, run_job

SMALL = {"prompt": "a knight", "steps": 1, "seed": 1}
TEXT_TO_IMAGE = {**SMALL, "width": 64, "height": 64}


def run(worker: Worker, job_input: dict[str, Any], control: Control | None = None) -> dict[str, Any]:
    """Run one job; return its result."""
    return run_job(worker, {"id": "job-1", "input": job_input}, control or Control())


def base64_text(data: bytes) -> str:
    """Return `data` as base64 text, for a request."""
    return base64.b64encode(data).decode()


def noise(width: int, height: int) -> bytes:
    """Return a PNG of noise, which is slow to convert to WebP."""
    file = io.BytesIO()
    Image.effect_noise((width, height), 90).convert("RGB").save(file, "PNG", compress_level=0)
    return file.getvalue()


class DelayedCancellation:
    """A cancellation half a second after the first check."""

    def __init__(self) -> None:
        self._begun = 0.0

    def stop_error(self) -> JobError | None:
        """Return the error if the job is cancelled, otherwise None."""
        now = time.monotonic()
        self._begun = self._begun or now
        if now - self._begun < 0.5:
            return None
        return JobError.because(ErrorCode.CANCELLED, "The job was cancelled.")


# --- input images


@pytest.mark.slow
def test_images_with_many_pages_do_not_block_other_jobs(worker: Worker) -> None:
    """Images with thousands of pages do not block the worker: these jobs and a third one succeed."""
    with ThreadPoolExecutor(3) as threads:
        jobs = [
            threads.submit(run, worker, {**SMALL, "image": base64_text(tiff_chain(11_000))}),
            threads.submit(run, worker, {**SMALL, "image": base64_text(gif(500_000))}),
            threads.submit(run, worker, TEXT_TO_IMAGE),
        ]
        results = [job.result() for job in jobs]

    assert all(result["images"] for result in results)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["template", "graph"])
def test_the_job_s_timeout_includes_decoding(worker: Worker, kind: str) -> None:
    """If decoding an image takes longer than the job's timeout, the job fails, and the next job succeeds."""
    slow = base64_text(slow_jpeg())
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.jpg"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    inputs: dict[str, dict[str, Any]] = {
        "template": {**SMALL, "image": slow},
        "graph": {"workflow": graph, "images": [{"name": "a.jpg", "image": slow}]},
    }
    with pytest.raises(JobError, match="its input images were not fetched and decoded") as info:
        run(worker, {**inputs[kind], "timeout_s": 1})

    assert info.value.code is ErrorCode.DEADLINE_EXCEEDED
    assert run(worker, TEXT_TO_IMAGE)["images"]


@pytest.mark.slow
def test_a_cancellation_ends_decoding(worker: Worker) -> None:
    """A job that is cancelled in the middle of decoding ends with that error."""
    cancellation = DelayedCancellation()
    with pytest.raises(JobError, match="cancelled"):
        run(worker, {**SMALL, "image": base64_text(slow_jpeg())}, Control(cancellation.stop_error))


@pytest.mark.slow
@pytest.mark.parametrize("ended_by", ["cancel", "time"])
def test_a_cancellation_or_the_timeout_ends_downloads_from_silent_urls(worker: Worker, ended_by: str) -> None:
    """A cancelled or timed-out job with sixteen silent URLs ends long before their timeout.

    Its download threads end once the server is gone.
    """
    with socket.create_server((LOOPBACK, 0)) as silent:  # accepts connections and sends nothing
        port = silent.getsockname()[1]
        rules = FetchRules(allowed_networks=(ip_network(LOOPBACK),), extra_ports=frozenset({port}), timeout_s=300.0)
        images = [{"name": f"{number}.png", "image": f"https://{LOOPBACK}:{port}/a.png"} for number in range(16)]
        job_input = {"workflow": empty_image(8, 8), "images": images, "timeout_s": 1 if ended_by == "time" else 200}
        cancellation = DelayedCancellation()
        control = Control(cancellation.stop_error) if ended_by == "cancel" else Control()
        with pytest.raises(JobError, match=r"was cancelled|its input images were not fetched") as info:
            run(replace(worker, fetch_rules=rules), job_input, control)
    assert until(lambda: not [each for each in threading.enumerate() if each.name.startswith("fetch")])

    wanted = {"cancel": ErrorCode.CANCELLED, "time": ErrorCode.DEADLINE_EXCEEDED}
    assert info.value.code is wanted[ended_by]


@pytest.mark.slow
def test_all_images_of_a_request_share_one_decoding_limit(workflows: Mapping[str, Workflow]) -> None:
    """The time to decode all images of a request is limited in total: the error names the first image beyond it."""
    images = [{"name": f"{number}.jpg", "image": base64_text(slow_jpeg())} for number in range(3)]
    graph = {str(number): {"class_type": "LoadImage", "inputs": {"image": f"{number}.jpg"}} for number in range(3)}
    graph["9"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}
    request = read_request({"workflow": graph, "images": images}, workflows)

    with pytest.raises(JobError, match=r"images\[0\]\.image cannot be decoded: it takes longer than") as info:
        intake.render_request(request, decode_timeout_s=0.5)
    with pytest.raises(JobError, match=r"images\[0\]\.image was not decoded"):
        intake.render_request(request, decode_timeout_s=0.0)

    assert info.value.code is ErrorCode.INVALID_IMAGE


# --- output images


@pytest.mark.slow
def test_a_cancellation_ends_encoding(workflows: Mapping[str, Workflow]) -> None:
    """Encoding a WebP of 6 megapixels takes seconds, but a cancellation ends it."""
    request = read_request({**TEXT_TO_IMAGE, "output_format": "webp"}, workflows)
    result = PromptResult("id", (OutputImage(noise(3000, 2000), "photo"),), (), ())
    cancellation = DelayedCancellation()

    def check() -> None:
        if error := cancellation.stop_error():
            raise error

    with pytest.raises(JobError, match="cancelled"):
        job_outputs(request, request.render(lambda: 0), (result,), check)


def empty_image(width: int, height: int, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - any input of a node
    """Return a graph that saves one blank image."""
    size = {"width": width, "height": height, "batch_size": 1, "color": 255}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x", **more}},
    }


def test_a_webp_that_is_too_wide_is_returned_as_png(worker: Worker) -> None:
    """Name and MIME type are those of PNG, and a warning gives the reason."""
    result = run(worker, {"workflow": empty_image(16384, 8), "output_format": "webp"})

    [image] = result["images"]
    assert (image["filename"], image["mime_type"], image["width"]) == ("x_00001_.png", "image/png", 16384)
    assert Image.open(io.BytesIO(base64.b64decode(image["data"]))).format == "PNG"
    assert result["warnings"] == ["x_00001_.png is a PNG: webp holds at most 16,383 pixels a side"]


def test_a_long_string_of_a_graph_is_not_in_the_metadata(worker: Worker) -> None:
    """A long text of a node is replaced in the image's metadata; short texts of the graph are kept."""
    long, short = "A" * 2_000_000, "B" * 4096
    [image] = run(worker, {"workflow": empty_image(8, 8, long=long, nested={"short": [short]})})["images"]

    graph = json.loads(Image.open(io.BytesIO(base64.b64decode(image["data"]))).info["prompt"])
    assert graph["2"]["inputs"]["long"] == "[2,000,000 characters were left out of this file]"
    assert graph["2"]["inputs"]["nested"] == {"short": [short]}
    assert image["bytes"] < 8000


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_metadata_is_dropped_if_the_result_would_be_too_large(worker: Worker, output_format: str) -> None:
    """If the result only fits without metadata, the images have none, and a warning says so."""
    job_input = {**TEXT_TO_IMAGE, "prompt": "knight " * 400, "output_format": output_format}
    bare = run(worker, {**job_input, "metadata": False})
    tight = configured(worker, max_result_bytes=len(json.dumps(bare)) + 1000)

    result = run(tight, job_input)

    assert result["images"] == bare["images"]
    assert result["warnings"] == [
        "metadata was removed from the files, because the result would have been too large with it"
    ]


def test_a_result_that_is_too_large_without_metadata_has_all_remedies(worker: Worker) -> None:
    """The error names a smaller format, `metadata: false` and a bucket."""
    with pytest.raises(JobError, match=r"webp or jpeg.*`metadata: false`.*BUCKET_ENDPOINT_URL") as info:
        run(configured(worker, max_result_bytes=1000), TEXT_TO_IMAGE)

    assert info.value.code is ErrorCode.OUTPUT_TOO_LARGE


# --- outputs that are not still images


class ComfyClientWithAnimations(ComfyServer):
    """A client that also reports `FILES`, as if nodes of ComfyUI had saved them: animations and a video.

    `FILES` are listed under `images`, and `other.webp` under `gifs`.
    """

    FILES: Mapping[str, bytes]

    def history(self, prompt_id: str, *, timeout_s: float = 30) -> object:
        """Return the simulator's history with the outputs of those nodes added, once the prompt has ended."""
        response: Any = super().history(prompt_id, timeout_s=timeout_s)
        saved = [{"filename": name, "subfolder": "", "type": "output"} for name in self.FILES]
        if prompt_id in response:
            response[prompt_id]["outputs"]["98"] = {"images": saved, "animated": [True]}
            response[prompt_id]["outputs"]["99"] = {"gifs": [{**saved[0], "filename": "other.webp"}]}
        return response

    def view(self, file: OutputFile) -> bytes:
        """Return the content of one of those files, otherwise the simulator's file."""
        name = "x.webp" if file.filename == "other.webp" else file.filename
        return self.FILES[name] if name in self.FILES else super().view(file)


def animation(file_format: str) -> bytes:
    """Return an animation of two frames of 24 x 16 pixels."""
    file = io.BytesIO()
    first, second = (Image.new("RGB", (24, 16), colour) for colour in ("red", "blue"))
    first.save(file, file_format, save_all=True, append_images=[second])
    return file.getvalue()


@pytest.fixture
def animated_result(worker: Worker, simulator: Simulator) -> Iterator[dict[str, Any]]:
    """The result of a job that saved a still image, three animations, a video, and a file under the key `gifs`."""
    ComfyClientWithAnimations.FILES = {
        **{f"x.{name}": animation(name) for name in ("webp", "png", "gif")},
        "x.mp4": b"a video",
    }
    server = ComfyClientWithAnimations(simulator.url)
    yield run(
        replace(worker, server=server), {"workflow": empty_image(8, 8), "output_format": "webp", "ai_mark": False}
    )
    server.close()


def test_everything_that_comfyui_lists_as_images_is_in_images(animated_result: dict[str, Any]) -> None:
    """Animations and videos keep their names, and without the AI mark their bytes, and have their MIME type and size.

    They are in `images` as in worker-comfyui. The file under `gifs` is in `files`.
    """
    entries = {
        each["filename"]: (each["mime_type"], each.get("width"), each.get("height"), each["seed"])
        for each in animated_result["images"]
    }

    assert entries == {
        "x_00001_.webp": ("image/webp", 8, 8, None),
        "x.webp": ("image/webp", 24, 16, None),
        "x.png": ("image/png", 24, 16, None),
        "x.gif": ("image/gif", 24, 16, None),
        "x.mp4": ("video/mp4", None, None, None),
    }
    for each in animated_result["images"][1:]:
        assert base64.b64decode(each["data"]) == ComfyClientWithAnimations.FILES[each["filename"]]
    assert [each["filename"] for each in animated_result["files"]] == ["other.webp"]


def test_the_client_reads_animations_and_videos(animated_result: dict[str, Any]) -> None:
    """The client returns animations and videos as images; a video's size is 0 x 0."""
    result: GenerationResult = read_result(JobStatus("job-1", JobState.SUCCEEDED, output=animated_result), "test")

    assert [(image.filename, image.size) for image in result.images] == [
        ("x_00001_.webp", (8, 8)),
        ("x.webp", (24, 16)),
        ("x.png", (24, 16)),
        ("x.gif", (24, 16)),
        ("x.mp4", (0, 0)),
    ]
    assert [file.filename for file in result.files] == ["other.webp"]


def test_an_animation_and_a_video_are_saved_as_they_are(animated_result: dict[str, Any], tmp_path: Path) -> None:
    """`save` to a .jpg name converts a still image, but writes animations and videos unchanged."""
    result = read_result(JobStatus("job-1", JobState.SUCCEEDED, output=animated_result), "test")

    for image in result.images[1:]:
        assert image.save(tmp_path / "a.jpg").read_bytes() == ComfyClientWithAnimations.FILES[image.filename]
    with Image.open(result.images[0].save(tmp_path / "a.jpg")) as still:
        assert still.format == "JPEG"
