"""Jobs from the request to the result: the promises of docs/api.md, on the simulator or a real ComfyUI."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from PIL import Image

from comfy_core.comfyui.prompt_monitor import WaitLimits
from comfy_core.comfyui.run import run_graphs
from comfy_core.comfyui.server import ComfyServer
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, JobError
from comfy_core.graphs import Graph
from comfy_core.workflows import Workflow, render
from simulators.waiting import until
from tests.comfyui.conftest import PATIENT_LIMITS, no_reason_to_stop, png

RunJob = Callable[[dict[str, Any]], dict[str, Any]]
GetJson = Callable[[str], Any]


def image_of(result: dict[str, Any], number: int = 0) -> Image.Image:
    """Return an image of a result, decoded."""
    return Image.open(io.BytesIO(base64.b64decode(result["images"][number]["data"])))


def b64(data: bytes) -> str:
    """Return `data` as base64, as a request contains it."""
    return base64.b64encode(data).decode()


def becomes_idle(get_json: GetJson) -> bool:
    """Wait until ComfyUI's queue is empty; return whether it became empty in time."""
    return until(lambda: get_json("/queue") == {"queue_running": [], "queue_pending": []})


def graph_with(workflows: Mapping[str, Workflow], **changes: dict[str, Any] | None) -> Graph:
    """Return the small txt2img graph with some nodes replaced, added, or removed (None). Node 9 is the argument n9."""
    values = {"prompt": "a knight", "seed": 5, "steps": 2, "width": 64, "height": 64, "sampler": "euler"}
    [graph] = render(workflows["flux-dev-txt2img"], values)
    for node_id, node in changes.items():
        if node is None:
            del graph[node_id.lstrip("n")]
        else:
            graph[node_id.lstrip("n")] = node
    return graph


def test_txt2img_returns_the_requested_image(run: RunJob) -> None:
    """A prompt becomes one PNG of the requested size, with its hash, its seed, and the inputs as used."""
    result = run({"prompt": "a knight", "seed": 7, "width": 96, "height": 64})

    [image] = result["images"]
    data = base64.b64decode(image["data"])
    assert image_of(result).size == (96, 64) == (image["width"], image["height"])
    assert (image["type"], image["mime_type"], image["seed"], image["bytes"]) == ("base64", "image/png", 7, len(data))
    assert image["sha256"] == hashlib.sha256(data).hexdigest()
    assert image["filename"] == "flux-dev_00001_.png"
    assert result["seed"] == 7
    assert result["inputs"]["guidance"] == 3.5
    assert set(result["timings"]) == {"queue_s", "execute_s", "fetch_s", "encode_s", "total_s"}
    assert result["versions"]["comfyui"]
    assert json.dumps(result, allow_nan=False)


def test_the_same_request_returns_the_same_file(run: RunJob) -> None:
    """The same request returns the same bytes again, whatever earlier jobs left in ComfyUI's cache and folders."""
    first, second = (run({"prompt": "a knight", "seed": 11})["images"] for _ in range(2))

    assert first == second


def test_another_seed_returns_another_image(run: RunJob) -> None:
    """Two jobs without a seed get different random seeds, and different images."""
    results = [run({"prompt": "a knight"}), run({"prompt": "a knight"})]

    assert results[0]["seed"] != results[1]["seed"]
    assert image_of(results[0]).tobytes() != image_of(results[1]).tobytes()


def test_each_of_several_images_can_be_generated_alone(run: RunJob) -> None:
    """num_images uses consecutive seeds, and requesting image i alone with its seed returns the same file."""
    several = run({"prompt": "a knight", "seed": 20, "num_images": 3})
    alone = run({"prompt": "a knight", "seed": 22})

    assert [image["seed"] for image in several["images"]] == [20, 21, 22]
    assert len(several["prompt_ids"]) == 3
    assert several["images"][2]["sha256"] == alone["images"][0]["sha256"]


