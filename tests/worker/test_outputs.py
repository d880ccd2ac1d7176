"""Outputs of a job: inline or in a bucket, the measured size of the result, files and texts beside the images."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from comfy_client.providers.interface import JobState, JobStatus
from comfy_client.providers.results import read_result
from comfy_core.comfyui.outputs import JobOutput, OutputImage, PromptResult, SavedFile, job_outputs
from comfy_core.comfyui.responses import OutputFile
from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.request.reading import read_request
from comfy_core.workflows import Workflow
from simulators.comfyui import Simulator
from tests.fakes.s3 import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server, StalledS3
from tests.worker.workers import configured
from worker.jobs import Control, Worker, run_job
from worker.result_packer import ResultPacker, inline_size

pytestmark = pytest.mark.slow
SMALL = {"prompt": "a knight", "width": 64, "height": 64, "steps": 1, "seed": 1}


def encoded_image(image_format: str = "PNG") -> bytes:
    """Return a small encoded image."""
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(encoded, image_format)
    return encoded.getvalue()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """An S3 server with two buckets."""
    with S3Server(["pictures", "own"]) as server:
        yield server


def run(worker: Worker, s3_config: object = None, **changes: object) -> dict[str, Any]:
    """Run a small job with the inputs of `changes`, and return its result."""
    job: dict[str, Any] = {"id": "job-1", "input": {**SMALL, **changes}}
    if s3_config is not None:
        job["s3Config"] = s3_config
    return run_job(worker, job, Control())


def report_of(worker: Worker, s3_config: object = None, **changes: object) -> ErrorReport:
    """Run a small job that must fail, and return its error report."""
    with pytest.raises(JobError) as info:
        run(worker, s3_config, **changes)
    return info.value.report


def own_bucket(s3: S3Server, **changes: object) -> dict[str, object]:
    """Return RunPod's s3Config for the bucket `own`."""
    config = {"endpointUrl": s3.url, "accessId": ACCESS_KEY_ID, "accessSecret": SECRET_ACCESS_KEY, "bucketName": "own"}
    return {**config, **changes}


# --- delivery


def test_auto_stays_inline_while_the_result_fits(worker: Worker, s3: S3Server) -> None:
    """A result within the limit is base64 even if there is a bucket, and nothing is stored."""
    before = s3.stored()
    [image] = run(configured(worker, bucket=s3.bucket()))["images"]

    assert image["type"] == "base64"
    assert hashlib.sha256(base64.b64decode(image["data"])).hexdigest() == image["sha256"]
    assert s3.stored() == before


def test_auto_goes_to_the_bucket_beyond_the_limit(worker: Worker, s3: S3Server) -> None:
    """If a result does not fit, all its images are stored; each URL returns the bytes that the result describes."""
    limited = configured(worker, bucket=s3.bucket(prefix="auto"), max_result_bytes=8000)
    result = run(limited, num_images=3)

    assert [image["type"] for image in result["images"]] == ["s3_url"] * 3
    assert s3.stored()[:1] == ["auto/job-1/flux-dev_00001_.png"]
    for image in result["images"]:
        content = requests.get(image["data"], timeout=60).content
        assert (len(content), hashlib.sha256(content).hexdigest()) == (image["bytes"], image["sha256"])
        assert Image.open(io.BytesIO(content)).size == (image["width"], image["height"])
    assert len(json.dumps(result)) < 8000


def test_delivery_s3_stores_a_small_result(worker: Worker, s3: S3Server) -> None:
    """`delivery: s3` stores a result that would fit inline, and the URL starts with the bucket's public URL."""
    bucket = s3.bucket(prefix="asked for", public_url="https://cdn.example")
    [image] = run(configured(worker, bucket=bucket), delivery="s3", output_format="webp")["images"]

    assert image["data"] == "https://cdn.example/asked%20for/job-1/flux-dev_00001_.webp"
    assert "asked for/job-1/flux-dev_00001_.webp" in s3.stored()


