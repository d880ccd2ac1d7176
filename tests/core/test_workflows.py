"""Workflows: the shipped ones are valid, another one needs two files and no code, and errors name the file."""

from __future__ import annotations

import copy
import io
import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from comfy_core.contract import ALIASES, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, JobError
from comfy_core.graphs import graph_faults, is_link
from comfy_core.request.reading import read_request
from comfy_core.targets import Target
from comfy_core.workflows import (
    Workflow,
    default_directory,
    find_workflow,
    load_workflows,
    make_workflow,
    render,
)
from simulators.comfyui.node_table import NODE_TYPES
from tests.core.test_graphs import GRAPH
from tests.core.test_validation import nested

SHIPPED = tuple(sorted(load_workflows(default_directory())))
FOLDERS = {
    (node.name, name): entry.folder
    for node in NODE_TYPES.values()
    for name, entry in node.inputs.items()
    if entry.folder not in {"", "input"}
}
"""The folder below models/ for each input that names a model file, by node class and input."""

WITHOUT_DEFAULT = {"seed", "prompt", "image", "mask"}
"""Inputs without a default; the graph has an example of each."""

INPUTS: JsonObject = {
    "title": "Stylize",
    "type": "object",
    "required": ["sketch"],
    "properties": {
        "sketch": {"type": "string", "contentMediaType": "image/*", "x-node": "Sketch.image"},
        "words": {"type": "string", "default": "b", "x-node": ["Style v1.5.text", "3.again"]},
        "size": {"type": "integer", "default": 128, "x-node": "3.sizes.1"},
        "amount": {"type": "number", "default": 0, "x-node": "Style v1.5.amount", "x-add": 2},
    },
}


def write_workflow(folder: Path, graph: object = GRAPH, inputs: object = INPUTS) -> Path:
    """Write `graph` and `inputs` as the workflow `style` into `folder`; return the folder."""
    folder.joinpath("style.json").write_text(json.dumps(graph), encoding="utf-8")
    folder.joinpath("style.inputs.json").write_text(json.dumps(inputs), encoding="utf-8")
    return folder


def with_input(**rule: object) -> JsonObject:
    """Return INPUTS with the additional input `extra`."""
    return {**INPUTS, "properties": {**INPUTS["properties"], "extra": rule}}


def image_base64() -> str:
    """Return a small image as base64."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(file, "PNG")
    return b64encode(file.getvalue()).decode("ascii")


@pytest.fixture(params=SHIPPED)
def shipped_workflow(request: pytest.FixtureRequest, workflows: Mapping[str, Workflow]) -> Workflow:
    """A shipped workflow; a test runs once for each."""
    return workflows[request.param]


def test_the_workflows_of_the_commands_ship(workflows: Mapping[str, Workflow]) -> None:
    """The folder has the workflow of each alias, and no two workflows have the same version."""
    assert {name: workflows[name].schema["x-task"] for name in ALIASES.values()} == {
        name: alias for alias, name in ALIASES.items()
    }
    assert len({workflow.version for workflow in workflows.values()}) == len(workflows)


def test_a_graph_has_comfyui_s_export_format(shipped_workflow: Workflow) -> None:
    """Each node's id is a number, and the file has the order and indentation of ComfyUI's export."""
    for node_id, node in shipped_workflow.graph.items():
        assert node_id.isdecimal()
        assert list(node) == ["inputs", "class_type", "_meta"]
        assert list(node["_meta"]) == ["title"]
        assert isinstance(node["_meta"]["title"], str)
    assert graph_faults(shipped_workflow.graph) == []
    text = default_directory().joinpath(f"{shipped_workflow.name}.json").read_text(encoding="utf-8")
    assert text.rstrip("\n") == json.dumps(shipped_workflow.graph, indent=2, ensure_ascii=False)


def test_the_models_are_those_that_the_graph_loads(shipped_workflow: Workflow) -> None:
    """`x-models` are exactly the files that the loader nodes name."""
    loaded = {
        f"{FOLDERS[node['class_type'], name]}/{value}"
        for node in shipped_workflow.graph.values()
        for name, value in node["inputs"].items()
        if (node["class_type"], name) in FOLDERS
    }

    assert sorted(loaded) == sorted(shipped_workflow.schema["x-models"])
    files = json.dumps(shipped_workflow.graph).count(".safetensors")
    assert files == len(loaded)


def test_every_input_is_bound_to_the_graph(shipped_workflow: Workflow) -> None:
    """Every input but num_images has its own targets; the sampler's values but denoise are targets."""
    targets = [target for name in shipped_workflow.inputs for target in shipped_workflow.targets(name)]

    assert [name for name in shipped_workflow.inputs if not shipped_workflow.targets(name)] == ["num_images"]
    assert len(set(targets)) == len(targets)
    [sampler] = [node_id for node_id, node in shipped_workflow.graph.items() if node["class_type"] == "KSampler"]
    own = {name for name, value in shipped_workflow.graph[sampler]["inputs"].items() if not is_link(value)}
    bound = {target.input for target in targets if target.node_id == sampler}
    assert own - bound <= {"denoise"}


