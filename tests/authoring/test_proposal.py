"""Proposed inputs: their names, what they set, and their types, ranges and defaults."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from comfy_client.authoring.proposal import (
    ProposedInput,
    inputs_schema,
    models_of,
    proposed_inputs,
    selected_inputs,
)
from comfy_core.contract import JsonObject
from comfy_core.errors import ConfigError
from comfy_core.workflows import make_workflow
from tests.authoring.graphs import RECORDED, TXT2IMG


def node(class_type: str, title: str = "", **inputs: Any) -> JsonObject:  # noqa: ANN401 - JSON values
    """Return a node in API format."""
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title or class_type}}


def usual(graph: JsonObject) -> dict[str, ProposedInput]:
    """Return the proposed inputs by name that are usual."""
    return {each.name: each for each in proposed_inputs(graph, RECORDED) if each.is_usual}


def test_a_flux_workflow_gets_the_usual_names() -> None:
    """The names are those of the shipped workflow. Equal widths are one input. A CFG of 1 is not proposed."""
    found = usual(TXT2IMG)

    assert set(found) == {
        "prompt", "negative_prompt", "seed", "steps", "width", "height", "sampler", "scheduler", "guidance",
    }  # fmt: skip
    assert found["width"].places == ("EmptySD3LatentImage.width", "ModelSamplingFlux.width")
    assert found["prompt"].places == ("Prompt.text",)
    assert found["negative_prompt"].places == ("Negative prompt.text",)


def test_a_rule_has_the_node_s_range_and_the_graph_s_value() -> None:
    """Ranges and choices are the node's; the value is the default, except for the seed, which is random."""
    found = usual(TXT2IMG)

    assert found["steps"].rule == {"type": "integer", "minimum": 1, "maximum": 10000, "default": 20}
    assert found["seed"].rule == {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
    assert found["sampler"].rule["default"] == "euler"
    assert "dpmpp_2m" in found["sampler"].rule["enum"]
    assert found["width"].rule["multipleOf"] == 16
    assert "default" not in found["prompt"].rule


def test_a_tooltip_is_the_description() -> None:
    """A node without tooltips gives inputs without descriptions."""
    declared = {"input": {"required": {"steps": ["INT", {"default": 1, "tooltip": "Number\n of  steps."}]}}}
    [found] = proposed_inputs({"1": node("Custom", steps=4)}, {"Custom": declared})

    assert found.rule == {"description": "Number of steps.", "type": "integer", "default": 4}


def test_an_image_is_required_and_makes_the_strength_usual() -> None:
    """LoadImage is an image input. Only a workflow with an image proposes the denoise as its strength."""
    graph = {
        "1": node("LoadImage", image="photo.png"),
        "2": node("KSampler", seed=1, steps=20, cfg=7, sampler_name="euler", scheduler="simple", denoise=0.6),
    }
    found = usual(graph)

    assert found["image"].rule == {"type": "string", "minLength": 1, "contentMediaType": "image/*"}
    assert found["strength"].places == ("KSampler.denoise",)
    assert "strength" not in usual({"2": graph["2"]})
    assert inputs_schema(graph, "x", list(found.values()))["required"] == ["image"]


def test_equal_meanings_with_other_values_get_names_of_their_own() -> None:
    """Two samplers with different steps are two inputs; a title makes the name, otherwise a number."""
    sampler = {"seed": 1, "cfg": 7, "sampler_name": "euler", "scheduler": "simple", "denoise": 1}
    graph = {
        "1": node("KSampler", "Base", steps=20, **sampler),
        "2": node("KSampler", "Refine", steps=8, **sampler),
    }

    assert usual(graph)["steps"].places == ("Base.steps",)
    assert usual(graph)["refine_steps"].places == ("Refine.steps",)
    assert usual(graph)["seed"].places == ("Base.seed", "Refine.seed")


def test_prompts_of_custom_nodes_are_recognised() -> None:
    """A text that reaches a sampler's `positive` or `negative`, or has such a name itself, is a prompt."""
    graph = {
        "1": node("PhotoMakerEncode", text="a man"),
        "2": node("KSampler", positive=["1", 0]),
        "3": node("Efficient Loader", negative="blurry", lora_name="a.safetensors"),
    }

    assert {each.places[0]: each.name for each in proposed_inputs(graph, {}) if each.is_usual} == {
        "PhotoMakerEncode.text": "prompt",
        "Efficient Loader.negative": "negative_prompt",
    }


def test_a_title_that_is_not_unique_is_replaced_by_the_id() -> None:
    """x-node must name one node. A title with a dot is fine, and the same title twice is not."""
    graph = {
        "1": node("PrimitiveString", "v1.5", value="a"),
        "2": node("PrimitiveString", "Same", value="b"),
        "3": node("PrimitiveString", "Same", value="c"),
    }

    assert {each.places[0] for each in proposed_inputs(graph, RECORDED)} == {"v1.5.value", "2.value", "3.value"}


def test_a_name_of_the_request_s_own_keys_is_not_used() -> None:
    """A node input called `metadata` or `num_images` gets another name, because requests have keys of this name."""
    graph = {"1": node("Custom", metadata="x", num_images=2, seed=0.5)}
    names = {each.name for each in proposed_inputs(graph, {})}

    assert names.isdisjoint({"metadata", "num_images", "seed"})
    assert len(names) == 3


def test_unknown_classes_get_types_from_their_values() -> None:
    """Without /object_info there are types and defaults, but no ranges."""
    graph = {"1": node("Custom", on=True, count=3, ratio=0.5, label="x", link=["2", 0], items=[1, 2])}

    assert {each.name: each.rule for each in proposed_inputs(graph, {})} == {
        "on": {"type": "boolean", "default": True},
        "count": {"type": "integer", "default": 3},
        "ratio": {"type": "number", "default": 0.5},
        "label": {"type": "string", "maxLength": 4096, "default": "x"},
    }


def test_a_value_that_the_node_refuses_is_no_default() -> None:
    """The exported value is out of the node's range, so the input has no default."""
    graph = copy.deepcopy(TXT2IMG)
    sampler = next(each for each in graph.values() if each["class_type"] == "KSampler")
    sampler["inputs"] |= {"steps": 20000, "scheduler": "removed"}

    assert "default" not in usual(graph)["steps"].rule
    assert "default" not in usual(graph)["scheduler"].rule


def test_inputs_can_be_selected() -> None:
    """By proposed name, by node (its title, or its class) and input, and with another name."""
    graph = copy.deepcopy(TXT2IMG)
    next(each for each in graph.values() if each["class_type"] == "KSampler")["_meta"]["title"] = "Sampling"
    words = ["prompt", "Sampling.cfg", "wide=EmptySD3LatentImage.width", "strength=KSampler.denoise"]
    chosen = selected_inputs(graph, proposed_inputs(graph, RECORDED), words)

    assert {each.name: each.places for each in chosen} == {
        "prompt": ("Prompt.text",),
        "cfg": ("Sampling.cfg",),
        "wide": ("EmptySD3LatentImage.width",),
        "strength": ("Sampling.denoise",),
    }


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("promt", r"did you mean \"prompt\""),
        ("KSampler.stepz", r"has no input \"stepz\"; did you mean \"steps\""),
        ("KSampler.model", "connected to another node"),
    ],
)
def test_an_unknown_selection_is_explained(word: str, reason: str) -> None:
    """The error names the word and what is near it."""
    with pytest.raises(ConfigError, match=reason):
        selected_inputs(TXT2IMG, proposed_inputs(TXT2IMG, RECORDED), [word])


