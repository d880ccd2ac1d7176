"""A template inside a request: the graph and its inputs file, with the inputs beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from comfy_core.contract import JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.request.reading import read_request
from comfy_core.workflows import Workflow, load_workflows
from tests.core.test_workflows import image_base64

GRAPH: JsonObject = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "color": 0}, "_meta": {"title": "Base"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    "3": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
}
SCHEMA: JsonObject = {
    "x-name": "square",
    "type": "object",
    "required": ["color"],
    "properties": {
        "color": {"type": "integer", "minimum": 0, "maximum": 255, "x-node": "Base.color"},
        "side": {"type": "integer", "minimum": 16, "default": 32, "x-node": ["Base.width", "Base.height"]},
        "start": {"type": "string", "contentMediaType": "image/*", "x-node": "3.image"},
    },
}


def request(schema: object = SCHEMA, **inputs: Any) -> JsonObject:  # noqa: ANN401 - JSON values
    """Return a request with the template."""
    return {"workflow": GRAPH, "inputs_schema": schema, **inputs}


def faults(raw: JsonObject) -> Mapping[str, str]:
    """Return the faults of a request, by path."""
    with pytest.raises(JobError) as info:
        read_request(raw, {})
    assert info.value.code is ErrorCode.INVALID_INPUT
    return {fault["path"]: fault["message"] for fault in info.value.report.details["faults"]}


def test_inputs_are_put_into_the_graph() -> None:
    """Defaults apply, images are uploaded, overrides work, and the result has the template's name."""
    read = read_request(request(color=7, start=image_base64(), overrides={"2.filename_prefix": "y"}), {})
    rendered = read.render()

    assert rendered.graphs[0]["1"]["inputs"] == {"width": 32, "height": 32, "color": 7}
    assert rendered.graphs[0]["2"]["inputs"]["filename_prefix"] == "y"
    assert [upload.targets[0].node_id for upload in rendered.uploads] == ["3"]
    assert (rendered.workflow, rendered.inputs["color"]) == ("square", 7)
    assert read.has_own_graph


def test_it_has_the_version_of_its_files(tmp_path: Path) -> None:
    """The same template has the same version in a folder and in a request, whatever the order of its keys."""
    (tmp_path / "square.json").write_text(json.dumps(GRAPH, indent=2))
    (tmp_path / "square.inputs.json").write_text(json.dumps(dict(reversed(SCHEMA.items())), indent=4))
    rendered = read_request(request({**SCHEMA, "x-name": "other"}, color=7), {}).render()

    assert rendered.version == load_workflows(tmp_path)["square"].version


def test_it_may_be_json_text() -> None:
    """A whole request as text, and a graph as text, are read as for other requests."""
    as_text = {**request(color=7), "workflow": json.dumps(GRAPH)}

    assert read_request(json.dumps(as_text), {}).inputs["color"] == 7


def test_inputs_are_validated() -> None:
    """All faults are reported at once, as for a template of the worker."""
    assert faults(request(colour=7, side=8)) == {
        "colour": 'is not known; did you mean "color"?',
        "color": "is missing",
        "side": "must be at least 16, not 8",
    }


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("color", "must be the content of an inputs file"),
        ({"properties": {"color": {"type": "integer", "x-node": "Nothing.color"}}}, 'the graph has no node "Nothing"'),
        ({"properties": {"color": {"type": "integer"}}}, "reaches no node"),
        ({"properties": {"a": {"type": "int", "x-node": "1.color"}}}, "it is not a JSON Schema"),
        ({"x-name": "../x", "properties": {}}, "x-name must match the pattern"),
    ],
    ids=["no object", "no such node", "no node", "no schema", "a path as a name"],
)
def test_an_invalid_inputs_file_is_a_fault(schema: object, message: str) -> None:
    """The message is that of the template's file."""
    assert message in faults(request(schema))["inputs_schema"]