def test_every_default_is_the_graph_s_value(shipped_workflow: Workflow) -> None:
    """A default is the value in the exported graph, so a request without inputs generates the editor's image."""
    compared = set()
    for name, rule in shipped_workflow.inputs.items():
        if "default" not in rule or "x-insert" in rule:
            continue
        expected = rule["default"] + rule["x-add"] if "x-add" in rule else rule["default"]
        for target in shipped_workflow.targets(name):
            assert target.get(shipped_workflow.graph) == expected
            compared.add(name)
    without = {name for name in shipped_workflow.inputs if name not in compared} - {"loras", "num_images"}
    assert without <= WITHOUT_DEFAULT | ({"width", "height"} if shipped_workflow.image_inputs else set())


def test_every_input_has_a_description(shipped_workflow: Workflow) -> None:
    """The docs are generated from the schema: each input has a description, and numbers have limits."""
    rules = shipped_workflow.inputs

    assert all(rule["description"].endswith(".") for rule in rules.values())
    assert rules["prompt"]["maxLength"] == 4096
    max_side = 3072 if shipped_workflow.name == "flux-dev-upscale" else 2048
    ranges = {
        name: (rules[name]["minimum"], rules[name]["maximum"])
        for name in ("width", "height", "steps", "guidance", "seed", "num_images")
    }
    assert ranges == {
        "width": (64, max_side),
        "height": (64, max_side),
        "steps": (1, 100),
        "guidance": (0, 30),
        "seed": (0, 2**63 - 1),
        "num_images": (1, 8),
    }
    assert {rules[name]["multipleOf"] for name in ("width", "height")} == {16}


def test_strength_is_only_in_image_to_image(workflows: Mapping[str, Workflow]) -> None:
    """Only img2img has `image` and `strength`; the rules of all other inputs but `width` and `height` are equal."""
    txt2img, img2img = (workflows[name].inputs for name in ("flux-dev-txt2img", "flux-dev-img2img"))

    assert img2img.keys() - txt2img.keys() == {"image", "strength"}
    assert txt2img.keys() <= img2img.keys()
    assert (img2img["strength"]["minimum"], img2img["strength"]["maximum"]) == (0.01, 1)
    same = txt2img.keys() - {"width", "height"}
    assert {name: txt2img[name] for name in same} == {name: img2img[name] for name in same}


@pytest.mark.parametrize(
    ("inputs", "paths"),
    [
        ({}, []),
        ({"negative_prompt": ""}, []),
        ({"negative_strength": 2}, []),
        ({"negative_prompt": "blur", "negative_strength": 0.1}, []),
        ({"negative_prompt": "blur"}, ["negative_strength"]),
        ({"negative_prompt": "blur", "negative_strength": 0}, ["negative_strength"]),
        ({"negative_prompt": "", "negative_strength": 0}, []),
    ],
)
def test_a_negative_prompt_needs_its_strength(
    workflows: Mapping[str, Workflow], inputs: JsonObject, paths: list[str]
) -> None:
    """A negative prompt without effect is rejected; the fault names `negative_strength`."""
    faults = []
    try:
        read_request({"prompt": "a", **inputs}, workflows)
    except JobError as error:
        faults = error.report.details["faults"]

    assert [fault["path"] for fault in faults] == paths
    assert all("0" in fault["message"] for fault in faults)