def test_img2img_keeps_the_size_of_its_image(run: RunJob) -> None:
    """Without width and height the result has the input image's size, with each side rounded to a multiple of 16."""
    result = run({"prompt": "a knight", "image": b64(png(90, 70)), "strength": 0.5, "seed": 1})

    assert image_of(result).size == (96, 64)
    assert (result["inputs"]["width"], result["inputs"]["height"]) == (96, 64)
    assert "image" not in result["inputs"]


def test_img2img_depends_on_its_image(run: RunJob) -> None:
    """Two input images with otherwise equal inputs give two different results."""
    results = [
        run({"prompt": "x", "image": b64(png(64, 64, colour)), "strength": 0.3, "seed": 1})
        for colour in ("red", "blue")
    ]

    assert image_of(results[0]).tobytes() != image_of(results[1]).tobytes()


def test_the_graph_and_the_inputs_are_in_the_file(run: RunJob) -> None:
    """A PNG contains its graph, as ComfyUI's own files do, and its prompt as text.

    If `metadata` is false, the PNG has no graph and the same pixels.
    """
    with_metadata = image_of(run({"prompt": "a knight", "seed": 3}))
    without_metadata = image_of(run({"prompt": "a knight", "seed": 3, "metadata": False}))

    assert isinstance(with_metadata, Image.Image)
    graph = json.loads(with_metadata.info["prompt"])
    assert graph["8"]["inputs"]["seed"] == 3
    assert graph["10"]["class_type"] == "SaveImage"
    assert with_metadata.info["parameters"].startswith("a knight\n")
    assert "prompt" not in without_metadata.info
    assert with_metadata.tobytes() == without_metadata.tobytes()


def test_no_prompt_of_a_job_is_left(run: RunJob, get_json: GetJson) -> None:
    """After a job its prompts are neither in the queue nor in the history."""
    result = run({"prompt": "a knight", "image": b64(png(64, 64)), "num_images": 2})

    history = get_json("/history")
    assert not set(result["prompt_ids"]) & history.keys()
    assert get_json("/queue") == {"queue_running": [], "queue_pending": []}


def test_a_missing_lora_is_model_missing(run: RunJob) -> None:
    """The error names the LoRA that ComfyUI does not have, its folder, and the available LoRAs."""
    with pytest.raises(JobError) as info:
        run({"prompt": "a knight", "loras": [{"name": "no-such.safetensors"}]})

    assert "models/loras" in str(info.value)
    assert info.value.code is ErrorCode.MODEL_MISSING
    assert info.value.report.details["missing"][0]["value"] == "no-such.safetensors"
    assert "lora_name" in info.value.report.details["available"]


def test_a_missing_sampler_lists_the_available_ones(run: RunJob) -> None:
    """ComfyUI's refusal does not list the names of samplers, so they are read from /object_info."""
    with pytest.raises(JobError) as info:
        run({"prompt": "a knight", "sampler": "eulerr"})

    assert info.value.code is ErrorCode.MODEL_MISSING
    assert "euler" in info.value.report.details["available"]["sampler_name"]


def test_a_caller_s_graph_runs_with_images_and_overrides(run: RunJob, workflows: Mapping[str, Workflow]) -> None:
    """A graph loads an image by the name that the request gave it, and overrides change values of the graph."""
    [graph] = render(workflows["flux-dev-img2img"], {"image": "me.png", "prompt": "x", "width": 64, "height": 64})
    request = {
        "workflow": graph,
        "images": [{"name": "me.png", "image": f"data:image/png;base64,{b64(png(64, 64))}"}],
        "overrides": {"KSampler.steps": 1, "8.seed": 99},
    }
    result = run(request)

    [image] = result["images"]
    assert image["seed"] is None
    assert result["inputs"] == {"overrides": {"KSampler.steps": 1, "8.seed": 99}}
    assert json.loads(image_of(result).info["prompt"])["8"]["inputs"]["seed"] == 99
    assert "me.png" in image_of(result).info["prompt"]