@pytest.mark.parametrize(
    "extra",
    [
        {"allOf": [{"$ref": "http://169.254.169.254/schema"}]},
        {"$dynamicRef": "#a"},
        {"properties": {"a": {"type": "string", "pattern": "(a+)+$", "x-node": "1.color"}}},
        {"patternProperties": {"(a+)+$": {}}},
        {"properties": {"num_images": {"type": "integer", "maximum": 10_000}}},
        {"properties": {"num_images": {"type": "integer"}}},
        {"description": "x" * 200_000},
        {"allOf": [{"properties": {"side": {"unevaluatedProperties": False}}}]},
        {"properties": {"a": {"type": "array", "uniqueItems": True, "x-node": "1.color"}}},
    ],
    ids=[
        "reference",
        "dynamic reference",
        "pattern",
        "pattern of names",
        "many images",
        "any images",
        "long",
        "unevaluated",
        "unique items",
    ],
)
def test_a_schema_cannot_cost_the_worker_more_than_a_graph(extra: JsonObject) -> None:
    """References (which may be fetched), regular expressions, unlimited images and long schemas are refused."""
    assert "inputs_schema" in faults(request({**SCHEMA, **extra}, color=7))


def test_a_long_list_is_refused_with_a_large_schema() -> None:
    """Each item may be compared with each part of the schema, so the product of both numbers has a limit."""
    rule = {"type": "array", "items": {"anyOf": [{"const": number} for number in range(2000)]}, "x-node": "1.color"}
    schema = {"properties": {"a": rule}}

    assert read_request(request(schema, a=[1999] * 10), {}).inputs["a"] == [1999] * 10
    assert "too many for the" in faults(request(schema, a=[1999] * 2000))["inputs_schema"]


def test_a_job_has_at_least_one_image() -> None:
    """A template may not allow 0 images, because a job without a prompt has no result."""
    for rule in ({}, {"minimum": 0}, {"minimum": -2, "default": -1}):
        schema = {"properties": {"num_images": {"type": "integer", "maximum": 8, **rule}}}
        assert "must have a minimum of at least 1" in faults(request(schema))["inputs_schema"]


def test_a_graph_with_faults_is_refused() -> None:
    """The faults of the graph are those of a request with a graph only."""
    broken = {**GRAPH, "4": {"class_type": "SaveImage", "inputs": {"images": ["9", 0]}}}

    assert faults({**request(color=7), "workflow": broken}) == {
        "workflow.4.inputs.images": 'links to node "9", which is not in the graph'
    }


def test_a_named_workflow_has_no_inputs_schema(workflows: Mapping[str, Workflow]) -> None:
    """The inputs of a template of the worker cannot be replaced."""
    with pytest.raises(JobError, match="inputs_schema: is only valid with a graph"):
        read_request({"workflow": "txt2img", "prompt": "x", "inputs_schema": SCHEMA}, workflows)


def test_an_item_may_have_keys_without_a_schema() -> None:
    """JSON Schema allows `true` in place of a schema: any value, and no default."""
    items = {"type": "object", "properties": {"name": {"type": "string"}, "extra": True}}
    insert = {"class_type": "B", "link": "images", "inputs": {"name": "name", "extra": "extra"}}
    rule = {"type": "array", "items": items, "x-node": "2.images", "x-insert": insert}
    rendered = read_request(request({"properties": {"more": rule}}, more=[{"name": "a"}]), {}).render()

    assert rendered.graphs[0]["4"]["inputs"] == {"images": ["1", 0], "name": "a"}


def test_a_random_seed_is_in_the_range_of_the_template() -> None:
    """Some nodes accept small seeds only. All images of the job get a valid seed."""
    rule = {"type": "integer", "minimum": 1, "maximum": 9, "x-node": "Base.color"}
    count = {"type": "integer", "minimum": 1, "maximum": 3, "default": 3}
    read = read_request(request({"properties": {"seed": rule, "num_images": count}}), {})

    assert [read.render(draws.pop).seeds for draws in ([0], [10], [2**32 - 1])] == [(1, 2, 3), (1, 2, 3), (5, 6, 7)]