def test_a_third_workflow_is_two_files(tmp_path: Path) -> None:
    """The workflow has an image input, a value in two places, a value in a list, and a value with `x-add`."""
    workflows = load_workflows(write_workflow(tmp_path))
    request = read_request(
        {"workflow": "style", "sketch": image_base64(), "words": "c", "size": 512, "amount": 0.5}, workflows
    )

    rendered = request.render(lambda: 1)

    [graph] = rendered.graphs
    expected = copy.deepcopy(GRAPH)
    expected["3"]["inputs"] |= {"text": "c", "again": "c", "sizes": [64, 512, 256], "amount": 2.5}
    assert graph == expected
    [upload] = rendered.uploads
    assert upload.targets == (Target("7", "image"),)
    assert (upload.file.width, upload.file.height) == (64, 64)
    assert rendered.workflow == "style"
    assert rendered.version == workflows["style"].version
    assert rendered.seeds == (None,)
    assert rendered.inputs == {"words": "c", "size": 512, "amount": 0.5}


def test_a_third_workflow_fills_its_defaults(tmp_path: Path) -> None:
    """A request with only the required inputs gets the schema's defaults. The shipped workflows are not loaded."""
    workflows = load_workflows(write_workflow(tmp_path))

    [graph] = read_request({"workflow": "style", "sketch": image_base64()}, workflows).render(lambda: 1).graphs

    assert graph["3"]["inputs"]["text"] == "b"
    assert graph["3"]["inputs"]["sizes"] == [64, 128, 256]
    with pytest.raises(JobError) as info:
        read_request({"prompt": "a"}, workflows)
    assert info.value.report.details == {"known": ["style"]}


def test_new_nodes_get_ids_of_their_own() -> None:
    """New nodes continue the numbers of the graph. An id that is a very long number has no effect on them."""
    graph = {
        "7": {"class_type": "A", "inputs": {"model": ["9" * 5000, 0]}},
        "9" * 5000: {"class_type": "B", "inputs": {}},
    }
    insert = {"class_type": "C", "link": "m", "inputs": {"name": "n"}}
    items = {"type": "object", "properties": {"name": {"type": "string"}}}
    rule = {"type": "array", "items": items, "x-node": "7.model", "x-insert": insert}
    workflow = make_workflow("style", graph, {"properties": {"loras": rule}})

    [rendered] = render(workflow, {"loras": [{"name": "a"}, {"name": "b"}]})

    assert rendered["9"] == {"class_type": "C", "inputs": {"m": ["8", 0], "n": "b"}}
    assert rendered["7"]["inputs"]["model"] == ["9", 0]


def test_the_version_changes_with_either_file(tmp_path: Path) -> None:
    """A version identifies the exact bytes of both files."""
    first = load_workflows(write_workflow(tmp_path))["style"].version
    again = load_workflows(write_workflow(tmp_path))["style"].version
    changed_graph = load_workflows(write_workflow(tmp_path, graph={**GRAPH, "9": GRAPH["8"]}))["style"].version
    changed_inputs = load_workflows(write_workflow(tmp_path, inputs={**INPUTS, "title": "x"}))["style"].version

    assert first == again
    assert len({first, changed_graph, changed_inputs}) == 3