def graph_that_loads(value: str) -> Graph:
    """Return a graph that saves the image that it loads."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": value}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }


def test_an_image_is_loaded_by_its_annotated_name(run: RunJob) -> None:
    """`in.png [input]`, the spelling in exported graphs, loads the image that the request contains as `in.png`."""
    result = run(
        {"workflow": graph_that_loads("in.png [input]"), "images": [{"name": "in.png", "image": b64(png(24, 16))}]}
    )

    assert image_of(result).size == (24, 16)


def test_an_image_in_the_graph_is_loaded(run: RunJob) -> None:
    """Base64 in LoadImage is uploaded, and the graph has the name of the upload instead."""
    result = run({"workflow": graph_that_loads(b64(png(24, 16)))})

    assert image_of(result).size == (24, 16)
    assert json.loads(str(image_of(result).info["prompt"]))["1"]["inputs"]["image"].startswith("upload-1")


def test_a_broken_node_without_an_output_is_removed(run: RunJob, workflows: Mapping[str, Workflow]) -> None:
    """The rest of the graph runs, and a warning names the removed node."""
    loose = {"class_type": "VAEDecode", "inputs": {"samples": ["99", 0]}}

    result = run({"workflow": graph_with(workflows, n20=loose)})

    assert len(result["images"]) == 1
    assert any("workflow.20.inputs.samples: links to node" in warning for warning in result["warnings"])


@pytest.mark.parametrize("given", [{}, {"extra_pnginfo": {"workflow": {"version": 1}}}], ids=["none", "own"])
def test_extra_data_is_sent_with_each_prompt(
    server: ComfyServer, get_json: GetJson, workflows: Mapping[str, Workflow], given: dict[str, Any]
) -> None:
    """ComfyUI gets the caller's extra_pnginfo, or an empty one because some nodes fail without it, and a client id."""
    seen: list[dict[str, Any]] = []

    def record_running() -> None:
        seen.extend(item[3] for item in get_json("/queue")["queue_running"])

    sampler = graph_with(workflows)["8"]
    slow = graph_with(workflows, n8={**sampler, "inputs": {**sampler["inputs"], "steps": 20, "seed": len(given)}})
    run_graphs(server, [slow], [], PATIENT_LIMITS, record_running, extra_data=given)

    assert seen
    assert all(extra["extra_pnginfo"] == given.get("extra_pnginfo", {}) for extra in seen)
    assert all(extra["client_id"] for extra in seen)


def test_a_graph_with_two_save_nodes_returns_both_images(run: RunJob, workflows: Mapping[str, Workflow]) -> None:
    """The image of each save node is returned, under the name that the node gives it."""
    second = {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "deep/other"}}
    result = run({"workflow": graph_with(workflows, n21=second)})

    assert [image["filename"] for image in result["images"]] == ["flux-dev_00001_.png", "other_00001_.png"]
    assert image_of(result, 0).tobytes() == image_of(result, 1).tobytes()


def test_a_batch_returns_all_its_images(run: RunJob, workflows: Mapping[str, Workflow]) -> None:
    """One prompt that generates two images returns two."""
    batch = {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}}
    result = run({"workflow": graph_with(workflows, n7=batch)})

    assert len(result["images"]) == 2
    assert image_of(result, 0).tobytes() != image_of(result, 1).tobytes()


def test_a_graph_that_only_previews_is_rejected(run: RunJob, workflows: Mapping[str, Workflow]) -> None:
    """PreviewImage saves nothing: the error says that the graph needs a SaveImage node."""
    preview = {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}}
    with pytest.raises(JobError) as info:
        run({"workflow": graph_with(workflows, n10=preview)})

    assert info.value.code is ErrorCode.WORKFLOW_REJECTED
    assert "SaveImage" in info.value.report.message


