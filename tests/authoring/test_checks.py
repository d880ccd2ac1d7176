"""The check of a template: what ComfyUI or a job would refuse is found before, with the input or node at fault."""

from __future__ import annotations

import copy

import pytest

from comfy_client.authoring.checks import Findings, check_workflow
from comfy_client.authoring.node_types import NodeTypes
from comfy_core.contract import JsonObject
from comfy_core.graphs import Graph
from comfy_core.workflows import default_directory, load_workflows, make_workflow
from tests.authoring.graphs import RECORDED, TXT2IMG

NODE_TYPES = NodeTypes(RECORDED, "the recording")
COMPLETE = NodeTypes(RECORDED, "the recording", is_complete=True)
SHIPPED = load_workflows(default_directory())
MODELS = SHIPPED["flux-dev-txt2img"].schema["x-models"]


def findings(rule: JsonObject, graph: Graph = TXT2IMG, node_types: NodeTypes = COMPLETE) -> Findings:
    """Return the findings for a template with one input `value`."""
    schema = {"type": "object", "x-models": MODELS, "properties": {"value": rule}}
    return check_workflow(make_workflow("mine", graph, schema), node_types, MODELS)


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_the_shipped_workflows_have_no_faults(name: str) -> None:
    """All inputs, values and models of the shipped workflows fit the pinned ComfyUI."""
    assert check_workflow(SHIPPED[name], COMPLETE, MODELS) == Findings(())


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        (
            {"type": "integer", "minimum": 0, "maximum": 100, "x-node": "KSampler.steps"},
            "input value: its minimum 0 is beyond that of KSampler.steps, 1",
        ),
        (
            {"type": "integer", "minimum": 1, "x-node": "KSampler.steps"},
            "input value: it has no maximum, and that of KSampler.steps is 10000",
        ),
        (
            {"type": "number", "minimum": 0, "maximum": 100, "x-add": 1, "x-node": "KSampler.cfg"},
            "input value: its maximum 100 is beyond that of KSampler.cfg, 99.0",
        ),
        (
            {"type": "string", "x-node": "KSampler.steps"},
            "input value: its type is string, and KSampler.steps takes integer",
        ),
        (
            {"enum": ["euler", "eulr"], "x-node": "KSampler.sampler_name"},
            'input value: its choice "eulr" is not valid for KSampler.sampler_name',
        ),
        (
            {"type": "string", "default": "eulr", "x-node": "KSampler.sampler_name"},
            'input value: its default "eulr" is not valid for KSampler.sampler_name',
        ),
        (
            {"type": "string", "x-node": "KSampler.model"},
            "input value: KSampler.model of node 8 is connected to another node, which it would replace",
        ),
    ],
    ids=["range", "no range", "shifted range", "type", "choice", "default", "link"],
)
def test_an_input_must_fit_its_node(rule: JsonObject, fault: str) -> None:
    """The fault names the input of the template and the input of the node."""
    [found] = findings(rule).faults
    assert found.startswith(fault)


def changed(class_type: str, **inputs: object) -> Graph:
    """Return the graph with other inputs at the node of a class; None removes an input."""
    graph = copy.deepcopy(TXT2IMG)
    node = next(each for each in graph.values() if each["class_type"] == class_type)
    node["inputs"] = {name: value for name, value in {**node["inputs"], **inputs}.items() if value is not None}
    return graph


@pytest.mark.parametrize(
    ("graph", "fault"),
    [
        (changed("KSampler", steps=0), "node 8 (KSampler): steps must be at least 1, not 0"),
        (changed("KSampler", latent_image=None), "node 8 (KSampler) has no latent_image, which it requires"),
        (changed("VAELoader", vae_name="other.safetensors"), "its graph loads vae/other.safetensors, which x-models"),
        (changed("KSampler", latent_image=["4", 7]), "node 8 (KSampler) links to output 7 of node 4"),
        (
            {**TXT2IMG, "99": {"class_type": "Missing", "inputs": {}}},
            "node 99 (Missing) does not exist in this ComfyUI",
        ),
    ],
    ids=["value", "missing input", "model", "link", "class"],
)
def test_a_graph_must_fit_its_nodes(graph: Graph, fault: str) -> None:
    """What ComfyUI would refuse for every request is a fault."""
    rule: JsonObject = {"type": "string", "x-node": "Prompt.text"}
    [found] = findings(rule, graph).faults
    assert found.startswith(fault)


def test_a_value_that_every_request_replaces_is_not_checked() -> None:
    """An input without a default may be absent, so the graph's own value must be valid; with one it is replaced."""
    graph = changed("KSampler", steps=20_000)
    rule: JsonObject = {"type": "integer", "minimum": 1, "maximum": 100, "x-node": "KSampler.steps"}

    assert findings(rule, graph).faults == ("node 8 (KSampler): steps must be at most 10000, not 20000",)
    assert findings({**rule, "default": 20}, graph).faults == ()


def test_a_class_that_the_recording_lacks_is_a_note() -> None:
    """The recording has a few classes only, so an unknown class may exist."""
    graph = {**TXT2IMG, "99": {"class_type": "Missing", "inputs": {}}}
    found = findings({"type": "string", "x-node": "Prompt.text"}, graph, NODE_TYPES)

    assert found.faults == ()
    assert found.notes == ("not checked, as the recording does not have them: Missing",)


def test_a_mask_in_the_transparency_of_an_image_is_a_note() -> None:
    """Images of a template become opaque, so the mask output of LoadImage would be empty."""
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["3", 0], "mask": ["1", 1]}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    }
    [note] = findings({"type": "string", "contentMediaType": "image/*", "x-node": "1.image"}, graph).notes

    assert note.startswith("input value: the graph uses the image's transparent areas as a mask")


def test_models_must_exist() -> None:
    """A missing file is a fault; if the files are not known, that is a note."""
    workflow = SHIPPED["flux-dev-txt2img"]

    assert check_workflow(workflow, COMPLETE, MODELS[1:]).faults == (f"its model {MODELS[0]} does not exist",)
    assert check_workflow(workflow, COMPLETE, None).notes == (
        "it was not checked whether its models exist: give --comfyui URL or --models models.txt",
    )
