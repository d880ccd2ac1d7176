"""Conversion of the editor's format: each kind of node becomes what ComfyUI's own export makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_client.authoring.editor_format import class_types, convert, is_editor_format
from comfy_core.contract import JsonObject
from comfy_core.errors import ConfigError
from tests.authoring.graphs import RECORDED, editor_node, editor_workflow, output, socket, widget

SAMPLER_VALUES = [5, "randomize", 20, 1, "euler", "simple", 1]
LATENT = editor_node(2, "EmptyLatentImage", [512, 512, 1], outputs=[output("LATENT")])


def sampler(*more: JsonObject, mode: int = 0) -> JsonObject:
    """Return a KSampler whose latent image is link 1."""
    return editor_node(
        1,
        "KSampler",
        SAMPLER_VALUES,
        inputs=[socket("latent_image", "LATENT", 1), *more],
        outputs=[output("LATENT")],
        mode=mode,
    )


def inputs_of(workflow: JsonObject, node_id: str = "1") -> JsonObject:
    """Return the inputs of one node of the converted workflow."""
    inputs: JsonObject = convert(workflow, RECORDED)[node_id]["inputs"]
    return inputs


def test_widgets_get_the_names_of_object_info() -> None:
    """Values are named in the order of /object_info, and that of control_after_generate is left out."""
    graph = convert(editor_workflow(sampler(), LATENT, links=[[1, 2, 0, 1, 0, "LATENT"]]), RECORDED)

    assert graph["1"] == {
        "inputs": {
            "seed": 5,
            "steps": 20,
            "cfg": 1,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1,
            "latent_image": ["2", 0],
        },
        "class_type": "KSampler",
        "_meta": {"title": "KSampler"},
    }
    assert list(graph) == ["1", "2"]


def test_a_choice_of_a_dynamic_combo_has_its_own_widgets() -> None:
    """`resize_type` adds the inputs of its choice, with a dot in their names."""
    node = editor_node(1, "ResizeImageMaskNode", ["scale by multiplier", 1.5, "lanczos"], inputs=[])

    inputs = inputs_of(editor_workflow(node, links=[]))

    assert inputs == {
        "resize_type": "scale by multiplier",
        "resize_type.multiplier": 1.5,
        "scale_method": "lanczos",
    }


def test_a_connected_widget_is_a_link() -> None:
    """The link replaces the value of the widget, which stays in `widgets_values`."""
    text = editor_node(1, "CLIPTextEncode", ["old"], inputs=[widget("text", "STRING", 1)])
    source = editor_node(2, "PrimitiveString", ["new"], outputs=[output("STRING")])

    assert inputs_of(editor_workflow(text, source, links=[[1, 2, 0, 1, 0, "STRING"]])) == {"text": ["2", 0]}


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (editor_node(3, "Reroute", inputs=[socket("", "*", 2)]), ["2", 0]),
        (editor_node(3, "VAEDecode", inputs=[socket("samples", "LATENT", 2)], mode=2), None),
        (
            editor_node(
                3, "LatentUpscaleBy", inputs=[socket("samples", "LATENT", 2)], outputs=[output("LATENT")], mode=4
            ),
            ["2", 0],
        ),
        (
            editor_node(3, "VAEEncode", inputs=[socket("pixels", "IMAGE", 2)], outputs=[output("LATENT")], mode=4),
            None,
        ),
    ],
    ids=["reroute", "muted", "bypassed", "bypassed without an input of the type"],
)
def test_a_link_passes_nodes_that_do_not_run(between: JsonObject, expected: object) -> None:
    """A reroute and a bypassed node pass on their input; a muted one does not, and the input is left out."""
    links = [[1, 3, 0, 1, 0, "LATENT"], [2, 2, 0, 3, 0, "LATENT"]]

    graph = convert(editor_workflow(sampler(), LATENT, between, links=links), RECORDED)

    assert graph["1"]["inputs"].get("latent_image") == expected
    assert "3" not in graph


def test_comments_in_a_prompt_are_removed() -> None:
    """The editor removes them from the inputs that /object_info declares with dynamicPrompts."""
    text = editor_node(1, "CLIPTextEncode", ["a knight // tall\nwith /* or\nwithout */ a sword"])

    assert inputs_of(editor_workflow(text, links=[]))["text"] == "a knight \nwith  a sword"


def test_a_primitive_node_becomes_its_value() -> None:
    """The editor's PrimitiveNode sets the widget that it is connected to."""
    primitive = editor_node(3, "PrimitiveNode", [8, "fixed"], outputs=[output("INT")])
    node = sampler(widget("steps", "INT", 2))
    links = [[1, 2, 0, 1, 0, "LATENT"], [2, 3, 0, 1, 1, "INT"]]

    assert inputs_of(editor_workflow(node, LATENT, primitive, links=links))["steps"] == 8


