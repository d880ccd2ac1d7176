"""A graph is checked and completed with /object_info before it is sent to ComfyUI."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_core.comfyui.graph_checks import check_structure, with_defaults
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.graphs import Graph

TYPES: dict[str, dict[str, Any]] = {
    "EmptyImage": {"output": ["IMAGE"], "input": {"required": {"width": ["INT", {"default": 512}]}}},
    "Scale": {
        "output": ["IMAGE"],
        "input": {
            "required": {
                "image": ["IMAGE", {}],
                "resolution_steps": ["INT", {"default": 1}],
                "crop": [["center", "none"]],
                "method": ["COMBO", {"options": ["area", "lanczos"]}],
                "forced": ["FLOAT", {"default": 1.0, "forceInput": True}],
                "format": ["COMFY_DYNAMICCOMBO_V3", {"default": "png"}],
            },
            "optional": {"strength": ["FLOAT", {"default": 1.0}]},
        },
    },
    "LoadImage": {"output": ["IMAGE"], "input": {"required": {"image": [["a.png"], {"image_upload": True}]}}},
    "LoraLoader": {"output": ["MODEL"], "input": {"required": {"lora_name": [["a.safetensors"]]}}},
    "VAESave": {"output": [], "output_node": True, "input": {"required": {}}},
    "SaveImage": {
        "output": [],
        "output_node": True,
        "input": {"required": {"images": ["IMAGE"], "filename_prefix": ["STRING", {"default": "ComfyUI"}]}},
    },
}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    """Return a node."""
    return {"class_type": class_type, "inputs": inputs}


def problems(graph: Graph) -> list[dict[str, Any]]:
    """Return the details that the error of `graph` has for each node."""
    with pytest.raises(JobError) as info:
        check_structure(graph, TYPES)
    assert info.value.code is ErrorCode.WORKFLOW_REJECTED
    nodes: list[dict[str, Any]] = info.value.report.details["nodes"]
    return nodes


def test_a_valid_graph_passes() -> None:
    """A valid graph has no error."""
    check_structure({"1": node("EmptyImage"), "2": node("SaveImage", images=["1", 0])}, TYPES)


def test_a_link_to_a_missing_output_is_reported() -> None:
    """The error names the node and the output, instead of ComfyUI's "tuple index out of range"."""
    graph = {"1": node("EmptyImage"), "2": node("SaveImage", images=["1", 5]), "3": node("SaveImage", images=["1", -1])}
    assert [(each["node_id"], each["problem"]) for each in problems(graph)] == [
        ("2", "links to output 5 of node 1, which has 1 outputs"),
        ("3", "links to output -1 of node 1, which has 1 outputs"),
    ]


def test_a_cycle_is_reported() -> None:
    """The error names the nodes of the cycle, which ComfyUI's own error does not."""
    graph = {"1": node("Scale", image=["2", 0]), "2": node("Scale", image=["1", 0])}
    [problem] = problems(graph)
    assert problem["problem"] in ("is part of a cycle: 1 -> 2 -> 1", "is part of a cycle: 2 -> 1 -> 2")


def test_a_chain_of_thousands_of_nodes_passes() -> None:
    """A long chain of nodes does not exceed Python's recursion limit."""
    graph = {"0": node("EmptyImage")} | {
        str(number): node("Scale", image=[str(number - 1), 0]) for number in range(1, 5000)
    }
    check_structure(graph, TYPES)


def test_many_missing_nodes_are_all_in_the_details() -> None:
    """The message has the first eight nodes, and the details have all."""
    graph = {str(number): node("Odd") for number in range(45)}
    with pytest.raises(JobError, match="; and 37 more") as info:
        check_structure(graph, TYPES)
    assert len(info.value.report.details["nodes"]) == 45