@pytest.mark.parametrize(
    ("graph", "problem"),
    [
        ([], "at least one"),
        ({}, "at least one"),
        ({"nodes": [], "links": []}, "editor format"),
        ({"1": {"inputs": {}}}, "workflow.1 must be a node"),
        ({"1": {"class_type": "A", "inputs": {"a": ["2", 0]}}}, 'workflow.1.inputs.a links to node "2"'),
        ({"1": {"class_type": "A", "inputs": {"a": nested(500)}}}, "is nested deeper than 32 levels"),
        ({"1": {"class_type": "A", "inputs": {"a": float("nan")}}}, "1.inputs.a must be a finite number"),
    ],
)
def test_an_invalid_graph_names_its_file(tmp_path: Path, graph: object, problem: str) -> None:
    """The ConfigError of an invalid graph names the graph's file and the place."""
    with pytest.raises(ConfigError) as info:
        load_workflows(write_workflow(tmp_path, graph=graph))

    assert str(tmp_path / "style.json") in str(info.value)
    assert problem in str(info.value)


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        (True, "must be an object"),
        ([], "is not a JSON Schema"),
        ({}, "properties is missing"),
        ({"properties": 5}, "is not a JSON Schema"),
        ({"properties": {"a": {"type": "text"}}}, "is not a JSON Schema"),
        ({"properties": {"a": {"pattern": "("}}}, "is not a JSON Schema"),
        ({"properties": {"a": True}}, "properties.a must be an object"),
        ({"properties": {}, "x-models": "ae.safetensors"}, "x-models must be a list"),
        (with_input(**{"x-node": 5}), "properties.extra.x-node must be text or a list"),
        (with_input(**{"x-node": [5]}), "properties.extra.x-node[0] must be text"),
        (with_input(**{"x-node": "Styl.text"}), 'has no node "Styl"'),
        (with_input(**{"x-node": "Sketch.imag"}), 'has no input "imag"; did you mean "image"?'),
        (with_input(**{"x-node": "3.sizes.3"}), '"3.sizes" has no item 3'),
        (with_input(**{"x-node": "3.picture.0"}), '"3.picture" has no item 0'),
        (with_input(**{"x-node": "3.text.0"}), '"3.text" has no item 0'),
        (with_input(**{"x-node": "text"}), '"text" names no input'),
        (with_input(type="string"), 'input "extra" reaches no node: it has no x-node, such as'),
        (with_input(**{"x-node": []}), 'input "extra" reaches no node: its x-node is an empty list'),
        (with_input(**{"x-nod": "3.text"}), 'input "extra" has the unknown keyword "x-nod"; did you mean "x-node"?'),
        (with_input(**{"X-Node": "3.text"}), 'the unknown keyword "X-Node"; did you mean "x-node"?'),
        (with_input(xnode="3.text"), 'reaches no node: it has "xnode"; did you mean "x-node"?'),
        (with_input(x_node="3.text"), 'reaches no node: it has "x_node"; did you mean "x-node"?'),
        (with_input(**{"x-node": "3.text", "x-ad": 1}), 'the unknown keyword "x-ad"; did you mean "x-add"?'),
        ({**INPUTS, "x-modles": []}, 'it has the unknown keyword "x-modles"; did you mean "x-models"?'),
        (with_input(**{"x-add": "1"}), "properties.extra.x-add must be a number"),
        (with_input(**{"type": "string", "x-add": 1, "x-node": "3.text"}), "must have the type integer or number"),
        (with_input(type="integer", default="a"), 'the default of input "extra" must be a whole number'),
        (with_input(**{"x-insert": {"class_type": "A"}}), "properties.extra.x-insert.link is missing"),
        (with_input(**{"x-insert": {"class_type": "A", "link": "m", "inputs": {}}}), "must be a list of objects"),
        (
            with_input(
                **{
                    "type": "array",
                    "items": {"type": "object", "properties": {"name": {}, "rank": {}}},
                    "x-insert": {"class_type": "A", "link": "m", "inputs": {"name": "n"}},
                }
            ),
            "does not bind every key",
        ),
        ({"properties": {"metadata": {"type": "string"}}}, '"metadata" has the same name as a key'),
        ({"properties": {"seed": {"type": "number"}}}, '"seed" must have the type integer'),
        ({"properties": {"num_images": {}}}, '"num_images" must have the type integer'),
        (with_input(**{"$ref": "#", "default": 5, "x-node": "3.text"}), 'default of input "extra" cannot be validated'),
        (with_input(**{"$ref": "file:///etc/passwd", "default": 5, "x-node": "3.text"}), "($ref) does not exist in it"),
        (with_input(**{"pattern": "(", "x-node": "3.text"}), "it is not a JSON Schema"),
        (with_input(**{"default": nested(500), "x-node": "3.text"}), "is nested deeper than 32 levels"),
    ],
)
def test_invalid_inputs_name_their_file(tmp_path: Path, inputs: object, problem: str) -> None:
    """Inputs that could not be rendered are a ConfigError of `load_workflows`, so no job fails because of them."""
    with pytest.raises(ConfigError) as info:
        load_workflows(write_workflow(tmp_path, inputs=inputs))

    assert str(tmp_path / "style.inputs.json") in str(info.value)
    assert problem in str(info.value)


