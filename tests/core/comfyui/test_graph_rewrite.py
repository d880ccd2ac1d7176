"""Rewriting of graphs: files are saved in the run's folder or under a name of the run; previews are removed."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from comfy_core.comfyui.graph_rewrite import filled_name, prefix_of, rewrite_graph
from comfy_core.graphs import Graph

RUN_FOLDER = "run-" + "0" * 32
SAVED_AT = time.struct_time((2026, 3, 5, 12, 7, 9, 3, 64, 0))


def node(class_type: str, **inputs: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    """Return a node."""
    return {"class_type": class_type, "inputs": inputs}


def inputs_of(graph: Graph, node_id: str = "9", folder: str = RUN_FOLDER, **node_types: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the inputs of a node of `graph` after rewrite_graph, with outputs saved to files."""
    changed = rewrite_graph(graph, folder, saver="SaveImage", node_types=node_types)
    inputs: dict[str, Any] = changed[node_id]["inputs"]
    return inputs


@pytest.mark.parametrize("class_type", ["SaveImage", "SaveVideo", "VAESave", "SaveAudioMP3", "SaveText"])
def test_a_core_save_node_writes_into_the_run_s_folder(class_type: str) -> None:
    """A core save node's prefix may be a path, whose folders are created in the run's folder."""
    graph = {"9": node(class_type, filename_prefix="a/fox")}
    assert inputs_of(graph) == {"filename_prefix": f"{RUN_FOLDER}/a/fox"}
    assert inputs_of(graph, folder=f"{RUN_FOLDER}/2") == {"filename_prefix": f"{RUN_FOLDER}/2/a/fox"}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"__value__": "a/fox"}, "a/fox"),
        ({"__value__": {"__value__": "fox"}}, "fox"),
        ({"__value__": ["1", 0]}, "lk"),
        (["1", 0.0], "lk"),
        (5, "5"),
        (None, "None"),
        ({"a": "/b"}, "{'a': '/b'}"),
        ("wait... what", "wait_ what"),
        ("", "ComfyUI"),
        ("a/", "a"),
    ],
)
def test_a_prefix_of_any_type_is_converted_as_comfyui_does(value: object, name: str) -> None:
    """ComfyUI unwraps `__value__`, follows a link to a text, and converts any other value to text."""
    graph = {"1": node("PrimitiveString", value={"__value__": "lk"}), "9": node("SaveVideo", filename_prefix=value)}
    assert inputs_of(graph) == {"filename_prefix": f"{RUN_FOLDER}/{name}"}


def test_the_prefix_of_save_lora_is_rewritten() -> None:
    """The input `prefix` of SaveLoRA is rewritten like `filename_prefix` of other nodes."""
    assert inputs_of({"9": node("SaveLoRA", prefix="loras/x")}) == {"prefix": f"{RUN_FOLDER}/loras/x"}


def test_a_dataset_is_written_into_the_run_s_folder() -> None:
    """A dataset's folder is moved into the run's. The node's `filename_prefix` is a name and is not changed."""
    graph = {"9": node("SaveImageDataSetToFolder", folder_name="set", filename_prefix="image", mode="overwrite")}
    assert inputs_of(graph)["folder_name"] == f"{RUN_FOLDER}/set"
    assert inputs_of(graph)["filename_prefix"] == "image"


def test_the_prefix_of_a_custom_save_node_stays_a_name() -> None:
    """A custom node may not accept a path, so the name is made unique; an additional input changes the cache key."""
    assert inputs_of({"9": node("Image Save", filename_prefix="fox")}) == {
        "filename_prefix": f"{RUN_FOLDER}_fox",
        "run-tag": RUN_FOLDER,
    }
    assert (
        inputs_of({"9": node("VHS_VideoCombine", filename_prefix="a/fox")})["filename_prefix"] == f"a/{RUN_FOLDER}_fox"
    )
    assert (
        inputs_of({"9": node("Image Save", filename_prefix="fox")}, folder=f"{RUN_FOLDER}/2")["run-tag"]
        == f"{RUN_FOLDER}-2"
    )