def test_a_graph_that_saves_only_unreported_files_is_rejected() -> None:
    """No job could return files that ComfyUI does not report, so the graph is rejected before it uses GPU time."""
    [problem] = problems({"1": node("VAESave")})
    assert problem["problem"].endswith("add a SaveImage node")
    check_structure({"1": node("VAESave"), "2": node("EmptyImage"), "3": node("SaveImage", images=["2", 0])}, TYPES)


@pytest.mark.parametrize("class_type", ["Note", "MarkdownNote", "Reroute", "PrimitiveNode"])
def test_an_editor_node_is_not_a_missing_custom_node(class_type: str) -> None:
    """The error for an editor's node does not suggest a custom node pack, because no pack contains it."""
    [problem] = problems({"1": node(class_type)})
    assert "editor" in problem["problem"]
    assert "custom node" not in problem["problem"]


def test_required_inputs_get_their_defaults() -> None:
    """An input without a declared default gets its first choice. An input that must be linked gets nothing."""
    graph, warnings = with_defaults({"2": node("Scale", image=["1", 0])}, TYPES)
    assert graph["2"]["inputs"] == {"image": ["1", 0], "resolution_steps": 1, "crop": "center", "method": "area"}
    assert warnings[0] == (
        "node 2 (Scale) had no resolution_steps, which this ComfyUI requires; the default was used: 1"
    )
    assert len(warnings) == 3


def test_an_input_with_a_file_name_has_no_default() -> None:
    """Neither the first image nor the first LoRA of a list is used; a prefix has a default."""
    graph = {"1": node("LoadImage"), "2": node("LoraLoader"), "3": node("SaveImage", images=["1", 0])}
    filled, _ = with_defaults(graph, TYPES)
    assert filled["1"]["inputs"] == {}
    assert filled["2"]["inputs"] == {}
    assert filled["3"]["inputs"] == {"images": ["1", 0], "filename_prefix": "ComfyUI"}


def test_a_complete_graph_is_not_changed() -> None:
    """A complete graph is returned unchanged and without a warning."""
    graph = {"1": node("EmptyImage", width=64), "2": node("SaveImage", images=["1", 0], filename_prefix="x")}
    assert with_defaults(graph, TYPES) == (graph, [])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("sampler_name", "Euler", "euler"),
        ("sampler_name", " EULER ", "euler"),
        ("sampler_name", "euler a", "euler a"),
        ("lora_name", "sub\\Pixel.safetensors", "sub/pixel.safetensors"),
        ("lora_name", "twin", "twin"),
        ("image", "In.png", "In.png"),
        ("steps", "8.0", 8),
        ("steps", "many", "many"),
        ("steps", "1e999", "1e999"),
    ],
)
def test_an_unambiguous_spelling_is_corrected(name: str, value: str, expected: object) -> None:
    """A choice may differ in case and slashes, and an integer may be text; the name of an input file is not changed."""
    declarations = {
        "sampler_name": [["euler", "heun"], {}],
        "lora_name": ["COMBO", {"options": ["sub/pixel.safetensors", "Twin", "TWIN"]}],
        "image": [["in.png"], {"image_upload": True}],
        "steps": ["INT", {"default": 20}],
    }
    types = {
        "LoadImage": {"input": {"required": {"image": declarations["image"]}}},
        "K": {"input": {"optional": declarations}},
    }
    class_type = "LoadImage" if name == "image" else "K"

    filled, warnings = with_defaults({"1": {"class_type": class_type, "inputs": {name: value}}}, types)

    assert filled["1"]["inputs"] == {name: expected}
    assert warnings == []


def test_null_counts_as_a_missing_input() -> None:
    """A required input that is null gets its default; an optional one keeps null."""
    types = {"A": {"input": {"required": {"width": ["INT", {"default": 512}]}, "optional": {"mask": ["MASK", {}]}}}}

    filled, _ = with_defaults({"1": {"class_type": "A", "inputs": {"width": None, "mask": None}}}, types)

    assert filled["1"]["inputs"] == {"width": 512, "mask": None}
