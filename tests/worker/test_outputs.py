"""What a job made, on its way to the caller: encoded, inline while it fits, else in a bucket, and gone from ComfyUI."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from comfy_client.providers.interface import JobState, JobStatus
from comfy_client.providers.results import read_result
from comfy_core.comfyui.outputs import JobOutput, job_outputs
from comfy_core.comfyui.responses import OutputFile
from comfy_core.comfyui.saved import PromptResult, SavedFile, SavedImage
from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import ErrorCode, ErrorReport
from comfy_core.errors import JobError
from comfy_core.request.reading import read_request
from comfy_core.workflows import Workflow, render
from simulators.comfyui import Simulator
from tests.fakes.s3 import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server, StalledS3
from tests.worker.workers import configured
from worker.jobs import Control, Worker, run_job
from worker.result_packer import ResultPacker, inline_size
from worker.settings import Settings

SMALL = {"prompt": "a knight", "width": 64, "height": 64, "steps": 1, "seed": 1}
MEGABYTE = 1024 * 1024


def picture(image_format: str = "PNG") -> bytes:
    """Return a small picture's file."""
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(encoded, image_format)
    return encoded.getvalue()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """An S3 server with two buckets."""
    with S3Server(["pictures", "own"]) as server:
        yield server


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    """A simulator of this test's own."""
    with Simulator(base_directory=tmp_path) as simulator:
        yield simulator


@pytest.fixture
def worker(simulator: Simulator, tmp_path: Path, workflows: Mapping[str, Workflow]) -> Iterator[Worker]:
    """A worker that reaches the folders of its ComfyUI, as in the container."""
    server = ComfyServer(simulator.url, directory=tmp_path)
    yield Worker(server, workflows, Settings(job_timeout_s=20))
    server.close()


def run(worker: Worker, s3_config: object = None, **changes: object) -> dict[str, Any]:
    """Run a small job, changed by `changes`, and return its result."""
    job: dict[str, Any] = {"id": "job-1", "input": {**SMALL, **changes}}
    if s3_config is not None:
        job["s3Config"] = s3_config
    return run_job(worker, job, Control())


def report_of(worker: Worker, s3_config: object = None, **changes: object) -> ErrorReport:
    """Return the report that a small job ends in."""
    with pytest.raises(JobError) as info:
        run(worker, s3_config, **changes)
    return info.value.report


def own_bucket(s3: S3Server, **changes: object) -> dict[str, object]:
    """Return RunPod's s3Config for the bucket `own`."""
    config = {"endpointUrl": s3.url, "accessId": ACCESS_KEY_ID, "accessSecret": SECRET_ACCESS_KEY, "bucketName": "own"}
    return {**config, **changes}


# --- where a result goes


def test_auto_stays_inline_while_the_result_fits(worker: Worker, s3: S3Server) -> None:
    """A result within the limit is base64, although there is a bucket, and nothing is stored."""
    before = s3.stored()
    [image] = run(configured(worker, bucket=s3.bucket()))["images"]

    assert image["type"] == "base64"
    assert hashlib.sha256(base64.b64decode(image["data"])).hexdigest() == image["sha256"]
    assert s3.stored() == before


def test_auto_goes_to_the_bucket_beyond_the_limit(worker: Worker, s3: S3Server) -> None:
    """A result that does not fit is stored, all pictures of it; its addresses give what the result says."""
    small = configured(worker, bucket=s3.bucket(prefix="auto"), max_result_bytes=8000)
    result = run(small, num_images=3)

    assert [image["type"] for image in result["images"]] == ["s3_url"] * 3
    assert s3.stored()[:1] == ["auto/job-1/flux-dev_00001_.png"]
    for image in result["images"]:
        content = requests.get(image["data"], timeout=10).content
        assert (len(content), hashlib.sha256(content).hexdigest()) == (image["bytes"], image["sha256"])
        assert Image.open(io.BytesIO(content)).size == (image["width"], image["height"])
    assert len(json.dumps(result)) < 8000


