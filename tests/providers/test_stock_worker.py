"""The provider for the stock worker-comfyui: one graph for several images, results and errors."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from PIL import Image

from comfy_client.client import Client, client_from_env
from comfy_client.providers.stock_worker import merge_graphs, stock_input
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.request.reading import read_request
from comfy_core.workflows import Workflow
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_entry, png


@pytest.fixture
def client(platform: RunPodPlatform) -> Iterator[Client]:
    """A client of an endpoint with the stock worker."""
    with client_from_env({**platform.client_env(), "IMAGE_GENERATION_PROVIDER": "runpod"}, timeout_s=60) as client:
        yield client


def respond_like_stock_worker(job: Body) -> Body:
    """Respond like worker-comfyui: an image for each SaveImage node, in another order, without seed or size."""
    graph = job["input"]["workflow"]
    prefixes = [node["inputs"]["filename_prefix"] for node in graph.values() if node["class_type"] == "SaveImage"]
    images = [
        {key: value for key, value in image_entry(png(8, number)).items() if key in {"type", "data"}}
        | {"filename": f"{prefix}_00001_.png"}
        for number, prefix in enumerate(prefixes)
    ]
    return {"output": {"images": images[::-1]}}


def rendered_request(workflows: Mapping[str, Workflow], **inputs: Any) -> Any:  # noqa: ANN401 - a Rendered
    """Return a request with these inputs, rendered."""
    return read_request({"prompt": "a knight", **inputs}, workflows).render(lambda: 7)


def test_several_images_become_one_graph(workflows: Mapping[str, Workflow]) -> None:
    """The merged graph has each loader once, and the nodes that depend on the seed once for each image."""
    graphs = rendered_request(workflows, num_images=3, seed=1).graphs
    merged = merge_graphs(graphs)
    class_types = [node["class_type"] for node in merged.values()]

    assert class_types.count("UNETLoader") == class_types.count("VAELoader") == 1
    assert class_types.count("KSampler") == class_types.count("VAEDecode") == class_types.count("SaveImage") == 3
    seeds = [node["inputs"]["seed"] for node in merged.values() if node["class_type"] == "KSampler"]
    assert seeds == [1, 2, 3]
    for node in merged.values():
        for value in node["inputs"].values():
            assert not isinstance(value, list) or value[0] in merged


def test_a_single_image_keeps_its_graph(workflows: Mapping[str, Workflow]) -> None:
    """A single graph is not changed."""
    [graph] = rendered_request(workflows, seed=1).graphs

    assert merge_graphs([graph]) == graph


def test_file_names_are_unique_and_contain_the_seed(workflows: Mapping[str, Workflow]) -> None:
    """An image's prefix has the seed and the request's id: worker-comfyui deletes no file and returns no seed."""
    body = stock_input(rendered_request(workflows, num_images=2, seed=41), "0123abcd")
    prefixes = {node["inputs"].get("filename_prefix") for node in body["workflow"].values()} - {None}

    assert prefixes == {"flux-dev_seed41_0_0123abcd", "flux-dev_seed42_1_0123abcd"}
    assert set(body) == {"workflow"}


def test_images_are_in_order_with_seed_and_metadata(platform: RunPodPlatform, client: Client) -> None:
    """Images are in the order of the request, with seed, usual file name, and metadata."""
    with ScriptedWorker(platform, respond_like_stock_worker):
        result = client.txt2img("a knight", seed=41, num_images=2)

    assert [image.seed for image in result.images] == [41, 42]
    assert [image.filename for image in result.images] == ["flux-dev_00001_.png"] * 2
    assert [image.pil().getpixel((0, 0)) for image in result.images] == [(0, 0, 80), (1, 0, 80)]
    assert "Seed" not in str(result.images[0].pil().text)  # type: ignore[attr-defined] # PNG images have it
    assert "seed: 42" in result.images[1].pil().text["parameters"]  # type: ignore[attr-defined] # PNG images have it
    assert (result.seed, result.workflow, result.inputs["num_images"]) == (41, "flux-dev-txt2img", 2)


def test_the_client_converts_to_the_requested_format(platform: RunPodPlatform, client: Client) -> None:
    """The client converts worker-comfyui's PNG to the requested format."""
    with ScriptedWorker(platform, respond_like_stock_worker):
        image = client.txt2img("a knight", output_format="webp").image

    assert (image.mime_type, image.filename) == ("image/webp", "flux-dev_00001_.webp")
    assert Image.open(io.BytesIO(image.bytes)).format == "WEBP"


def test_another_process_still_has_the_seed(platform: RunPodPlatform, client: Client) -> None:
    """Another client that opens the job by its id gets the images with their seeds."""
    with ScriptedWorker(platform, respond_like_stock_worker):
        job_id = client.submit(prompt="a knight", seed=41, num_images=2).id
        with client_from_env({**platform.client_env(), "IMAGE_GENERATION_PROVIDER": "runpod"}) as other_client:
            result = other_client.job(job_id).wait()

    assert [image.seed for image in result.images] == [41, 42]
    assert result.seed == 41


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("Workflow validation failed:\n• Node 30 (errors): …", ErrorCode.WORKFLOW_REJECTED),
        ("Workflow execution error: Node Type: KSampler, Node ID: 3, Message: boom", ErrorCode.EXECUTION_FAILED),
        (
            "Workflow execution error: Node Type: KSampler, Node ID: 3, Message: CUDA out of memory",
            ErrorCode.OUT_OF_MEMORY,
        ),
        ("ComfyUI server (127.0.0.1:8188) not reachable after multiple retries.", ErrorCode.COMFYUI_UNAVAILABLE),
        ("Something of tomorrow", ErrorCode.UNRECOGNIZED),
    ],
)
def test_errors_have_our_codes(platform: RunPodPlatform, client: Client, error: str, code: ErrorCode) -> None:
    """worker-comfyui's error text is the message, and is mapped to an error code, or to `unrecognized`."""
    failure = {"error": error, "output": {"details": ["x"]}}
    with ScriptedWorker(platform, lambda _: failure), pytest.raises(JobError) as info:
        client.txt2img("a knight")

    assert info.value.code is code
    assert info.value.report.message == error


def test_a_run_without_images_is_an_error(platform: RunPodPlatform, client: Client) -> None:
    """The status `success_no_images` raises no_output."""
    nothing = {"output": {"status": "success_no_images", "images": []}}
    with ScriptedWorker(platform, lambda _: nothing), pytest.raises(JobError) as info:
        client.txt2img("a knight")

    assert info.value.code is ErrorCode.NO_OUTPUT


def test_a_partial_result_has_warnings(platform: RunPodPlatform, client: Client) -> None:
    """If the output has images and errors, the errors become warnings of the result."""
    with ScriptedWorker(
        platform, lambda job: {"output": {**respond_like_stock_worker(job)["output"], "errors": ["one node failed"]}}
    ):
        assert client.txt2img("a knight").warnings == ("one node failed",)


def test_delivery_s3_and_a_signed_webhook_are_rejected(platform: RunPodPlatform, client: Client) -> None:
    """`delivery: s3` and `webhook`, which worker-comfyui does not have, are rejected before anything is sent."""
    with pytest.raises(JobError, match=r"2 faults.*worker-comfyui.*worker-comfyui"):
        client.txt2img("a knight", delivery="s3", webhook={"url": "https://me"})

    assert platform.submissions == 0