def test_get_nodes_stand_for_the_set_node_of_the_same_name() -> None:
    """SetNode and GetNode of the pack KJNodes exist in the editor only."""
    nodes = [
        editor_node(3, "SetNode", ["noise"], inputs=[socket("LATENT", "LATENT", 2)]),
        editor_node(4, "GetNode", ["noise"], outputs=[output("LATENT")]),
    ]
    links = [[1, 4, 0, 1, 0, "LATENT"], [2, 2, 0, 3, 0, "LATENT"]]

    assert inputs_of(editor_workflow(sampler(), LATENT, *nodes, links=links))["latent_image"] == ["2", 0]


def subgraph(**fields: Any) -> JsonObject:  # noqa: ANN401 - JSON values
    """Return a subgraph: a KSampler whose latent image and steps are its inputs, and whose latent is its output."""
    link: dict[str, Any] = {"type": "*"}
    inner = editor_node(
        7,
        "KSampler",
        SAMPLER_VALUES,
        inputs=[socket("latent_image", "LATENT", 1), widget("steps", "INT", 2)],
        outputs=[output("LATENT")],
    )
    return {
        "id": "sub-1",
        "name": "Sample",
        "nodes": [inner],
        "links": [
            {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 7, "target_slot": 0, **link},
            {"id": 2, "origin_id": -10, "origin_slot": 1, "target_id": 7, "target_slot": 1, **link},
            {"id": 3, "origin_id": 7, "origin_slot": 0, "target_id": -20, "target_slot": 0, **link},
        ],
        "inputs": [{"name": "latent", "type": "LATENT"}, {"name": "steps", "type": "INT"}],
        "outputs": [{"name": "LATENT", "type": "LATENT"}],
        **fields,
    }


@pytest.mark.parametrize(
    ("values", "proxies", "expected"),
    [
        ([], [], (20, 5)),
        ([9], [], (9, 5)),
        ([], [["7", "steps"], ["7", "seed"]], (20, 5)),
        ([3, 9], [["7", "seed"], ["7", "steps"]], (9, 3)),
        ([None, 9], [["7", "seed"], ["-1", "steps"]], (9, 5)),
    ],
    ids=["no values", "values of inputs", "widgets without values", "values of widgets", "null, and an input's widget"],
)
def test_a_subgraph_is_replaced_by_its_nodes(
    values: list[int], proxies: list[list[str]], expected: tuple[int, int]
) -> None:
    """Ids get the id of the subgraph's node as a prefix, links cross its border, and its own widgets win."""
    instance = editor_node(
        1,
        "sub-1",
        values,
        inputs=[socket("latent", "LATENT", 1)],
        outputs=[output("LATENT")],
        properties={"proxyWidgets": proxies},
    )
    decode = editor_node(3, "VAEDecode", inputs=[socket("samples", "LATENT", 2)])
    links = [[1, 2, 0, 1, 0, "LATENT"], [2, 1, 0, 3, 0, "LATENT"]]

    graph = convert(editor_workflow(instance, LATENT, decode, links=links, subgraphs=(subgraph(),)), RECORDED)

    assert set(graph) == {"2", "3", "1:7"}
    assert graph["1:7"]["inputs"]["latent_image"] == ["2", 0]
    assert (graph["1:7"]["inputs"]["steps"], graph["1:7"]["inputs"]["seed"]) == expected
    assert graph["3"]["inputs"]["samples"] == ["1:7", 0]


def test_notes_are_left_out() -> None:
    """Notes and nodes of unknown classes without links do nothing."""
    nodes = [editor_node(1, "MarkdownNote", ["# Hello"]), editor_node(3, "Label (rgthree)", ["Title", 12])]

    assert set(convert(editor_workflow(*nodes, LATENT, links=[]), RECORDED)) == {"2"}


def test_a_list_is_not_taken_for_a_link() -> None:
    """ComfyUI reads a list as a link, so the value is wrapped as its own export does."""
    node = editor_node(1, "EmptyImage", {"width": [1, 2], "height": 64})

    assert inputs_of(editor_workflow(node, links=[])) == {"width": {"__value__": [1, 2]}, "height": 64}


