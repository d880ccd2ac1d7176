"""Places in a graph: a node by title or id, an input by name, an item of a list by its index."""

from __future__ import annotations

import copy
import time

import pytest

from comfy_core.contract import MAX_FAULTS, Fault, JsonObject
from comfy_core.graphs import Graph
from comfy_core.targets import Target, TargetFinder, override
from comfy_core.validation import Faults
from tests.core.test_graphs import GRAPH


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("Sketch.image", Target("7", "image")),
        ("7.image", Target("7", "image")),
        ("SaveImage.images", Target("8", "images")),
        ("Style v1.5.text", Target("3", "text")),
        ("Style v1.5.sizes.0", Target("3", "sizes", 0)),
        ("3.sizes.2", Target("3", "sizes", 2)),
    ],
)
def test_a_place_is_a_node_and_an_input(place: str, target: Target) -> None:
    """The target of a place can be found, set and read."""
    assert TargetFinder(GRAPH).target(place) == target
    graph = copy.deepcopy(GRAPH)
    target.set(graph, "new")
    assert target.get(graph) == "new"


def test_an_id_takes_precedence_over_a_title() -> None:
    """A node whose title is another node's id does not hide that node."""
    graph = {
        "1": {"class_type": "A", "inputs": {"x": 1}, "_meta": {"title": "2"}},
        "2": {"class_type": "B", "inputs": {"x": 1}},
    }

    assert TargetFinder(graph).target("2.x").node_id == "2"


def test_an_ambiguous_title_is_reported_with_the_ids() -> None:
    """If several nodes have the same title, the error lists their ids, shortened if they are long."""
    graph = {node_id: {"class_type": "A", "inputs": {"x": 1}} for node_id in ("4", "y" * 500)}

    with pytest.raises(LookupError) as info:
        TargetFinder(graph).target("A.x")

    assert str(info.value.args[0]) == f'2 nodes are titled "A"; use an id: "4", "{"y" * 56}...'


def test_overrides_are_applied_in_order() -> None:
    """A later override sees the values of an earlier one."""
    graph = copy.deepcopy(GRAPH)
    values: JsonObject = {"Style v1.5.sizes": [1, 2], "3.sizes.1": 5, "7.image": "b.png"}
    faults = Faults()

    written = override(graph, values, faults)

    assert (faults.listed(), faults.warnings) == ([], [])
    assert list(written.values()) == [Target("3", "sizes"), Target("3", "sizes", 1), Target("7", "image")]
    assert graph["3"]["inputs"]["sizes"] == [1, 5]
    assert graph["7"]["inputs"]["image"] == "b.png"
    assert values["Style v1.5.sizes"] == [1, 2]


def test_overrides_without_a_target_are_faults() -> None:
    """An override is a fault if its node or list item does not exist, or if it names no input."""
    faults = Faults()

    override(copy.deepcopy(GRAPH), {"3.sizes.3": 5, "Stile v1.5.text": "", "seed": 1}, faults)

    assert faults.listed() == [
        Fault('overrides["3.sizes.3"]', '"3.sizes" has no item 3'),
        Fault('overrides["Stile v1.5.text"]', 'the graph has no node "Stile v1.5"; did you mean "Style v1.5"?'),
        Fault("overrides.seed", '"seed" names no input; write "Node title.input" or "12.input"'),
    ]


def test_an_unknown_input_is_named_with_the_nearest_one() -> None:
    """The error suggests the nearest input of the node."""
    with pytest.raises(LookupError, match='node "3" has no input "txt"; did you mean "text"'):
        TargetFinder(GRAPH).target("3.txt")


def test_an_input_may_have_dots() -> None:
    """Any dot can end the node's name; the rest, with its dots, is the input."""
    graph: Graph = {
        "3": {"class_type": "ResizeImage", "inputs": {"resize_type": "a", "resize_type.width": 8, "v.0": 1}},
        "75:70": {"class_type": "UNETLoader", "inputs": {"unet_name": "a"}, "_meta": {"title": "v1.5.2"}},
        "8": {"class_type": "A", "inputs": {"x": 1}, "_meta": {"title": "v1.5"}},
    }

    assert TargetFinder(graph).target("3.resize_type.width") == Target("3", "resize_type.width")
    assert TargetFinder(graph).target("ResizeImage.v.0") == Target("3", "v.0")
    assert (
        TargetFinder(graph).target("75:70.unet_name")
        == TargetFinder(graph).target("v1.5.2.unet_name")
        == Target("75:70", "unet_name")
    )
    assert TargetFinder(graph).target("v1.5.x") == Target("8", "x")