def test_base64_beyond_the_limit_fails_although_there_is_a_bucket(worker: Worker, s3: S3Server) -> None:
    """`delivery: base64` beyond the limit fails with the size, the limit and the remedies; nothing is stored."""
    before = s3.stored()
    report = report_of(configured(worker, bucket=s3.bucket(), max_result_bytes=8000), delivery="base64")

    assert report.code is ErrorCode.OUTPUT_TOO_LARGE
    assert report.details["limit"] == 8000
    assert report.details["bytes"] > 8000
    assert "webp" in report.message
    assert "BUCKET_ENDPOINT_URL" in report.message
    assert s3.stored() == before


def test_without_a_bucket_auto_is_too_large(worker: Worker, simulator: Simulator) -> None:
    """Without a bucket, a result beyond the limit fails with output_too_large, and ComfyUI's history is empty again."""
    assert report_of(configured(worker, max_result_bytes=8000)).code is ErrorCode.OUTPUT_TOO_LARGE
    assert simulator.history_ids == []


def test_s3_without_a_bucket_is_rejected_before_a_prompt_is_queued(worker: Worker, simulator: Simulator) -> None:
    """`delivery: s3` on a worker without a bucket is a fault of the request; no prompt is queued."""
    report = report_of(worker, delivery="s3")

    assert report.code is ErrorCode.INVALID_INPUT
    assert [fault["path"] for fault in report.details["faults"]] == ["delivery"]
    assert ("POST", "/prompt") not in simulator.requests


def test_a_graph_is_rejected_if_graphs_are_not_allowed(worker: Worker, simulator: Simulator) -> None:
    """With WORKER_ALLOW_GRAPHS=false, a graph is a fault that lists the templates, beside the fault of s3Config."""
    graph = {"1": {"class_type": "EmptyImage", "inputs": {}}}
    job = {"id": "job-1", "input": {"workflow": graph}, "s3Config": "text"}
    with pytest.raises(JobError, match=", ".join(sorted(worker.workflows))) as info:
        run_job(configured(worker, allow_graphs=False), job, Control())

    assert [fault["path"] for fault in info.value.report.details["faults"]] == ["workflow", "s3Config"]
    assert simulator.requests == []


def test_a_job_s_own_bucket_is_used(worker: Worker, s3: S3Server) -> None:
    """Images are stored in the bucket of RunPod's s3Config instead of the worker's bucket."""
    with_bucket = configured(worker, bucket=s3.bucket(public_url="https://cdn.example"))
    [image] = run(with_bucket, own_bucket(s3), delivery="s3")["images"]

    assert s3.stored("own") == ["job-1/flux-dev_00001_.png"]
    assert image["data"].startswith(f"{s3.url}/own/job-1/")
    assert hashlib.sha256(requests.get(image["data"], timeout=60).content).hexdigest() == image["sha256"]


def test_an_incomplete_s3_config_is_rejected_before_a_prompt_is_queued(
    worker: Worker, simulator: Simulator, s3: S3Server
) -> None:
    """Each missing or invalid key is a fault, and ComfyUI gets no prompt."""
    config = own_bucket(s3, accessSecret="")
    del config["bucketName"]
    report = report_of(worker, config, delivery="s3")

    assert report.code is ErrorCode.INVALID_INPUT
    assert [fault["path"] for fault in report.details["faults"]] == ["s3Config.accessSecret", "s3Config.bucketName"]
    assert ("POST", "/prompt") not in simulator.requests


def test_an_http_endpoint_of_the_job_is_rejected(worker: Worker, simulator: Simulator, s3: S3Server) -> None:
    """An http endpoint that is not the worker's is a fault without the URL; no prompt is queued."""
    report = report_of(worker, own_bucket(s3), delivery="s3")

    assert [fault["path"] for fault in report.details["faults"]] == ["s3Config.endpointUrl"]
    assert s3.url not in report.to_json()
    assert ("POST", "/prompt") not in simulator.requests