def test_an_unknown_node_is_a_rejected_workflow(run: RunJob, workflows: Mapping[str, Workflow]) -> None:
    """A node type that ComfyUI does not have is named in the error."""
    with pytest.raises(JobError) as info:
        run({"workflow": graph_with(workflows, n9={"class_type": "NoSuchNode", "inputs": {}})})

    assert info.value.code is ErrorCode.WORKFLOW_REJECTED
    assert "NoSuchNode" in info.value.report.message


@pytest.mark.parametrize(
    ("node", "field_suffix"),
    [
        ({"class_type": "LoadImage", "inputs": {"image": "../output/x.png"}}, "workflow.17.inputs.image"),
        ({"class_type": "LoadImage", "inputs": {"image": "x.png [output]"}}, "workflow.17.inputs.image"),
        ({"class_type": "LoadImageMask", "inputs": {"image": "/etc/passwd", "channel": "red"}}, ".image"),
        ({"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "../up"}}, ".filename_prefix"),
    ],
)
def test_a_graph_that_leaves_its_folders_is_an_invalid_input(
    run: RunJob, get_json: GetJson, workflows: Mapping[str, Workflow], node: dict[str, Any], field_suffix: str
) -> None:
    """A path outside the job's folders is rejected with the name of its input, and nothing is queued."""
    with pytest.raises(JobError) as info:
        run({"workflow": graph_with(workflows, n17=node)})

    assert info.value.code is ErrorCode.INVALID_INPUT
    [fault] = info.value.report.details["faults"]
    assert fault["path"].endswith(field_suffix)
    assert get_json("/queue") == {"queue_running": [], "queue_pending": []}


def test_an_override_that_leaves_its_folders_is_an_invalid_input(run: RunJob) -> None:
    """A path outside the job's folders is rejected in an override of a template too."""
    with pytest.raises(JobError) as info:
        run({"prompt": "a knight", "overrides": {"10.filename_prefix": "/srv/x"}})

    assert info.value.code is ErrorCode.INVALID_INPUT
    assert "workflow.10.inputs.filename_prefix: must not be an absolute path" in info.value.report.message


def test_every_missing_node_is_named_by_class_and_id(run: RunJob, workflows: Mapping[str, Workflow]) -> None:
    """Each missing node is named. Notes of the editor are removed, and are not reported as missing."""
    missing = {"class_type": "ImageResize+", "inputs": {}, "_meta": {"title": "My resize"}}
    note = {"class_type": "MarkdownNote", "inputs": {"text": "hi"}}
    with pytest.raises(JobError) as info:
        run({"workflow": graph_with(workflows, n17=missing, n18=missing, n19=note)})

    assert info.value.code is ErrorCode.WORKFLOW_REJECTED
    nodes = info.value.report.details["nodes"]
    assert [(node["node_id"], node["node_type"]) for node in nodes] == [
        ("17", "ImageResize+"),
        ("18", "ImageResize+"),
    ]
    assert "install its custom node" in nodes[0]["problem"]
    assert info.value.report.details["type"] == "missing_node_type"


def test_a_required_input_that_the_graph_lacks_gets_its_default(run: RunJob, workflows: Mapping[str, Workflow]) -> None:
    """Required inputs that newer versions of ComfyUI add get their defaults, with a warning in the result."""
    scaled = {
        "class_type": "ImageScale",
        "inputs": {"image": ["9", 0], "upscale_method": "area", "width": 32, "height": 32},
    }
    saved = {"class_type": "SaveImage", "inputs": {"images": ["17", 0]}}
    result = run({"workflow": graph_with(workflows, n17=scaled, n18=saved)})

    assert len(result["images"]) == 2
    assert "node 17 (ImageScale) had no crop" in result["warnings"][0]
    assert 'the default was used: "disabled"' in result["warnings"][0]


def test_a_graph_with_an_invalid_output_is_rejected_completely(
    run: RunJob, get_json: GetJson, workflows: Mapping[str, Workflow]
) -> None:
    """ComfyUI would return 200 and run the valid half; the whole job is rejected instead."""
    half = {"class_type": "SaveImage", "inputs": {"filename_prefix": "half"}}
    with pytest.raises(JobError) as info:
        run({"workflow": graph_with(workflows, n21=half)})

    assert info.value.code is ErrorCode.WORKFLOW_REJECTED
    assert [node["node_id"] for node in info.value.report.details["nodes"]] == ["21"]
    assert becomes_idle(get_json)


def test_a_node_that_fails_is_named(run: RunJob, workflows: Mapping[str, Workflow]) -> None:
    """The error of a failing node has the node's id and the exception's type."""
    wrong_clip = {
        "class_type": "DualCLIPLoader",
        "inputs": {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp8_e4m3fn.safetensors", "type": "sdxl"},
    }
    with pytest.raises(JobError) as info:
        run({"workflow": graph_with(workflows, n2=wrong_clip)})

    assert info.value.code is ErrorCode.EXECUTION_FAILED
    assert info.value.report.details["node_id"] == "8"
    assert info.value.report.details["exception_type"] == "RuntimeError"


def test_a_deadline_interrupts_the_prompt(
    server: ComfyServer, get_json: GetJson, workflows: Mapping[str, Workflow]
) -> None:
    """A run that takes too long ends at its deadline, and the next run succeeds."""
    graph = graph_with(workflows)
    graph["8"]["inputs"]["steps"] = 1000
    earlier_ids = get_json("/history").keys()
    with pytest.raises(JobError) as info:
        run_graphs(server, [graph], [], WaitLimits(timeout_s=1, queue_timeout_s=60), no_reason_to_stop)

    assert info.value.code is ErrorCode.DEADLINE_EXCEEDED
    assert info.value.report.details["after_s"] >= 1
    assert becomes_idle(get_json)
    assert len(run_graphs(server, [graph_with(workflows)], [], PATIENT_LIMITS, no_reason_to_stop).prompts) == 1
    assert get_json("/history").keys() <= earlier_ids


def test_a_cancellation_removes_the_running_and_the_waiting_prompt(
    server: ComfyServer, get_json: GetJson, workflows: Mapping[str, Workflow]
) -> None:
    """Shortly after the cancellation neither of the two queued prompts is left."""
    graph = graph_with(workflows)
    graph["8"]["inputs"]["steps"] = 1000
    cancel_requested = threading.Event()

    def reason_to_stop() -> JobError | None:
        running = get_json("/queue")["queue_running"]
        if running and not cancel_requested.is_set():
            cancel_requested.set()
        return JobError.because(ErrorCode.CANCELLED, "Cancelled.") if cancel_requested.is_set() else None

    with pytest.raises(JobError) as info:
        run_graphs(server, [graph, graph], [], PATIENT_LIMITS, reason_to_stop)

    assert info.value.code is ErrorCode.CANCELLED
    assert becomes_idle(get_json)


def test_two_runs_at_once_share_one_socket(server: ComfyServer, workflows: Mapping[str, Workflow]) -> None:
    """Two runs in two threads each get their own images over the shared websocket."""
    graphs = [graph_with(workflows), graph_with(workflows)]
    graphs[1]["8"]["inputs"]["seed"] = 6
    results: dict[int, bytes] = {}

    def run(number: int) -> None:
        [prompt] = run_graphs(server, [graphs[number]], [], PATIENT_LIMITS, no_reason_to_stop).prompts
        results[number] = prompt.images[0].data

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(250)

    alone = run_graphs(server, [graphs[1]], [], PATIENT_LIMITS, no_reason_to_stop).prompts[0].images[0].data
    assert results[1] == alone
    assert results[0] != results[1]


def test_an_invalid_url_is_rejected() -> None:
    """A ComfyUI's URL needs a scheme and a host."""
    for url in ("127.0.0.1:8188", "ftp://x", "http://", ""):
        with pytest.raises(ConfigError, match="is not a valid ComfyUI URL"):
            ComfyServer(url)