DOTTED: Graph = {
    "1": {"class_type": "A", "inputs": {"v2.width": 1, "mode.x": 1}, "_meta": {"title": "Size"}},
    "2": {"class_type": "A", "inputs": {"width": 1, "mode.x": 1}, "_meta": {"title": "Size.v2"}},
    "3": {"class_type": "A", "inputs": {"height": 1, "mode.x": 1}, "_meta": {"title": "Size.v2.mode"}},
    "4": {"class_type": "A", "inputs": {"depth": 1}, "_meta": {"title": "Size"}},
}
"""A graph whose titles and inputs can be split at several dots."""


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("Size.v2.mode.height", Target("3", "height")),
        ("Size.v2.mode.x", Target("2", "mode.x")),
        ("Size.mode.x", Target("1", "mode.x")),
        ("Size.depth", Target("4", "depth")),
        ("1.v2.width", Target("1", "v2.width")),
    ],
)
def test_the_graph_decides_where_a_node_s_name_ends(place: str, target: Target) -> None:
    """If a place can be split at several dots, or nodes share a title, the node that has the input is meant."""
    assert TargetFinder(DOTTED).target(place) == target


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "Size.v2.width",
            '"Size.v2.width" names 2 inputs; use the node\'s id: "width" of node "2", "v2.width" of node "1"',
        ),
        (
            "Size.v2.n",
            '"Size.v2.n" can name a new input of several nodes: "Size.v2" ("2"), "Size" ("1", "4"); use the node\'s id',
        ),
    ],
)
def test_a_place_that_names_two_inputs_sets_neither(place: str, message: str) -> None:
    """An override that the graph cannot decide is a fault that lists the inputs, and nothing is set."""
    graph, faults = copy.deepcopy(DOTTED), Faults()

    written = override(graph, {place: 5}, faults)

    assert (graph, written) == (DOTTED, {})
    assert [fault.message for fault in faults.listed()] == [message]


def test_an_input_that_the_node_lacks_is_added() -> None:
    """An override adds an input, because a newer ComfyUI may require it; a likely typo is a warning."""
    graph: Graph = {"45": {"class_type": "ImageScaleToTotalPixels", "inputs": {"megapixels": 1.0}}}
    overrides = {"45.resolution_steps": 1, "45.resize_type.width": 8, "45.megapixel": 2.0, "45.": 1, "46.x": 1}

    faults = Faults()
    override(graph, overrides, faults)

    assert graph["45"]["inputs"] == {
        "megapixels": 1.0,
        "resolution_steps": 1,
        "resize_type.width": 8,
        "megapixel": 2.0,
    }
    assert [fault.path for fault in faults.listed()] == ['overrides["45."]', 'overrides["46.x"]']
    [warning] = faults.warnings
    assert warning.startswith('overrides["45.megapixel"]')
    assert 'did you mean "megapixels"?' in warning


def test_thousands_of_misspelt_overrides_are_handled_quickly() -> None:
    """4,000 overrides without a node, and 4,000 that add an input, take less than 6 s in a graph of 4,000 nodes."""
    graph: Graph = {
        str(number): {"class_type": "KSampler", "inputs": {"seed": 1}, "_meta": {"title": f"Node number {number}"}}
        for number in range(4000)
    }
    overrides: JsonObject = {f"Node numbr {number}.sed": number for number in range(4000)}
    added: JsonObject = {f"Node number {number}.sed": number for number in range(4000)}

    begun_at = time.process_time()
    of_unknown, of_added = Faults(), Faults()
    override(graph, overrides, of_unknown)
    override(graph, added, of_added)

    assert (len(of_unknown), len(of_added)) == (MAX_FAULTS, 0)
    assert time.process_time() - begun_at < 6


def test_a_place_in_comfyui_s_json_notation_is_accepted() -> None:
    """`1.inputs.width` sets `width`; a place outside `inputs` is a fault and changes nothing."""
    graph: Graph = {"1": {"class_type": "EmptyImage", "inputs": {"width": 8}}}

    faults = Faults()
    written = override(graph, {"1.inputs.width": 16, "1.class_type": "X", "1._meta.title": "a", "1.inputs": {}}, faults)

    assert graph == {"1": {"class_type": "EmptyImage", "inputs": {"width": 16}}}
    assert list(written) == ["1.inputs.width"]
    assert [fault.path for fault in faults.listed()] == [
        'overrides["1.class_type"]',
        'overrides["1._meta.title"]',
        'overrides["1.inputs"]',
    ]