def test_a_bucket_that_rejects_the_key_is_output_not_stored(worker: Worker, simulator: Simulator, s3: S3Server) -> None:
    """A wrong key in s3Config fails with output_not_stored, and the report does not contain the key.

    ComfyUI's history is empty again.
    """
    with_bucket = configured(worker, bucket=s3.bucket())
    report = report_of(with_bucket, own_bucket(s3, accessSecret="wrong-secret"), delivery="s3")

    assert report.code is ErrorCode.OUTPUT_NOT_STORED
    assert "wrong-secret" not in report.to_json()
    assert simulator.history_ids == []


def test_a_bucket_that_stalls_ends_with_the_job_s_timeout(worker: Worker, s3: S3Server) -> None:
    """The job's timeout includes storing, but storing gets at least `min_store_s` seconds."""
    with StalledS3() as stalled:
        slow = replace(configured(worker, bucket=stalled.instead_of(s3.bucket())), min_store_s=1.5)
        begun_at = time.monotonic()
        report = report_of(slow, delivery="s3", timeout_s=1)

        assert report.code is ErrorCode.DEADLINE_EXCEEDED
        assert "the results were not all uploaded to the bucket" in report.message
        assert time.monotonic() - begun_at >= 1.5
        assert report.details["after_s"] >= 1.5


def test_a_job_can_be_cancelled_while_its_results_are_stored(worker: Worker, s3: S3Server) -> None:
    """A cancellation ends a job that waits for the bucket. A crash of ComfyUI does not: the images exist already."""
    cancelled = JobError.because(ErrorCode.CANCELLED, "The job was cancelled.")
    died = JobError.because(ErrorCode.COMFYUI_UNAVAILABLE, "ComfyUI died.")
    returned: list[JobError] = []
    with StalledS3() as stalled:
        slow = configured(worker, bucket=stalled.instead_of(s3.bucket()))

        def stop_error() -> JobError | None:
            if not stalled.paths:
                return None
            returned.append(died if len(returned) < 3 else cancelled)
            return returned[-1]

        with pytest.raises(JobError) as info:
            run_job(slow, {"id": "job-1", "input": {**SMALL, "delivery": "s3"}}, Control(stop_error))

    assert info.value is cancelled
    assert returned == [died, died, died, cancelled]


def test_a_bucket_that_is_not_needed_is_not_used(worker: Worker, s3: S3Server) -> None:
    """A bucket with invalid settings does not fail a job whose result fits inline."""
    broken = replace(s3.bucket(), region="no such/region")

    assert run(configured(worker, bucket=broken))["images"][0]["type"] == "base64"


def test_a_url_is_not_a_local_path(worker: Worker, s3: S3Server, tmp_path: Path) -> None:
    """`data` is an http URL; the image's entry contains no folder of this machine."""
    [image] = run(configured(worker, bucket=s3.bucket()), delivery="s3")["images"]

    assert image["data"].startswith("http")
    assert str(tmp_path) not in json.dumps(image)


@pytest.mark.parametrize("fields", [("data",), ("image",), ("data", "image")], ids="+".join)
@pytest.mark.parametrize("delivery", ["base64", "s3"])
def test_the_keys_of_an_image_can_be_set(worker: Worker, s3: S3Server, fields: tuple[str, ...], delivery: str) -> None:
    """WORKER_IMAGE_FIELD sets the keys of the base64 or the URL; our client reads the image from any of them."""
    output = run(configured(worker, bucket=s3.bucket(), image_fields=fields), delivery=delivery)
    [image] = output["images"]
    read = read_result(JobStatus("1", JobState.SUCCEEDED, output=output), "comfyui")

    assert {"data", "image"} & image.keys() == set(fields)
    assert len({image[field] for field in fields}) == 1
    assert (image["type"] == "s3_url") == (delivery == "s3")
    assert read.image.size == (64, 64)


def test_a_result_has_its_cost(worker: Worker) -> None:
    """It is the worker's price for the busy seconds; null for a worker outside RunPod without a price of its own."""
    priced = run(configured(worker, gpu_usd_per_s=0.5))
    seconds = priced["timings"]["total_s"] - priced["timings"]["queue_s"]

    assert priced["cost"] == math.ceil(seconds) * 0.5
    assert priced["gpu"] is None
    assert run(worker)["cost"] is None


