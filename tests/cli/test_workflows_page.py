"""docs/workflows.md: its commands run, its table has every keyword, and its example is rendered as it says."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from bench.worker_setup import ROOT
from comfy_core.request.reading import read_request
from comfy_core.workflows import KEYWORDS, load_workflows
from simulators.runpod.queue_api import RunPodPlatform
from tests.cli.conftest import Shell

PAGE = (ROOT / "docs" / "workflows.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition(" #")[0]
    for block in re.findall(r"tests/cli/test_workflows_page\.py\. -->\n```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
JSON_BLOCKS = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(command: str, shell: Shell, platform: RunPodPlatform) -> None:
    """Each command sends its images and saves its result."""
    mask = Image.new("L", (16, 16), 255)
    mask.save("door-mask.png")
    for name in ("room.png", "castle.png"):
        Image.new("RGB", (16, 16)).save(name)
    with_hole = Image.new("RGB", (16, 16))
    with_hole.putalpha(ImageOps.invert(mask))
    with_hole.save("room-with-hole.png")
    words = shlex.split(command)

    ended = shell(*words[1:])

    assert ended.status == 0, ended.err
    [job] = platform.jobs.values()
    assert job.input["workflow"] == words[1]
    assert base64.b64decode(job.input["image"]) == Path(words[words.index("--image") + 1]).read_bytes()
    assert Path(words[-1]).is_file()


def test_every_keyword_is_on_the_page() -> None:
    """The table has each keyword that an inputs file may use, and the example uses each."""
    rows = set(re.findall(r"^\| `(x-[\w-]+)`", PAGE, re.MULTILINE))
    inputs_file = json.dumps(JSON_BLOCKS[1])

    assert rows == KEYWORDS
    assert {keyword for keyword in KEYWORDS if f'"{keyword}"' in inputs_file} == KEYWORDS


def test_the_example_is_rendered_as_the_page_says(tmp_path: Path) -> None:
    """The request of the page changes those inputs of the graph that the page lists, and the names of the files."""
    graph, inputs, request, changes = JSON_BLOCKS
    (tmp_path / "paint.json").write_text(json.dumps(graph), encoding="utf-8")
    (tmp_path / "paint.inputs.json").write_text(json.dumps(inputs), encoding="utf-8")
    file = io.BytesIO()
    Image.new("RGBA", (96, 64)).save(file, "PNG")
    request["image"] = base64.b64encode(file.getvalue()).decode()

    rendered = read_request(request, load_workflows(tmp_path)).render()

    [result] = rendered.graphs
    assert _changed_inputs(graph, result) == changes
    assert [upload.targets[0].node_id for upload in rendered.uploads] == ["1", "2"]


def _changed_inputs(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs of `after` that differ from those of `before`, by node id."""
    changed = {}
    for node_id, node in after.items():
        old = before.get(node_id, {"inputs": {}})["inputs"]
        if different := {name: value for name, value in node["inputs"].items() if old.get(name) != value}:
            changed[node_id] = different
    return changed
