"""Overrides of a template stay within the limits of its inputs, also for callers that may not send graphs."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from comfy_core.contract import JsonObject
from comfy_core.errors import JobError
from comfy_core.graphs import Graph
from comfy_core.request.reading import read_request
from comfy_core.request.rendering import Rendered
from comfy_core.workflows import Workflow, load_workflows


def rendered(workflows: Mapping[str, Workflow], overrides: JsonObject, **inputs: Any) -> Rendered:  # noqa: ANN401
    """Return the graphs and uploads for ComfyUI."""
    return read_request({"prompt": "a fox", "overrides": overrides, **inputs}, workflows).render(lambda: 7)


def faults_of(workflows: Mapping[str, Workflow], overrides: JsonObject, **inputs: Any) -> dict[str, str]:  # noqa: ANN401
    """Return the faults of an invalid request by the place that they override."""
    with pytest.raises(JobError) as info:
        rendered(workflows, overrides, **inputs)
    return {
        fault["path"].removeprefix("overrides").strip('[]"'): fault["message"]
        for fault in info.value.report.details["faults"]
    }


def test_expensive_overrides_are_all_rejected_at_once(workflows: Mapping[str, Workflow]) -> None:
    """Steps, sizes and a batch that exceed the schema are rejected, by id and by title."""
    by_id = {"8.steps": 10000, "7.width": 16384, "7.height": 16384, "7.batch_size": 4096}
    by_title = {
        "KSampler.steps": 101,
        "EmptySD3LatentImage.width": 2064,
        "EmptySD3LatentImage.height": 48,
        "EmptySD3LatentImage.batch_size": 0,
    }

    assert faults_of(workflows, by_id) == {
        "8.steps": "must be at most 100, not 10000",
        "7.width": "must be at most 2048, not 16384",
        "7.height": "must be at most 2048, not 16384",
        "7.batch_size": "must be at most 8, not 4096",
    }
    assert set(faults_of(workflows, by_title)) == set(by_title)


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("7.width", 1000, "must be a multiple of 16"),
        ("8.cfg", 11.5, "must be at most 11, not 11.5"),
        ("8.cfg", 0.5, "must be at least 1, not 0.5"),
        ("8.denoise", 1.5, "must be at most 1, not 1.5; a number that no input of the workflow sets"),
        ("8.denoise", -1, "must be at least 0, not -1"),
        ("8.seed", 2**63, "must be at most"),
        ("8.sampler_name", "", "must not be empty"),
        ("4.text", " ", "must not be blank"),
        ("4.text", "x" * 4097, "at most 4,096 are allowed"),
        ("3.vae_name", "x" * 4097, "at most 4,096 are allowed"),
        ("3.vae_name", 5, "must be text, not 5"),
        ("8.steps", ["7", 0], "must be a whole number, not a list"),
        ("8.model", "flux", "must be a link to a node of the workflow"),
        ("8.model", ["99", 0], "must be a link to a node of the workflow"),
        ("8.model", ["1", -1], "must be a link to a node of the workflow"),
        ("8.stepz", 5, 'has no input "stepz"; did you mean "steps"?'),
        ("8.new_input", 5, "has no input"),
        ("Nobody.steps", 5, "the graph has no node"),
    ],
)
def test_each_limit_is_reported(workflows: Mapping[str, Workflow], place: str, value: object, expected: str) -> None:
    """The rule of the input that sets a place applies; any other number is at most the graph's own number."""
    assert expected in faults_of(workflows, {place: value})[place]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("8.steps", 100),
        ("8.cfg", 11),
        ("8.denoise", 0.5),
        ("7.batch_size", 8),
        ("7.width", 2048),
        ("3.vae_name", "other.safetensors"),
        ("2.device", "cpu"),
        ("10.filename_prefix", "foxes/red"),
        ("8.positive", ["4", 0]),
        ("KSampler.sampler_name", "dpmpp_2m"),
    ],
)
def test_overrides_within_the_limits_are_applied(workflows: Mapping[str, Workflow], place: str, value: object) -> None:
    """Other samplers, models, names and links are the caller's choice."""
    result = rendered(workflows, {place: value})

    node_id = {"KSampler": "8"}.get(place.partition(".")[0], place.partition(".")[0])
    assert result.graphs[0][node_id]["inputs"][place.partition(".")[2]] == value
    assert result.inputs["overrides"] == {place: value}


def test_a_batch_counts_towards_the_number_of_images(workflows: Mapping[str, Workflow]) -> None:
    """Batch size times num_images is at most the limit of num_images."""
    for num_images in (4, 4.0, "4"):
        faults = faults_of(workflows, {"7.batch_size": 3}, num_images=num_images)
        assert faults == {"7.batch_size": "must be at most 2, not 3"}
    assert len(rendered(workflows, {"7.batch_size": 2}, num_images=4).graphs) == 4