def test_a_save_node_without_a_prefix_is_tagged() -> None:
    """A save node is recognised by its input names, or because /object_info declares it an output node."""
    assert inputs_of({"9": node("Image Saver", filename="x", path="y")})["run-tag"] == RUN_FOLDER
    graph = {"9": node("PoseWriter", pose=["1", 0])}
    assert inputs_of(graph) == {"pose": ["1", 0]}
    assert inputs_of(graph, PoseWriter={"output_node": True})["run-tag"] == RUN_FOLDER


def test_a_prefix_that_is_linked_to_a_text_is_resolved() -> None:
    """The link may lead through several nodes to the text."""
    text = node("PrimitiveString", value="lk")
    graph = {"1": text, "2": node("PrimitiveString", value=["1", 0]), "9": node("SaveVideo", filename_prefix=["2", 0])}
    assert inputs_of(graph) == {"filename_prefix": f"{RUN_FOLDER}/lk"}
    assert prefix_of(graph, "9") == "lk"


def test_a_computed_prefix_is_kept_and_the_save_node_is_tagged() -> None:
    """The tag changes the cache key, so ComfyUI runs the save node again."""
    graph = {"1": node("StringConcatenate"), "9": node("SaveVideo", filename_prefix=["1", 0])}
    assert inputs_of(graph) == {"filename_prefix": ["1", 0], "run-tag": RUN_FOLDER}


def test_a_computed_prefix_becomes_a_name_in_the_run_s_folder() -> None:
    """Added nodes replace slashes, names of dots and empty names by `_`, if ComfyUI has such nodes."""
    graph = {"1": node("StringConcatenate"), "9": node("SaveVideo", filename_prefix=["1", 0])}
    types: dict[str, object] = {"RegexReplace": {}, "StringConcatenate": {}}
    changed = rewrite_graph(graph, RUN_FOLDER, saver="SaveImage", node_types=types)
    path_id, _ = changed["9"]["inputs"]["filename_prefix"]
    name_id, _ = changed[path_id]["inputs"]["string_b"]
    assert changed[path_id]["inputs"] == {"string_a": f"{RUN_FOLDER}/", "string_b": [name_id, 0], "delimiter": ""}
    replaced = changed[name_id]["inputs"]
    assert replaced["string"] == ["1", 0]
    pattern, by = replaced["regex_pattern"], replaced["replace"]
    computed = ("fox", "../../x", "run-a\\x", "..", ".", "")
    assert [re.sub(pattern, by, text) for text in computed] == ["fox", "____x", "run-a_x", "_", "_", "_"]


def test_a_computed_path_becomes_a_name_for_a_custom_save_node() -> None:
    """A link to text becomes a name, because a custom node might write to an absolute path; other links are kept."""
    graph = {"1": node("StringConcatenate"), "9": node("Image Save", output_path=["1", 0], images=["1", 0])}
    types: dict[str, object] = {"RegexReplace": {}, "StringConcatenate": {"output": ["STRING"]}}
    changed = rewrite_graph(graph, RUN_FOLDER, saver="SaveImage", node_types=types)
    name_id, _ = changed["9"]["inputs"]["output_path"]
    assert changed[name_id]["inputs"]["string"] == ["1", 0]
    assert changed["9"]["inputs"]["images"] == ["1", 0]
    pattern = changed[name_id]["inputs"]["regex_pattern"]
    assert [re.sub(pattern, "_", text) for text in ("/etc/x", "~/x", "fox")] == ["_etc_x", "__x", "fox"]
    untyped: dict[str, object] = {"RegexReplace": {}, "StringConcatenate": {}}
    assert len(rewrite_graph(graph, RUN_FOLDER, saver="SaveImage", node_types=untyped)) == len(graph)


def test_other_nodes_are_not_changed() -> None:
    """A node that saves nothing keeps its inputs."""
    graph = {"9": node("KSampler", seed=5, model=["1", 0])}
    assert rewrite_graph(graph, RUN_FOLDER, saver="SaveImageWebsocket") == graph