def test_an_image_under_two_keys_counts_twice(worker: Worker) -> None:
    """The limit applies to the JSON that is sent: with two keys the image no longer fits, with one key it does."""
    twice = configured(worker, image_fields=("data", "image"))
    limit = len(json.dumps(run(twice, metadata=False))) - 1

    assert report_of(configured(twice, max_result_bytes=limit), metadata=False).details["bytes"] > limit
    assert run(configured(worker, max_result_bytes=limit))["images"]


# --- size


def inline_result(outputs: list[JobOutput], other_keys: dict[str, Any]) -> dict[str, Any]:
    """Return the complete result with `outputs` inline, the keys of `other_keys`, and long timings."""
    images, files = ResultPacker("base64", 10**9, None).entries(outputs, [], other_keys)
    timings = dict.fromkeys(("queue_s", "execute_s", "fetch_s", "encode_s", "total_s"), 86_400.1234)
    return {"images": images, "files": files, **other_keys, "timings": timings}


@given(
    sizes=st.lists(st.integers(0, 40_000), max_size=12),
    name=st.text(max_size=300),
    text=st.text(max_size=500),
    seed=st.none() | st.integers(0, 2**63 - 1),
)
def test_the_measured_size_is_that_of_the_result(sizes: list[int], name: str, text: str, seed: int | None) -> None:
    """The measured size is never below that of the JSON that is sent, and at most 2 KB per image above it."""
    facts = {"width": 2048, "height": 2048, "seed": seed}
    outputs = [JobOutput(f"{name}_{number}.png", bytes(size), "image/png", facts) for number, size in enumerate(sizes)]
    other_keys = {"inputs": {"prompt": text}, "texts": [text] * 3}
    measured = inline_size(outputs, other_keys)
    real = len(json.dumps(inline_result(outputs, other_keys)))

    assert real <= measured <= real + 2048 * max(1, len(sizes))


def test_the_limit_of_a_real_result_is_its_measured_size(worker: Worker) -> None:
    """With a limit of the measured size the result fits; with one byte less it does not."""
    prompt = "ein König mit 👑" * 200
    inputs: dict[str, Any] = {"prompt": prompt, "num_images": 4}
    measured = report_of(configured(worker, max_result_bytes=1), **inputs).details["bytes"]
    result = run(configured(worker, max_result_bytes=measured), **inputs)

    assert measured - 4 * 2048 <= len(json.dumps(result)) <= measured
    assert report_of(configured(worker, max_result_bytes=measured - 1), **inputs).code is ErrorCode.OUTPUT_TOO_LARGE


def test_texts_count_towards_the_limit_with_a_bucket(s3: S3Server) -> None:
    """Texts are never stored in a bucket: if they exceed the limit, the job fails, and no image is stored."""
    stored: list[JobOutput] = []

    def store(output: JobOutput) -> str:
        stored.append(output)
        return s3.url

    with pytest.raises(JobError, match="output_too_large"):
        ResultPacker("s3", 10_000, store).entries(
            [JobOutput("a.png", b"", "image/png", {})], [], {"texts": ["x" * 10_000]}
        )

    assert stored == []


# --- content


def test_an_image_that_the_graph_encoded_itself_is_not_changed(workflows: Mapping[str, Workflow]) -> None:
    """A JPEG that the graph encoded itself is returned as it is, without the mark, although output_format is webp."""
    jpeg = encoded_image("JPEG")
    result = PromptResult("id", (OutputImage(jpeg, "photo"),), (), ())
    request = read_request({"prompt": "x", "seed": 1, "output_format": "webp", "ai_mark": False}, workflows)
    [output] = job_outputs(request, request.render(lambda: 0), (result,)).images

    assert output.data == jpeg
    assert (output.mime_type, output.filename) == ("image/jpeg", "photo_00001_.jpg")