def test_a_reference_to_another_place_is_a_fault_of_the_request(tmp_path: Path) -> None:
    """A reference that is not in the inputs file is not followed, and the job fails with `invalid_input`."""
    references = {"properties": {"extra": {"$ref": "http://127.0.0.1:9/schema", "x-node": "3.text"}}}
    [workflow] = load_workflows(write_workflow(tmp_path, inputs=references)).values()

    with pytest.raises(JobError, match=r"\(\$ref\) does not exist") as info:
        read_request({"workflow": "style", "extra": "a"}, {"style": workflow})
    assert info.value.code is ErrorCode.INVALID_INPUT


@pytest.mark.parametrize("name", ["style.json", "style.inputs.json"])
@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe\xff", b"", b"[" * 200_000], ids=["cut", "binary", "empty", "deep"]
)
def test_a_file_that_is_not_json_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    """The error starts with the path of the file that cannot be parsed."""
    write_workflow(tmp_path).joinpath(name).write_bytes(content)

    with pytest.raises(ConfigError, match="is not JSON") as info:
        load_workflows(tmp_path)

    assert str(info.value).startswith(str(tmp_path / name))


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    """Inputs without their graph are an incomplete workflow."""
    write_workflow(tmp_path).joinpath("style.json").unlink()

    with pytest.raises(ConfigError, match=r"style\.json cannot be read: No such file"):
        load_workflows(tmp_path)


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    """A path that cannot be opened is reported with the system's reason."""
    folder = tmp_path / "b.inputs.json"
    folder.mkdir()
    tmp_path.joinpath("b.json").write_text(json.dumps(GRAPH), encoding="utf-8")

    with pytest.raises(ConfigError, match=r"b\.inputs\.json cannot be read: Is a directory"):
        load_workflows(tmp_path)


@pytest.mark.parametrize("name", ["", "not-there"])
def test_a_folder_without_workflows_is_named(tmp_path: Path, name: str) -> None:
    """An empty or missing folder is a ConfigError, which has the folder and the files that it must contain."""
    with pytest.raises(ConfigError, match=r"<name>\.inputs\.json") as info:
        load_workflows(tmp_path / name)

    assert str(tmp_path / name) in str(info.value)


def test_a_workflow_is_found_by_name_and_alias(workflows: Mapping[str, Workflow]) -> None:
    """A shipped workflow is found by its alias and by its own name."""
    assert find_workflow("txt2img", workflows).name == "flux-dev-txt2img"
    assert find_workflow("img2img", workflows).name == "flux-dev-img2img"
    assert find_workflow("flux-dev-txt2img", workflows).name == "flux-dev-txt2img"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "txt2imgs",
            'There is no workflow "txt2imgs"; did you mean "txt2img"? Known: ' + ", ".join(SHIPPED),
        ),
        ("", 'There is no workflow "". Known: ' + SHIPPED[0]),
        ("w" * 9999, f'There is no workflow "{"w" * 56}.... Known: '),
    ],
)
def test_an_unknown_workflow_lists_the_known_ones(workflows: Mapping[str, Workflow], name: str, sentence: str) -> None:
    """The error has the unknown name, shortened if it is long, the nearest name and all known names."""
    with pytest.raises(JobError) as info:
        find_workflow(name, workflows)

    assert info.value.code is ErrorCode.UNKNOWN_WORKFLOW
    assert info.value.report.message.startswith(sentence)
    assert info.value.report.details == {"known": list(SHIPPED)}
