"""Graphs in ComfyUI's API format: faults are reported, and parts that no output needs are ignored."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest

from comfy_core.contract import MAX_FAULTS
from comfy_core.graphs import (
    Graph,
    graph_faults,
    has_only_nodes,
    is_link,
    normalise_links,
    remove_unneeded,
    replace_random_seeds,
    title_of,
)
from comfy_core.validation import Faults


def removal_report(graph: Graph) -> Faults:
    """Remove broken nodes that no output needs from `graph`; return the faults and warnings."""
    faults = Faults()
    remove_unneeded(graph, faults)
    return faults


GRAPH: Graph = {
    "3": {
        "class_type": "Stylize",
        "inputs": {"text": "a", "sizes": [64, 128, 256], "again": "a", "picture": ["7", 0], "amount": 2},
        "_meta": {"title": "Style v1.5"},
    },
    "7": {"class_type": "LoadImage", "inputs": {"image": "example.png"}, "_meta": {"title": "Sketch"}},
    "8": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
}


@pytest.mark.parametrize(
    ("graph", "path", "problem"),
    [
        (None, "workflow", "must be an object of nodes"),
        ([GRAPH], "workflow", "must be an object of nodes"),
        ('{"3": {}', "workflow", "send the graph itself, as a JSON object"),
        ({"nodes": [{"id": 1}], "links": [], "version": 0.4}, "workflow", "Export (API)"),
        ({"a": None}, "workflow.a", "must be a node"),
        ({"a": {"class_type": "A"}}, "workflow.a", "must be a node"),
        ({"a": {"inputs": {"UNKNOWN": 512}, "_meta": {}}}, "workflow.a", 'the custom node "a" was not installed'),
        ({"a": {"inputs": {"UNKNOWN": 512}}}, "workflow.a", 'the custom node "a" was not installed'),
        ({"a": {"inputs": {}, "_meta": {"title": "My Node"}}}, "workflow.a", 'the custom node "My Node" was not'),
        (
            {"a": {"class_type": "Note", "inputs": {}}},
            "workflow.a",
            'is a "Note", which exists only in ComfyUI\'s editor',
        ),
        ({"a": {"class_type": "Reroute", "inputs": {}}}, "workflow.a", "File > Export (API)"),
        ({"a": {"class_type": "workflow/Group", "inputs": {}}}, "workflow.a", "exists only in ComfyUI's editor"),
        ({"a": {"class_type": 5, "inputs": {}}}, "workflow.a", "must be a node"),
        ({"a": {"class_type": "A", "inputs": []}}, "workflow.a", "must be a node"),
        ({"a": {"class_type": "A", "inputs": {"x": ["b", 1]}}}, "workflow.a.inputs.x", 'links to node "b"'),
    ],
)
def test_an_invalid_graph_is_reported(graph: object, path: str, problem: str) -> None:
    """Each kind of invalid graph has one fault, with the path of the problem and a description."""
    [fault] = graph_faults(graph)

    assert fault.path == path
    assert problem in fault.message


def test_nodes_with_broken_links_can_be_read() -> None:
    """`has_only_nodes` accepts a graph with broken links, but no graph with an incomplete node."""
    assert has_only_nodes({"a": {"class_type": "A", "inputs": {"x": ["b", 1]}}})
    assert not has_only_nodes({"a": {"class_type": "A"}})
    assert not has_only_nodes("a")


@pytest.mark.parametrize("value", [["3", 0], ["a", 5]])
def test_a_link_is_a_node_and_a_number(value: object) -> None:
    """A list of a string and an integer is a link."""
    assert is_link(value)


@pytest.mark.parametrize("value", [["3"], [3, 0], ["3", "0"], ["3", 0, 0], "30", None, []])
def test_anything_else_is_a_value(value: object) -> None:
    """A list of another form, or anything that is not a list, is a value."""
    assert not is_link(value)


def test_a_node_without_a_title_has_its_type() -> None:
    """The title of a node without a title is its class, as in ComfyUI's editor."""
    assert title_of({"class_type": "KSampler", "inputs": {}}) == "KSampler"
    assert title_of({"class_type": "KSampler", "_meta": {"title": None}}) == "KSampler"
    assert title_of({"class_type": "KSampler", "_meta": {"title": "Refine"}}) == "Refine"


@pytest.mark.parametrize(
    "link", [[3, 0], ["3", "0"], [3.0, 0.0], ["3", 0.0], [3, "0"]], ids=["int", "text", "floats", "float", "mixed"]
)
def test_a_link_in_another_spelling_is_a_link(link: object) -> None:
    """Ids may be numbers and slots may be strings: ComfyUI treats every list of two items as a link."""
    graph = {**copy.deepcopy(GRAPH), "8": {"class_type": "SaveImage", "inputs": {"images": link}}}

    normalise_links(graph)

    assert graph["8"]["inputs"]["images"] == ["3", 0]
    assert isinstance(graph["8"]["inputs"]["images"][1], int)


@pytest.mark.parametrize("value", [[1, 2], [64, 128], ["3", "a"], ["3", 0.5], [3, 0, 0], [3, -1], ["x", "0"]])
def test_a_list_of_values_is_not_changed(value: list[Any]) -> None:
    """A list is a value unless it consists of the id of a node and the number of a slot."""
    graph: Graph = {"3": {"class_type": "A", "inputs": {"sizes": value}}}

    normalise_links(graph)

    assert graph["3"]["inputs"]["sizes"] == value