def test_an_unreadable_image_is_returned_with_a_warning(workflows: Mapping[str, Workflow]) -> None:
    """The caller gets the bytes that ComfyUI sent, and warnings, because the GPU time has been paid for."""
    result = PromptResult("id", (OutputImage(b"no picture", "photo"),), (), ())
    request = read_request({"prompt": "x", "seed": 1}, workflows)

    outputs = job_outputs(request, request.render(lambda: 0), (result,))

    assert [image.data for image in outputs.images] == [b"no picture"]
    assert outputs.images[0].facts == {"seed": 1}
    assert outputs.warnings == (
        "photo_00001_.bin cannot be read as an image",
        "photo_00001_.bin is not marked as generated by AI, because it is not a PNG, JPEG or WebP file",
    )


def files_of(workflows: Mapping[str, Workflow], *files: SavedFile) -> list[JobOutput]:
    """Return the outputs of a job whose graph saved `files`."""
    request = read_request({"prompt": "x", "seed": 1}, workflows)
    return list(job_outputs(request, request.render(lambda: 0), [PromptResult("id", (), files, ())]).files)


def test_an_output_that_is_not_an_image_is_a_file(workflows: Mapping[str, Workflow]) -> None:
    """A file that is not an image has the MIME type of its extension, and no size in pixels."""
    outputs = files_of(workflows, SavedFile(b"video", "a.mp4"), SavedFile(b"?", "b.unknown-kind"))

    assert [output.mime_type for output in outputs] == ["video/mp4", "application/octet-stream"]
    assert outputs[0].data == b"video"
    assert "width" not in outputs[0].entry("base64", "")


def test_files_with_the_same_name_get_distinct_names(workflows: Mapping[str, Workflow]) -> None:
    """Files of the same name get a number in front of it, so that none overwrites another in a bucket."""
    written = [SavedFile(data, name) for data in (b"1", b"2", b"3") for name in ("a.mp4", "b.mp4")]

    assert [(output.filename, output.data) for output in files_of(workflows, *written)] == [
        ("a.mp4", b"1"),
        ("b.mp4", b"1"),
        ("2_a.mp4", b"2"),
        ("2_b.mp4", b"2"),
        ("3_a.mp4", b"3"),
        ("3_b.mp4", b"3"),
    ]


class VideoComfyClient(ComfyServer):
    """A client that reports a video and a text as if ComfyUI had a custom node that saves them."""

    def history(self, prompt_id: str, *, timeout_s: float = 30) -> object:
        """Return the simulator's history with the outputs of that node added, once the prompt has ended."""
        response: Any = super().history(prompt_id, timeout_s=timeout_s)
        video = {"filename": "knight.mp4", "subfolder": "", "type": "output"}
        if prompt_id in response:
            response[prompt_id]["outputs"]["99"] = {"gifs": [video], "text": ["a knight in armour"]}
        return response

    def view(self, file: OutputFile) -> bytes:
        """Return the video for its name, otherwise the simulator's file."""
        return b"a video" if file.filename == "knight.mp4" else super().view(file)


def test_videos_and_texts_are_returned_with_the_images(worker: Worker, simulator: Simulator, s3: S3Server) -> None:
    """Videos are in `files`, inline or stored as images are; texts are in `texts`, always inline."""
    server = VideoComfyClient(simulator.url)
    with_video = replace(configured(worker, bucket=s3.bucket(prefix="talk")), server=server)
    inline, stored = run(with_video), run(with_video, delivery="s3")
    server.close()

    [file] = inline["files"]
    assert (file["filename"], file["mime_type"], base64.b64decode(file["data"])) == (
        "knight.mp4",
        "video/mp4",
        b"a video",
    )
    assert requests.get(stored["files"][0]["data"], timeout=60).content == b"a video"
    assert inline["texts"] == stored["texts"] == ["a knight in armour"]
    assert list(inline)[:2] == ["images", "files"]


def test_a_result_without_files_and_texts_lacks_their_keys(worker: Worker) -> None:
    """A result without other outputs has neither `files` nor `texts`."""
    assert not {"files", "texts"} & run(worker).keys()