def test_s3_is_used_where_it_is_asked_for(worker: Worker, s3: S3Server) -> None:
    """`delivery: s3` stores what would fit inline too, under the worker's public address."""
    bucket = s3.bucket(prefix="asked for", public_url="https://cdn.example")
    [image] = run(configured(worker, bucket=bucket), delivery="s3", output_format="webp")["images"]

    assert image["data"] == "https://cdn.example/asked%20for/job-1/flux-dev_00001_.webp"
    assert "asked for/job-1/flux-dev_00001_.webp" in s3.stored()


def test_base64_stays_inline_although_there_is_a_bucket(worker: Worker, s3: S3Server) -> None:
    """`delivery: base64` beyond the limit is an error with the bytes, the limit and what to do; nothing is stored."""
    before = s3.stored()
    report = report_of(configured(worker, bucket=s3.bucket(), max_result_bytes=8000), delivery="base64")

    assert report.code is ErrorCode.OUTPUT_TOO_LARGE
    assert report.details["limit"] == 8000
    assert report.details["bytes"] > 8000
    assert "webp" in report.message
    assert "BUCKET_ENDPOINT_URL" in report.message
    assert s3.stored() == before


def test_without_a_bucket_auto_is_too_large(worker: Worker, simulator: Simulator) -> None:
    """There is nowhere to put it: the same error, and nothing of the job is left."""
    assert report_of(configured(worker, max_result_bytes=8000)).code is ErrorCode.OUTPUT_TOO_LARGE
    assert simulator.history_ids == []


def test_s3_without_a_bucket_is_refused_before_comfyui_hears_of_it(worker: Worker, simulator: Simulator) -> None:
    """`delivery: s3` on a worker without a bucket costs no GPU time."""
    report = report_of(worker, delivery="s3")

    assert report.code is ErrorCode.INVALID_INPUT
    assert [fault["path"] for fault in report.details["faults"]] == ["delivery"]
    assert ("POST", "/prompt") not in simulator.requests


def test_a_graph_is_refused_where_the_worker_takes_none(worker: Worker, simulator: Simulator) -> None:
    """WORKER_ALLOW_GRAPHS=false: the fault names the templates, and stands beside those of the bucket."""
    graph = {"1": {"class_type": "EmptyImage", "inputs": {}}}
    job = {"id": "job-1", "input": {"workflow": graph}, "s3Config": "text"}
    with pytest.raises(JobError, match=r"flux-dev-img2img, flux-dev-txt2img") as info:
        run_job(configured(worker, allow_graphs=False), job, Control())

    assert [fault["path"] for fault in info.value.report.details["faults"]] == ["workflow", "s3Config"]
    assert simulator.requests == []


def test_a_job_s_own_bucket_is_used(worker: Worker, s3: S3Server) -> None:
    """RunPod's s3Config names the bucket that its pictures go to, and not the worker's."""
    with_bucket = configured(worker, bucket=s3.bucket(public_url="https://cdn.example"))
    [image] = run(with_bucket, own_bucket(s3), delivery="s3")["images"]

    assert s3.stored("own") == ["job-1/flux-dev_00001_.png"]
    assert image["data"].startswith(f"{s3.url}/own/job-1/")
    assert hashlib.sha256(requests.get(image["data"], timeout=10).content).hexdigest() == image["sha256"]


def test_a_half_s3_config_is_refused_before_comfyui_hears_of_it(
    worker: Worker, simulator: Simulator, s3: S3Server
) -> None:
    """Each key that is missing or wrong is a fault, beside what else the job may not do."""
    config = own_bucket(s3, accessSecret="")
    del config["bucketName"]
    report = report_of(worker, config, delivery="s3")

    assert report.code is ErrorCode.INVALID_INPUT
    assert [fault["path"] for fault in report.details["faults"]] == ["s3Config.accessSecret", "s3Config.bucketName"]
    assert ("POST", "/prompt") not in simulator.requests


def test_a_foreign_http_endpoint_is_refused(worker: Worker, simulator: Simulator, s3: S3Server) -> None:
    """An http endpoint is taken only where it is the worker's own."""
    report = report_of(worker, own_bucket(s3), delivery="s3")

    assert [fault["path"] for fault in report.details["faults"]] == ["s3Config.endpointUrl"]
    assert s3.url not in report.to_json()
    assert ("POST", "/prompt") not in simulator.requests