def test_models_are_listed_with_their_folders() -> None:
    """Names of model files are recognised by their suffix; the folder is that of the loader's input."""
    graph = {
        "1": node("CheckpointLoaderSimple", ckpt_name="sdxl\\base.safetensors"),
        "2": node("UpscaleModelLoader", model_name="4x.pth"),
        "3": node("KSampler", sampler_name="euler"),
    }

    assert models_of(graph) == ["checkpoints/sdxl/base.safetensors", "upscale_models/4x.pth"]
    assert models_of(TXT2IMG) == [
        "diffusion_models/flux1-dev-fp8.safetensors",
        "text_encoders/clip_l.safetensors",
        "text_encoders/t5xxl_fp8_e4m3fn.safetensors",
        "vae/ae.safetensors",
    ]


def test_the_inputs_file_is_a_valid_template() -> None:
    """All proposed inputs together are accepted as a template, with num_images for the seed."""
    schema = inputs_schema(TXT2IMG, "Mine", proposed_inputs(TXT2IMG, RECORDED))
    workflow = make_workflow("mine", TXT2IMG, schema)

    assert workflow.inputs["num_images"]["maximum"] == 8
    assert schema["required"] == ["prompt"]
    assert (schema["title"], schema["x-task"]) == ("Mine", "txt2img")