def complete_graph(**nodes: Any) -> Graph:  # noqa: ANN401 - nodes
    """Return a graph that saves an image, with additional `nodes`."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
        **nodes,
    }


@pytest.mark.parametrize(
    ("nodes", "removed", "warnings"),
    [
        ({}, set(), []),
        (
            {"3": {"class_type": "ImageInvert", "inputs": {"image": ["99", 0]}}},
            {"3"},
            ['workflow.3.inputs.image: links to node "99", which is not in the graph; no output needs it'],
        ),
        (
            {
                "3": {"class_type": "ImageInvert", "inputs": {"image": ["99", 0]}},
                "4": {"class_type": "ImageBlend", "inputs": {"image1": ["3", 0], "image2": ["1", 0]}},
            },
            {"3", "4"},
            ["workflow.3.inputs.image: links"],
        ),
        ({"n": {"class_type": "MarkdownNote", "inputs": {"": "hello"}}}, {"n"}, ['workflow.n: is a "MarkdownNote"']),
    ],
    ids=["whole", "dangling", "chain", "note"],
)
def test_broken_nodes_that_no_output_needs_are_removed(nodes: Graph, removed: set[str], warnings: list[str]) -> None:
    """The broken nodes and those that depend on them are removed, and a warning names each broken node."""
    graph = complete_graph(**nodes)
    before = set(graph)

    report = removal_report(graph)
    found = report.warnings

    assert not report.listed()
    assert before - set(graph) == removed
    assert len(found) == len(warnings)
    assert all(warning.startswith(start) for warning, start in zip(found, warnings, strict=True))


@pytest.mark.parametrize(
    ("nodes", "paths"),
    [
        ({"3": {"class_type": "SaveImage", "inputs": {"images": ["99", 0]}}}, ["workflow.3.inputs.images"]),
        ({"3": {"class_type": "PreviewImage", "inputs": {"images": ["99", 0]}}}, ["workflow.3.inputs.images"]),
        ({"3": {"class_type": "MySaver", "inputs": {"x": ["99", 0], "filename_prefix": "a"}}}, ["workflow.3.inputs.x"]),
        (
            {
                "3": {"class_type": "ImageInvert", "inputs": {"image": ["99", 0]}},
                "4": {"class_type": "SaveVideo", "inputs": {"video": ["3", 0]}},
            },
            ["workflow.3.inputs.image"],
        ),
        (
            {
                "3": {"class_type": "Reroute", "inputs": {"": ["1", 0]}},
                "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
            },
            ["workflow.3"],
        ),
    ],
    ids=["output", "preview", "custom", "upstream", "reroute"],
)
def test_broken_nodes_that_an_output_needs_are_faults(nodes: Graph, paths: list[str]) -> None:
    """If any output needs a broken link, the whole graph is rejected; no output is dropped silently."""
    graph = complete_graph(**nodes)

    report = removal_report(graph)

    assert [fault.path for fault in report.listed()] == paths
    assert report.warnings == []
    assert graph == complete_graph(**nodes)


def test_a_graph_without_a_complete_output_is_rejected() -> None:
    """If no output remains, each broken link is a fault, also in a cycle."""
    lone = {"1": {"class_type": "A", "inputs": {"x": ["9", 0]}}}
    circle = {
        "1": {"class_type": "A", "inputs": {"x": ["2", 0]}},
        "2": {"class_type": "A", "inputs": {"x": ["1", 0], "y": ["9", 0]}},
    }

    assert [fault.path for fault in removal_report(lone).listed()] == ["workflow.1.inputs.x"]
    assert [fault.path for fault in removal_report(circle).listed()] == ["workflow.2.inputs.y"]


def test_thousands_of_broken_nodes_are_reported_quickly() -> None:
    """The number of faults and the time are limited."""
    broken: Graph = {str(number): {"class_type": "Save", "inputs": {"x": ["y", 0]}} for number in range(20_000)}

    begun_at = time.process_time()
    faults = removal_report(broken).listed()

    assert len(faults) == len(graph_faults(broken)) == MAX_FAULTS
    assert time.process_time() - begun_at < 6


def test_a_wrapped_value_is_unwrapped() -> None:
    """ComfyUI reads `{"__value__": 5}` as 5; a wrapped list is kept, because it would become a link."""
    graph: Graph = {"1": {"class_type": "A", "inputs": {"a": {"__value__": "in.png"}, "b": {"__value__": ["1", 0]}}}}

    normalise_links(graph)

    assert graph["1"]["inputs"] == {"a": "in.png", "b": {"__value__": ["1", 0]}}


def test_a_seed_of_minus_one_is_drawn_for_core_samplers() -> None:
    """Core samplers reject -1, so a seed is drawn for them; a custom sampler may use -1 with another meaning."""
    graph: Graph = {
        "1": {"class_type": "KSampler", "inputs": {"seed": "-1"}},
        "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": -1}},
        "3": {"class_type": "KSampler", "inputs": {"seed": 7}},
        "4": {"class_type": "Seed (rgthree)", "inputs": {"seed": -1}},
    }

    warnings = replace_random_seeds(graph, lambda: 5)

    assert [list(node["inputs"].values()) for node in graph.values()] == [[5], [5], [7], [-1]]
    assert warnings == [
        "workflow.1.inputs.seed: was -1; 5 was drawn",
        "workflow.2.inputs.noise_seed: was -1; 5 was drawn",
    ]