def test_a_bucket_that_refuses_is_one_error(worker: Worker, simulator: Simulator, s3: S3Server) -> None:
    """A wrong key of the job's ends in output_not_stored, without it; nothing of the job is left in ComfyUI."""
    with_bucket = configured(worker, bucket=s3.bucket())
    report = report_of(with_bucket, own_bucket(s3, accessSecret="wrong-secret"), delivery="s3")

    assert report.code is ErrorCode.OUTPUT_NOT_STORED
    assert "wrong-secret" not in report.to_json()
    assert simulator.history_ids == []


def test_a_bucket_that_stalls_ends_with_the_job_s_time(worker: Worker, s3: S3Server) -> None:
    """The job's own deadline holds for storing too; a late one has `store_s` all the same."""
    with StalledS3() as stalled:
        slow = replace(configured(worker, bucket=stalled.instead_of(s3.bucket())), store_s=1.5)
        begun_at = time.monotonic()
        report = report_of(slow, delivery="s3", timeout_s=1)

        assert report.code is ErrorCode.DEADLINE_EXCEEDED
        assert "the results were not all uploaded to the bucket" in report.message
        assert 1.5 <= time.monotonic() - begun_at < 5
        assert report.details["after_s"] >= 1.5


def test_a_job_can_be_cancelled_while_it_is_stored(worker: Worker, s3: S3Server) -> None:
    """A cancel ends a job that waits for its bucket; ComfyUI's death does not, since the pictures are there."""
    cancelled = JobError.because(ErrorCode.CANCELLED, "The job was cancelled.")
    died = JobError.because(ErrorCode.COMFYUI_UNAVAILABLE, "ComfyUI died.")
    asked: list[JobError] = []
    with StalledS3() as stalled:
        slow = configured(worker, bucket=stalled.instead_of(s3.bucket()))

        def stop() -> JobError | None:
            if not stalled.paths:
                return None
            asked.append(died if len(asked) < 3 else cancelled)
            return asked[-1]

        with pytest.raises(JobError) as info:
            run_job(slow, {"id": "job-1", "input": {**SMALL, "delivery": "s3"}}, Control(stop))

    assert info.value is cancelled
    assert asked == [died, died, died, cancelled]


def test_a_bucket_that_is_not_used_is_not_asked(worker: Worker, s3: S3Server) -> None:
    """A bucket with settings that make no client does not fail a job that fits inline."""
    broken = replace(s3.bucket(), region="no such/region")

    assert run(configured(worker, bucket=broken))["images"][0]["type"] == "base64"


def test_no_address_is_a_local_path(worker: Worker, s3: S3Server, tmp_path: Path) -> None:
    """An address is one that others can open; no folder of this machine is in the result."""
    [image] = run(configured(worker, bucket=s3.bucket()), delivery="s3")["images"]

    assert image["data"].startswith("http")
    assert str(tmp_path) not in json.dumps(image)


@pytest.mark.parametrize("fields", [("data",), ("image",), ("data", "image")], ids="+".join)
@pytest.mark.parametrize("delivery", ["base64", "s3"])
def test_an_image_is_under_the_keys_that_are_set(
    worker: Worker, s3: S3Server, fields: tuple[str, ...], delivery: str
) -> None:
    """WORKER_IMAGE_FIELD names the keys of base64 and addresses alike; our own client reads any of them."""
    output = run(configured(worker, bucket=s3.bucket(), image_fields=fields), delivery=delivery)
    [image] = output["images"]
    read = read_result(JobStatus("1", JobState.SUCCEEDED, output=output), "comfyui")

    assert {"data", "image"} & image.keys() == set(fields)
    assert len({image[field] for field in fields}) == 1
    assert (image["type"] == "s3_url") == (delivery == "s3")
    assert read.image.size == (64, 64)


def test_an_image_under_two_keys_counts_twice(worker: Worker) -> None:
    """The limit is on the JSON that travels."""
    twice = configured(worker, image_fields=("data", "image"))
    limit = len(json.dumps(run(twice, metadata=False))) - 1

    assert report_of(configured(twice, max_result_bytes=limit), metadata=False).details["bytes"] > limit
    assert run(configured(worker, max_result_bytes=limit))["images"]


# --- how large it is


