"""Places in a graph: a node by title or id, an input by its name, an item of a list by its number."""

from __future__ import annotations

import copy
import time

import pytest

from comfy_core.contract import MAX_FAULTS, Fault, JsonObject
from comfy_core.graphs import Graph
from comfy_core.targets import Target, find_target, overridden, override
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
    """A node is named by title or id, an input by its name, an item of a list by its number."""
    assert find_target(GRAPH, place) == target
    graph = copy.deepcopy(GRAPH)
    target.set(graph, "new")
    assert target.get(graph) == "new"


def test_an_id_goes_before_a_title() -> None:
    """A node whose title is another one's id does not hide that one."""
    graph = {
        "1": {"class_type": "A", "inputs": {"x": 1}, "_meta": {"title": "2"}},
        "2": {"class_type": "B", "inputs": {"x": 1}},
    }

    assert find_target(graph, "2.x").node_id == "2"


def test_an_ambiguous_title_names_the_ids() -> None:
    """Where several nodes have a title, their ids are named, shortly even where they are long."""
    graph = {node_id: {"class_type": "A", "inputs": {"x": 1}} for node_id in ("4", "y" * 500)}

    with pytest.raises(LookupError) as info:
        find_target(graph, "A.x")

    assert str(info.value.args[0]) == f'2 nodes are titled "A"; use an id: "4", "{"y" * 56}...'


def test_overrides_are_written_in_order() -> None:
    """Overrides reach nodes by title and id, and a later one sees what an earlier one wrote."""
    graph = copy.deepcopy(GRAPH)
    values: JsonObject = {"Style v1.5.sizes": [1, 2], "3.sizes.1": 5, "7.image": "b.png"}

    written, faults, warnings = overridden(graph, values, may_add=False)

    assert (faults, warnings) == ([], [])
    assert list(written.values()) == [Target("3", "sizes"), Target("3", "sizes", 1), Target("7", "image")]
    assert graph["3"]["inputs"]["sizes"] == [1, 5]
    assert graph["7"]["inputs"]["image"] == "b.png"
    assert values["Style v1.5.sizes"] == [1, 2]
    override(graph, {"3.text": "c"})
    assert graph["3"]["inputs"]["text"] == "c"


def test_overrides_that_reach_nothing_are_faults() -> None:
    """Each override that names no input is a fault, also where an earlier one took the list away."""
    overrides = {"3.sizes": 5, "3.sizes.1": 5, "Stile v1.5.text": "", "3.txt": "", "seed": 1}

    faults = overridden(copy.deepcopy(GRAPH), overrides, may_add=False)[1]

    assert faults == [
        Fault('overrides["3.sizes.1"]', '"3.sizes" has no item 1'),
        Fault('overrides["Stile v1.5.text"]', 'the graph has no node "Stile v1.5"; did you mean "Style v1.5"?'),
        Fault('overrides["3.txt"]', 'node "3" has no input "txt"; did you mean "text"?'),
        Fault("overrides.seed", '"seed" names no input; write "Node title.input" or "12.input"'),
    ]


def test_an_input_may_have_dots() -> None:
    """The node is the longest part that names one; the rest is its input, dots and all."""
    graph: Graph = {
        "3": {"class_type": "ResizeImage", "inputs": {"resize_type": "a", "resize_type.width": 8, "v.0": 1}},
        "75:70": {"class_type": "UNETLoader", "inputs": {"unet_name": "a"}, "_meta": {"title": "v1.5.2"}},
        "8": {"class_type": "A", "inputs": {"x": 1}, "_meta": {"title": "v1.5"}},
    }

    assert find_target(graph, "3.resize_type.width") == Target("3", "resize_type.width")
    assert find_target(graph, "ResizeImage.v.0") == Target("3", "v.0")
    assert (
        find_target(graph, "75:70.unet_name") == find_target(graph, "v1.5.2.unet_name") == Target("75:70", "unet_name")
    )
    assert find_target(graph, "v1.5.x") == Target("8", "x")


def test_an_input_that_the_node_lacks_is_added() -> None:
    """A newer engine requires inputs that an older export lacks; one that looks like a slip is a warning."""
    graph: Graph = {"45": {"class_type": "ImageScaleToTotalPixels", "inputs": {"megapixels": 1.0}}}
    overrides = {"45.resolution_steps": 1, "45.resize_type.width": 8, "45.megapixel": 2.0, "45.": 1, "46.x": 1}

    _, faults, warnings = overridden(graph, overrides, may_add=True)

    assert graph["45"]["inputs"] == {
        "megapixels": 1.0,
        "resolution_steps": 1,
        "resize_type.width": 8,
        "megapixel": 2.0,
    }
    assert [fault.path for fault in faults] == ['overrides["45."]', 'overrides["46.x"]']
    [warning] = warnings
    assert warning.startswith('overrides["45.megapixel"]')
    assert 'did you mean "megapixels"?' in warning


def test_thousands_of_wrong_overrides_take_no_time() -> None:
    """4,000 overrides that a graph of 4,000 nodes does not have take less than a second."""
    graph: Graph = {
        str(number): {"class_type": "KSampler", "inputs": {"seed": 1}, "_meta": {"title": f"Node number {number}"}}
        for number in range(4000)
    }
    overrides: JsonObject = {f"Node numbr {number}.sed": number for number in range(4000)}
    added: JsonObject = {f"Node number {number}.sed": number for number in range(4000)}

    begun_at = time.process_time()
    refused = overridden(graph, overrides, may_add=False)[1]
    taken = overridden(graph, added, may_add=True)[1]

    assert (len(refused), taken) == (MAX_FAULTS, [])
    assert time.process_time() - begun_at < 6


def test_a_place_as_comfyuis_json_has_it_is_the_input() -> None:
    """`1.inputs.width` sets `width`; what is no input of a node is a fault, and nothing is added without effect."""
    graph: Graph = {"1": {"class_type": "EmptyImage", "inputs": {"width": 8}}}

    written, faults, _ = overridden(
        graph, {"1.inputs.width": 16, "1.class_type": "X", "1._meta.title": "a", "1.inputs": {}}, may_add=True
    )

    assert graph == {"1": {"class_type": "EmptyImage", "inputs": {"width": 16}}}
    assert list(written) == ["1.inputs.width"]
    assert [fault.path for fault in faults] == [
        'overrides["1.class_type"]',
        'overrides["1._meta.title"]',
        'overrides["1.inputs"]',
    ]