@pytest.mark.parametrize("class_type", ["SaveImage", "SaveImageWebsocket", "SendPixelsWebsocket"])
@pytest.mark.parametrize("saver", ["SaveImage", "SaveImageWebsocket", "SendPixelsWebsocket"])
def test_nodes_that_save_images_are_replaced_by_each_other(class_type: str, saver: str) -> None:
    """A file is saved in the run's folder; the nodes that send images only have the input `images`."""
    prefix = {"filename_prefix": f"{RUN_FOLDER}/ComfyUI"} if saver == "SaveImage" else {}
    graph = {"9": node(class_type, images=["1", 0], **({"filename_prefix": ""} if class_type == "SaveImage" else {}))}
    assert rewrite_graph(graph, RUN_FOLDER, saver=saver) == {"9": node(saver, images=["1", 0], **prefix)}


def test_the_caller_s_graph_is_not_changed() -> None:
    """rewrite_graph returns a copy."""
    graph = {
        "1": node("LoadImage"),
        "2": node("PreviewImage", images=["1", 0]),
        "9": node("SaveImage", images=["2", 0]),
    }
    before = repr(graph)
    rewrite_graph(graph, RUN_FOLDER, saver="SaveImageWebsocket")
    assert repr(graph) == before


def test_links_to_a_preview_or_save_node_skip_it() -> None:
    """Since ComfyUI 0.33 these nodes have outputs: a link to such an output becomes a link to the node's own source."""
    graph = {
        "1": node("EmptyImage"),
        "2": node("PreviewImage", images=["1", 0]),
        "3": node("PreviewImage", images=["2", 0]),
        "4": node("SaveImage", images=["3", 0], filename_prefix="x"),
        "5": node("SaveImage", images=["4", 0], filename_prefix="y"),
        "6": node("PreviewAudio", audio=["7", 0]),
    }
    assert rewrite_graph(graph, RUN_FOLDER, saver="SaveImageWebsocket") == {
        "1": node("EmptyImage"),
        "4": node("SaveImageWebsocket", images=["1", 0]),
        "5": node("SaveImageWebsocket", images=["1", 0]),
    }


def test_a_preview_with_other_outputs_is_kept() -> None:
    """A preview is kept if a link to its source cannot replace all of its outputs."""
    graph = {"1": node("Preview3DAdvanced", model_3d=["0", 0]), "2": node("Save3DAdvanced", camera_info=["1", 2])}
    assert "1" in rewrite_graph(graph, RUN_FOLDER, saver="SaveImageWebsocket")


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("fox", "fox"),
        ("fox_%width%x%height%", "fox_32x16"),
        ("%year%-%month%-%day%", "2026-03-05"),
        ("%hour%%minute%%second%", "120709"),
        ("b%batch_num%", "b1"),
        ("%date:yyyy%", "%date_yyyy%"),
        ('x:y*?"<>|', "x_y______"),
    ],
)
def test_placeholders_in_a_file_name_are_replaced(prefix: str, name: str) -> None:
    """Placeholders and characters that Windows forbids are replaced in a file name."""
    assert filled_name(prefix, (32, 16), 1, SAVED_AT) == name


def test_a_name_comes_from_the_prefix() -> None:
    """Folders of the prefix are not part of the name. A node without a known prefix has no name."""
    assert prefix_of({"9": node("SaveImage", filename_prefix="a/b\\fox")}, "9") == "fox"
    assert prefix_of({"9": node("SaveImage", filename_prefix="wait... what/")}, "9") == "wait... what"
    assert prefix_of({"9": node("SaveImage", filename_prefix="")}, "9") == "ComfyUI"
    assert prefix_of({"9": node("SaveLoRA", prefix="a/x")}, "9") == "x"
    assert prefix_of({"9": node("SaveImageWebsocket")}, "9") == "ComfyUI"
    assert prefix_of({"9": node("Image Saver", filename="x")}, "9") is None
    assert prefix_of({}, "9") is None