def entries_of(outputs: list[JobOutput], beside: dict[str, Any]) -> dict[str, Any]:
    """Return the result that `outputs` inline and `beside` make, with what is added to it later."""
    images, files = ResultPacker("base64", 10**9, None).entries(outputs, [], beside)
    timings = dict.fromkeys(("queue_s", "execute_s", "fetch_s", "encode_s", "total_s"), 86_400.1234)
    return {"images": images, "files": files, **beside, "timings": timings}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(0, 40_000), max_size=12),
    name=st.text(max_size=300),
    text=st.text(max_size=500),
    seed=st.none() | st.integers(0, 2**63 - 1),
)
def test_the_measured_size_is_that_of_the_result(sizes: list[int], name: str, text: str, seed: int | None) -> None:
    """What is measured is never below the JSON that travels, and at most 2 KB a picture above it."""
    facts = {"width": 2048, "height": 2048, "seed": seed}
    outputs = [JobOutput(f"{name}_{number}.png", bytes(size), "image/png", facts) for number, size in enumerate(sizes)]
    beside = {"inputs": {"prompt": text}, "texts": [text] * 3}
    measured = inline_size(outputs, beside)
    real = len(json.dumps(entries_of(outputs, beside)))

    assert real <= measured <= real + 2048 * max(1, len(sizes))


def test_the_size_of_a_real_result_is_measured(worker: Worker) -> None:
    """The limit is on the result as it travels: the measured size fits, one byte less does not."""
    prompt = "ein König mit 👑" * 200
    asked: dict[str, Any] = {"prompt": prompt, "num_images": 4}
    measured = report_of(configured(worker, max_result_bytes=1), **asked).details["bytes"]
    result = run(configured(worker, max_result_bytes=measured), **asked)

    assert measured - 4 * 2048 <= len(json.dumps(result)) <= measured
    assert report_of(configured(worker, max_result_bytes=measured - 1), **asked).code is ErrorCode.OUTPUT_TOO_LARGE


def test_what_a_bucket_does_not_take_away_is_measured_too(s3: S3Server) -> None:
    """Texts stay in the result: where they alone do not fit, it is too large in spite of a bucket."""
    stored: list[JobOutput] = []

    def store(output: JobOutput) -> str:
        stored.append(output)
        return s3.url

    with pytest.raises(JobError, match="output_too_large"):
        ResultPacker("s3", 10_000, store).entries(
            [JobOutput("a.png", b"", "image/png", {})], [], {"texts": ["x" * 10_000]}
        )

    assert stored == []


# --- what it is


def test_a_picture_that_the_graph_encoded_itself_stays_as_it_is(workflows: Mapping[str, Workflow]) -> None:
    """A JPEG of a save node of the graph's own is delivered with its own type, whatever output_format says."""
    jpeg = picture("JPEG")
    result = PromptResult("id", (SavedImage(jpeg, "photo"),), (), ())
    request = read_request({"prompt": "x", "seed": 1, "output_format": "webp"}, workflows)
    [output] = job_outputs(request, request.render(lambda: 0), (result,)).images

    assert output.data == jpeg
    assert (output.mime_type, output.filename) == ("image/jpeg", "photo_00001_.jpg")


def test_a_picture_that_cannot_be_read_is_handed_on_with_a_warning(workflows: Mapping[str, Workflow]) -> None:
    """The job has been paid for, so its caller gets what ComfyUI sent."""
    result = PromptResult("id", (SavedImage(b"no picture", "photo"),), (), ())
    request = read_request({"prompt": "x", "seed": 1}, workflows)

    outputs = job_outputs(request, request.render(lambda: 0), (result,))

    assert [image.data for image in outputs.images] == [b"no picture"]
    assert outputs.images[0].facts == {"seed": 1}
    assert outputs.warnings == ("photo_00001_.bin cannot be read as a picture",)


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_metadata_is_written_unless_it_is_not_wanted(worker: Worker, output_format: str) -> None:
    """The file says prompt and seed, or nothing of them where `metadata` is false."""
    prompt = "a very particular knight"
    files = [
        base64.b64decode(run(worker, prompt=prompt, output_format=output_format, metadata=wanted)["images"][0]["data"])
        for wanted in (True, False)
    ]
    told = [json.dumps(str(Image.open(io.BytesIO(file)).getexif().get_ifd(0x8769))) + str(file) for file in files]
    wide = b"\0".join(letter.encode() for letter in prompt)

    assert [prompt in text or wide in file for text, file in zip(told, files, strict=True)] == [True, False]


