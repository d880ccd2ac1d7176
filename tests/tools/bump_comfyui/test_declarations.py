"""The comparison of what two versions of ComfyUI declare."""

from __future__ import annotations

from typing import Any

from tools.bump_comfyui.changes import ABSENT, Change
from tools.bump_comfyui.declarations import (
    flags_in,
    folders_in,
    new_classes,
    new_file_inputs,
    node_changes,
    packages_in,
    routes_in,
    set_changes,
    value_changes,
)


def node(module: str = "nodes", **inputs: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return a node class of /object_info with required inputs and one output."""
    return {"input": {"required": inputs}, "output": ["IMAGE"], "output_name": ["IMAGE"], "python_module": module}


def test_flags_are_read_without_their_help_texts() -> None:
    """Every name of an argument is a flag; a flag in a help text or in other code is not."""
    source = """
group.add_argument("--cache-lru", type=int, help="Unlike --cache-none.")
parser.add_argument("--tls-keyfile", "--key", type=str)
logging.info("--no-such-flag")
"""
    assert flags_in(source) == {"--cache-lru", "--tls-keyfile", "--key"}


def test_folders_are_the_assigned_keys() -> None:
    """A model type is a key that the module assigns, not one that it reads."""
    source = 'folder_names_and_paths["loras"] = ([], set())\n    paths = folder_names_and_paths["other"]\n'

    assert folders_in(source) == {"loras"}


def test_routes_have_method_and_path() -> None:
    """Routes of both spellings of the route table are found, with quotes of both kinds."""
    sources = ["@routes.get(\"/queue\")\n@self.routes.patch('/logs/{id}')", '@ROUTES.post(f"/api/assets")']

    assert routes_in(sources) == {"GET /queue", "PATCH /logs/{id}", "POST /api/assets"}


def test_packages_have_their_versions() -> None:
    """A lock file's packages are read without hashes, markers and comments."""
    lock = "# by scripts/lock\ntorch==2.14.1 \\\n    --hash=sha256:00\nuvloop==0.2 ; sys_platform != 'win32'\n"

    assert packages_in(lock) == {"torch": "2.14.1", "uvloop": "0.2"}


def test_differences_of_sets_and_values() -> None:
    """What only one version has is listed, removals first; of values, only those that differ."""
    assert set_changes(frozenset("ab"), frozenset("bc")) == [
        Change("a", "", "yes", ABSENT),
        Change("c", "", ABSENT, "yes"),
    ]
    assert value_changes({"a": "1", "b": "1"}, {"b": "2", "c": "1"}) == [
        Change("a", "", "1", ABSENT),
        Change("b", "", "1", "2"),
        Change("c", "", ABSENT, "1"),
    ]


def test_the_newer_form_of_choices_is_no_difference() -> None:
    """An input of choices is the same in the older form, `[[…]]`, and in the newer one, `["COMBO", …]`."""
    before = {"A": node(mode=[["x", "y"]])}
    after = {"A": node(mode=["COMBO", {"options": ["x", "y"]}])}

    assert node_changes(before, after) == []


def test_changed_node_classes() -> None:
    """Removed classes, new inputs, changed options, and added or removed choices are listed; new classes are not."""
    before = {"Gone": node(), "A": node(mode=[["x", "y"]], steps=["INT", {"max": 100}])}
    after = {"New": node(), "A": node(mode=[["y", "z"]], steps=["INT", {"max": 10}], size=["INT", {"default": 1}])}

    assert node_changes(before, after) == [
        Change("A", "input mode.options", "x", "z"),
        Change("A", "input size", ABSENT, "INT, required"),
        Change("A", "input steps.max", "100", "10"),
        Change("Gone", "", "yes", ABSENT),
    ]


def test_the_files_of_an_upload_are_no_difference() -> None:
    """The choices of an input for uploads are files of the machine on which the recording was made."""
    before = {"LoadImage": node(image=[["a.png"], {"image_upload": True}])}
    after = {"LoadImage": node(image=[["b.png"], {"image_upload": True}])}

    assert node_changes(before, after) == []


def test_new_classes_that_name_files() -> None:
    """Of the classes that the pinned source does not name, those with an input for a file are listed with its use."""
    declared = {
        "LoadImage": node(image=[["a.png"], {"image_upload": True}]),
        "LoadCloud": node(file=["STRING"]),
        "SaveCloud": node(filename_prefix=["STRING"]),
        "Blur": node(radius=["INT"]),
        "PaidLoader": node("comfy_api_nodes.nodes_paid", file=["STRING"]),
    }
    added = new_classes(declared, ['NODE_CLASS_MAPPINGS = {"LoadImage": LoadImage}'])

    assert added == ["Blur", "LoadCloud", "SaveCloud"]
    assert new_file_inputs(declared, added) == [
        Change("LoadCloud", "input file", ABSENT, "loads"),
        Change("SaveCloud", "input filename_prefix", ABSENT, "writes"),
    ]