def test_no_override_names_an_input_file(workflows: Mapping[str, Workflow]) -> None:
    """The image of image to image must be sent as `image`, where it is checked."""
    image = b64encode(b"x" * 64).decode()

    for value in ("other.png", "/etc/passwd", f"data:image/png;base64,{image}"):
        fault = faults_of(workflows, {"11.image": value}, image=image)["11.image"]
        assert fault == "names a file; send the image itself as `image`"


GRAPH: Graph = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "_meta": {"title": "Style"}},
    "2": {
        "class_type": "Upscale",
        "inputs": {"width": 512, "factor": 2.0, "tiles": [64, 128], "fast": True, "noise_seed": 1, "shift": -1.5},
    },
    "3": {"class_type": "Resize", "inputs": {"width": 512, "picture": ["1", 0]}},
    "4": {"class_type": "MySaver", "inputs": {"output_path": "x", "images": ["3", 0]}},
}
INPUTS: JsonObject = {
    "properties": {"width": {"type": "integer", "minimum": 64, "maximum": 1024, "multipleOf": 8, "x-node": "3.width"}}
}


@pytest.fixture
def unbound_workflows(tmp_path: Path) -> Mapping[str, Workflow]:
    """The workflows of a folder with one template, `own`, whose only input is `width`."""
    tmp_path.joinpath("own.json").write_text(json.dumps(GRAPH), encoding="utf-8")
    tmp_path.joinpath("own.inputs.json").write_text(json.dumps(INPUTS), encoding="utf-8")
    return load_workflows(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"2.width": 1032}, "must be at most 1024, not 1032"),
        ({"2.width": 100}, "must be a multiple of 8"),
        ({"2.factor": 4}, "must be at most 2.0, not 4"),
        ({"2.tiles": [64, 256]}, "must be at most 128, not 256"),
        ({"2.tiles.1": 256}, "must be at most 128, not 256"),
        ({"2.tiles": [64, 128, 64]}, "must be like a list, which the workflow has there"),
        ({"2.fast": 1}, "must be true or false"),
        ({"2.shift": -2}, "must be at least -1.5, not -2"),
        ({"1.image": "b.png"}, "names a file that the node reads"),
        ({"4.output_path": "y"}, "names a file that the node writes"),
    ],
    ids=str,
)
def test_unbound_inputs_are_limited_too(
    unbound_workflows: Mapping[str, Workflow], overrides: JsonObject, expected: str
) -> None:
    """The input of the same name, or else the graph's value, limits an unbound input; a file name cannot be set."""
    with pytest.raises(JobError) as info:
        read_request({"workflow": "own", "overrides": overrides}, unbound_workflows)

    assert expected in info.value.report.message


def test_unbound_inputs_can_be_overridden(unbound_workflows: Mapping[str, Workflow]) -> None:
    """Unbound inputs can be set within their limits, and a seed to any value."""
    overrides = {"2.width": 1024, "2.factor": 0, "2.tiles": [32], "2.fast": "false", "2.noise_seed": 2**64 - 1}

    [graph] = read_request({"workflow": "own", "overrides": overrides}, unbound_workflows).render().graphs

    assert graph["2"]["inputs"] == {
        **GRAPH["2"]["inputs"],
        "width": 1024,
        "factor": 0,
        "tiles": [32],
        "fast": False,
        "noise_seed": 2**64 - 1,
    }


def test_a_nested_input_of_a_template_is_overridden_within_limits(tmp_path: Path) -> None:
    """A nested V3 input such as `resize_type.width` of a node whose title has a dot has the limits of a width."""
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64}, "_meta": {"title": "Empty"}},
        "2": {"class_type": "Resize", "inputs": {"resize_type.width": 64}, "_meta": {"title": "Resize v1.5"}},
    }
    width = {"type": "integer", "minimum": 16, "maximum": 128, "default": 64, "x-node": "Empty.width"}
    (tmp_path / "style.json").write_text(json.dumps(graph), encoding="utf-8")
    (tmp_path / "style.inputs.json").write_text(json.dumps({"properties": {"width": width}}), encoding="utf-8")
    workflows = load_workflows(tmp_path)
    place = "Resize v1.5.resize_type.width"

    [rendered_graph] = read_request({"workflow": "style", "overrides": {place: 128}}, workflows).render().graphs

    assert rendered_graph["2"]["inputs"] == {"resize_type.width": 128}
    with pytest.raises(JobError, match="must be at most 128, not 129"):
        read_request({"workflow": "style", "overrides": {place: 129}}, workflows)