def test_unknown_classes_are_converted_if_the_file_names_their_values() -> None:
    """Newer editors write the name of each widget. Older files do not, and the node is named in the error."""
    named = [widget("seed", "INT"), widget("mode", "COMBO"), socket("latent", "LATENT", 2)]
    newer = editor_node(3, "Custom", [7, "fixed", "soft"], inputs=named)
    older = editor_node(4, "Custom", [7, "soft"], inputs=[socket("model", "MODEL", 2)])
    links = [[2, 2, 0, 4, 0, "MODEL"]]

    converted = inputs_of(editor_workflow(newer, LATENT, links=links), "3")
    assert converted == {"seed": 7, "mode": "soft", "latent": ["2", 0]}
    with pytest.raises(ConfigError, match=r"4 \(Custom\): its class is not known.*Export \(API\)"):
        convert(editor_workflow(older, LATENT, links=links), RECORDED)


def test_every_node_that_cannot_be_converted_is_named() -> None:
    """Group nodes and nodes of unknown classes are refused, each with its reason."""
    nodes = [editor_node(3, "workflow>mine"), editor_node(4, "Odd", [1], inputs=[socket("a", "IMAGE", 1)])]

    with pytest.raises(
        ConfigError, match=r"3 \(workflow>mine\): it is a group node.*4 \(Odd\): its class is not known"
    ):
        convert(editor_workflow(*nodes, links=[]), RECORDED)


def test_the_buttons_of_a_node_are_no_values() -> None:
    """Load3D has the values of three buttons between its file and its size."""
    node = editor_node(1, "Load3D", ["toy.glb", "upload3dmodel", "uploadExtraResources", "clear", "", 640, 480])
    declared = {"model_file": [["none"], {}], "image": ["LOAD_3D", {}], "width": ["INT", {}], "height": ["INT", {}]}

    graph = convert(editor_workflow(node, links=[]), {"Load3D": {"input": {"required": declared}}})

    assert graph["1"]["inputs"] == {"model_file": "toy.glb", "image": "", "width": 640, "height": 480}


def test_a_custom_combo_has_the_options_of_its_user() -> None:
    """The editor computes the index of the choice."""
    node = editor_node(1, "CustomCombo", ["b", 0, "a", "b", ""], outputs=[{**output("COMBO"), "links": [1]}])

    assert inputs_of(editor_workflow(node, links=[])) == {
        "choice": "b",
        "index": 1,
        "option1": "a",
        "option2": "b",
        "option3": "",
    }


@pytest.mark.parametrize(
    "damaged",
    [
        {"nodes": [{"type": "KSampler"}]},
        {"nodes": ["KSampler"]},
        editor_workflow(editor_node(1, "VAEDecode", inputs=[socket("", "LATENT", 1)]), LATENT, links=[[1, 2, 0, 1, 0]]),
        editor_workflow(
            editor_node(1, "VAEDecode", inputs=[socket("samples", "LATENT", 1)]),
            editor_node(2, "Reroute", inputs=[socket("", "*", 2)]),
            editor_node(3, "Reroute", inputs=[socket("", "*", 3)]),
            links=[[1, 2, 0, 1, 0, "*"], [2, 3, 0, 2, 0, "*"], [3, 2, 0, 3, 0, "*"]],
        ),
        editor_workflow(editor_node(1, "sub-1"), links=[], subgraphs=(subgraph(nodes=[editor_node(1, "sub-1")]),)),
    ],
    ids=["a node without an id", "a text as a node", "no name", "a cycle of reroutes", "a subgraph in itself"],
)
def test_a_damaged_file_is_one_error(damaged: JsonObject) -> None:
    """A file that no editor writes ends with an error that says how to export the graph."""
    with pytest.raises(ConfigError, match=r"is damaged.*Export \(API\)"):
        convert(damaged, RECORDED)


def test_the_format_and_its_classes_are_recognised() -> None:
    """Classes inside subgraphs count; the editor's own node types and the subgraphs' ids do not."""
    workflow = editor_workflow(
        editor_node(1, "sub-1"), editor_node(2, "Reroute"), LATENT, links=[], subgraphs=(subgraph(),)
    )

    assert is_editor_format(workflow)
    assert not is_editor_format({"1": {"class_type": "KSampler", "inputs": {}}})
    assert class_types(workflow) == {"KSampler", "EmptyLatentImage"}