def files_of(workflows: Mapping[str, Workflow], *files: SavedFile) -> list[JobOutput]:
    """Return the `files` of a job that wrote these."""
    request = read_request({"prompt": "x", "seed": 1}, workflows)
    return list(job_outputs(request, request.render(lambda: 0), [PromptResult("id", (), files, ())]).files)


def test_what_is_no_picture_comes_as_a_file(workflows: Mapping[str, Workflow]) -> None:
    """A file that is no output image has its name, type and hash, and no size in pixels."""
    outputs = files_of(workflows, SavedFile(b"video", "a.mp4"), SavedFile(b"?", "b.unknown-kind"))

    assert [output.mime_type for output in outputs] == ["video/mp4", "application/octet-stream"]
    assert outputs[0].data == b"video"
    assert "width" not in outputs[0].entry("base64", "")


def test_files_of_one_name_stay_apart(workflows: Mapping[str, Workflow]) -> None:
    """Two nodes may write the same name into two folders: neither overwrites the other in a bucket."""
    written = [SavedFile(data, name) for data in (b"1", b"2", b"3") for name in ("a.mp4", "b.mp4")]

    assert [(output.filename, output.data) for output in files_of(workflows, *written)] == [
        ("a.mp4", b"1"),
        ("b.mp4", b"1"),
        ("2_a.mp4", b"2"),
        ("2_b.mp4", b"2"),
        ("3_a.mp4", b"3"),
        ("3_b.mp4", b"3"),
    ]


class Talkative(ComfyServer):
    """A ComfyUI in which a custom node has made a video and a text beside the pictures, which the simulator has not."""

    def history(self, prompt_id: str, *, timeout_s: float = 30) -> object:
        """Return what ComfyUI has, with the outputs of that node."""
        answer: Any = super().history(prompt_id, timeout_s=timeout_s)
        video = {"filename": "knight.mp4", "subfolder": "", "type": "output"}
        if prompt_id in answer:
            answer[prompt_id]["outputs"]["99"] = {"gifs": [video], "text": ["a knight in armour"]}
        return answer

    def view(self, file: OutputFile) -> bytes:
        """Return the video, or what ComfyUI has."""
        return b"a video" if file.filename == "knight.mp4" else super().view(file)


def test_videos_and_texts_stand_beside_the_pictures(worker: Worker, simulator: Simulator, s3: S3Server) -> None:
    """A graph's other outputs come under `files`, delivered as pictures are, and `texts`."""
    server = Talkative(simulator.url)
    talking = replace(configured(worker, bucket=s3.bucket(prefix="talk")), server=server)
    inline, stored = run(talking), run(talking, delivery="s3")
    server.close()

    [file] = inline["files"]
    assert (file["filename"], file["mime_type"], base64.b64decode(file["data"])) == (
        "knight.mp4",
        "video/mp4",
        b"a video",
    )
    assert requests.get(stored["files"][0]["data"], timeout=10).content == b"a video"
    assert inline["texts"] == stored["texts"] == ["a knight in armour"]
    assert list(inline)[:2] == ["images", "files"]


def test_what_there_is_not_has_no_key(worker: Worker) -> None:
    """A result without other outputs has neither `files` nor `texts`."""
    assert not {"files", "texts"} & run(worker).keys()


# --- what is left of it


def test_uploads_and_outputs_are_deleted(
    simulator: Simulator, worker: Worker, workflows: Mapping[str, Workflow]
) -> None:
    """An upload, a file that was saved after a lost socket, and their folders are gone with the job."""
    [graph] = render(workflows["flux-dev-img2img"], {"image": "in.png", "width": 64, "height": 64})
    simulator.faults.drop_socket(at_step=1)
    image = base64.b64encode(picture()).decode()
    job_input = {"workflow": graph, "images": [{"name": "in.png", "image": image}]}
    result = run_job(worker, {"id": "test", "input": job_input}, Control())

    assert result["images"]
    assert list(simulator.input_dir.iterdir()) == []
    assert list(simulator.output_dir.iterdir()) == []
    assert list(simulator.temp_dir.iterdir()) == []
