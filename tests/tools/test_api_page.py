"""docs/api.md: the section of a workflow."""

from __future__ import annotations

from comfy_core.contract import JsonObject
from comfy_core.workflows import make_workflow
from tools.docs.api import workflow_section

GRAPH: JsonObject = {"1": {"class_type": "A", "inputs": {"size": 1, "model": ["1", 0], "mode": "a"}}}


def test_a_workflow_without_descriptions_has_a_section() -> None:
    """Title, description, models, required inputs and the description of an input are optional."""
    properties: JsonObject = {
        "size": {"type": "integer", "minimum": 1, "maximum": 9, "x-node": "1.size"},
        "mode": {"x-node": "1.mode"},
        "items": {
            "type": "array",
            "items": {"type": "object", "properties": {"name": {}}},
            "x-node": "1.model",
            "x-insert": {"class_type": "B", "link": "model", "inputs": {"name": "name"}},
        },
    }
    section = "\n".join(workflow_section(make_workflow("plain", GRAPH, {"properties": properties})))

    assert section.startswith("## `plain`\n")
    assert "| `size` | integer, 1 to 9 |  |  |" in section
    assert "| `mode` | any |  |  |" in section
    assert "| `items` | list of `{name}` |  |  |" in section
