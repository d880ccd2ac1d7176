"""No graph can name a file outside its job's own folders, in any spelling, node, link or nesting."""

from __future__ import annotations

import time
from typing import Any

import pytest

from comfy_core.comfyui.path_guard import path_faults, playlist_faults
from comfy_core.contract import Fault
from comfy_core.graphs import Graph
from comfy_core.targets import Target

OWN_FOLDER = "run-" + "0" * 32
OTHER_JOBS_FOLDER = "run-" + "a" * 32
PATHS_OUTSIDE = (
    "/etc/passwd",
    "//server/share/x.png",
    "\\\\server\\share\\x.png",
    "\\x.png",
    " /x.png",
    "C:\\x.png",
    "c:/x.png",
    "~/x.png",
    "~root/x.png",
    "$HOME/x.png",
    "${HOME}/x.png",
    "%USERPROFILE%\\x.png",
    "..",
    "../x.png",
    "..\\x.png",
    "a/../../x.png",
    "a\\..\\x.png",
    "a/.. /x.png",
    "a/.../x.png",
    "a/..",
    "..X[input]",
    "../x.png [input]",
    "a/..Y[input]Z[input]",
    "%2e%2e/x.png",
    "%2E%2E%2Fx.png",
    "%252e%252e%252fx.png",
    "%2fetc%2fpasswd",
    "．．/x.png",  # noqa: RUF001 - full-width full stops
    "a／．．／x.png",  # noqa: RUF001 - and slashes
    "‥/x.png",
    "a\u2215..\u2215x.png",
    "/dev/zero",
    "file:///etc/passwd",
    "concat:/etc/passwd|x",
    "subfile,,start,0,end,9,,:/etc/passwd",
    "a.png\n/etc/passwd",
    "a.png, ../b.png",
    '["../x.png"]',
    "a\x00.png",
    "a%00.png",
    f"{OTHER_JOBS_FOLDER}/0.png",
    f"{OTHER_JOBS_FOLDER.upper()}/0.png",
    f"a/{OTHER_JOBS_FOLDER}/0.png",
    f"{OWN_FOLDER}/../{OTHER_JOBS_FOLDER}/0.png",
)
NAMES_INVALID_FOR_LOADERS = (
    "x.png [output]",
    "x.png[output]",
    "x.pngZ[temp]",
    "x.png [temp]",
    "x.png [ output ]",
    "x.png [Output]",
    "x.png [input] [output]",
    "x.png [output] [input]",
    ".",
    "./",
    "output",
    "run-*/0.png",
    "r?n/0.png",
    "**/0.png",
    "nul.png",
    "a/CON",
    "A" * 5000,
)
LOADERS: tuple[tuple[str, str], ...] = (
    ("LoadImage", "image"),
    ("LoadImageMask", "image"),
    ("LoadImageOutput", "image"),
    ("LoadLatent", "latent"),
    ("LoadAudio", "audio"),
    ("RecordAudio", "audio"),
    ("LoadVideo", "file"),
    ("Load3D", "model_file"),
    ("Load3D", "image"),
    ("WebcamCapture", "image"),
    ("Painter", "mask"),
    ("LoadImageSetFromFolderNode", "folder"),
    ("LoadTrainingDataset", "folder_name"),
    ("VHS_LoadVideoPath", "video"),
    ("ImageFromPath", "path"),
)
MODEL_LOADERS = (("UNETLoader", "unet_name"), ("LoraLoader", "lora_name"), ("DiffusersLoader", "model_path"))
WRITERS = (
    ("SaveImage", "filename_prefix"),
    ("VAESave", "filename_prefix"),
    ("SaveLoRA", "prefix"),
    ("LossGraphNode", "filename_prefix"),
    ("SaveImageDataSetToFolder", "folder_name"),
    ("SaveImageDataSetToFolder", "filename_prefix"),
    ("SaveTrainingDataset", "folder_name"),
    ("Image Save", "output_path"),
    ("Image Saver", "path"),
)


def faults(class_type: str, name: str, value: Any, *others: Any, **node_types: Any) -> list[Fault]:  # noqa: ANN401 - any JSON value
    """Return the faults of a graph whose node 1 has the input `name`; `others` are the nodes 2, 3, …."""
    graph: Graph = {"1": {"class_type": class_type, "inputs": {name: value}}}
    graph |= {str(number): node for number, node in enumerate(others, 2)}
    return path_faults(graph, node_types, OWN_FOLDER)


def text_node(value: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    """Return a node that outputs a text."""
    return {"class_type": "PrimitiveString", "inputs": {"value": value}}


@pytest.mark.parametrize("value", PATHS_OUTSIDE)
def test_a_path_outside_the_job_s_folders_is_rejected(value: str) -> None:
    """Paths outside the job's folders are rejected in loaders of images and models, and in save nodes."""
    for class_type, name in (*LOADERS, *MODEL_LOADERS, *WRITERS):
        [fault] = faults(class_type, name, value)
        assert fault.path == f"workflow.1.inputs.{name}"


@pytest.mark.parametrize("value", NAMES_INVALID_FOR_LOADERS)
def test_a_loader_cannot_name_files_of_other_jobs(value: str) -> None:
    """Annotations, wildcards and folders that lead to other files are rejected, as are device names and long names."""
    for class_type, name in LOADERS:
        assert len(faults(class_type, name, value)) == 1, class_type


@pytest.mark.parametrize("value", ["../x.png", f"{OTHER_JOBS_FOLDER}/0.png", "x.png [output]", "/etc/passwd"])
@pytest.mark.parametrize(("class_type", "name"), LOADERS)
def test_nested_names_are_checked(class_type: str, name: str, value: str) -> None:
    """ComfyUI unwraps `__value__`, Load3D accepts an object of names, and a list may contain several."""
    for wrapped in (
        {"__value__": value},
        {"__value__": [value]},
        {"__value__": {"__value__": value}},
        [value, value],
        ["a.png", "b.png", value],
        [[value]],
        {"image": "a.png", "recording": value},
        {value: "a.png"},
        {"__value__": [value, 0]},
        ["2", 0],
        ["2", 0.0],
        {"__value__": ["2", 0]},
    ):
        assert faults(class_type, name, wrapped, text_node(value)), wrapped
    assert faults(class_type, name, ["2", 0], text_node({"__value__": value}))
    assert faults(class_type, name, ["2", 0], text_node(["3", 0]), text_node(value))


@pytest.mark.parametrize(
    "value",
    [
        "x.png",
        "example.png",
        "sub/x.png",
        "x.png [input]",
        "my picture (1) [v2].png",
        "a..b.png",
        "wait... what.png",
        "100%.png",
        "größe.png",
        f"{OWN_FOLDER}/0.png",
        f"{OWN_FOLDER}/0.png [input]",
        "",
    ],
)
def test_a_file_of_the_job_is_accepted(value: str) -> None:
    """A file in the input folder, an upload of the job, and an empty name are accepted."""
    for class_type, name in (("LoadImage", "image"), ("LoadVideo", "file"), ("Painter", "mask")):
        assert faults(class_type, name, value) == []


@pytest.mark.parametrize(
    "value",
    [
        "ComfyUI",
        "a/b/fox",
        "%date:yyyy-MM-dd%/fox_%width%x%height%",
        "x:y*?",
        "%KSampler.seed%_fox",
        "wait... what",
        "fox [output]",
        ".",
    ],
)
def test_a_path_in_the_output_folder_is_accepted(value: str) -> None:
    """A path in the output folder may contain ComfyUI's variables."""
    assert faults("SaveImage", "filename_prefix", value, {"class_type": "KSampler", "inputs": {"seed": 5}}) == []


@pytest.mark.parametrize("title", ["Mine", None])
def test_a_variable_cannot_insert_a_path_into_a_prefix(title: str | None) -> None:
    """A variable such as `%Node title.input%`, which some nodes replace, cannot insert a path into a prefix."""
    node = text_node("../../x") | ({"_meta": {"title": title}} if title else {})
    assert faults("Image Save", "filename_prefix", f"%{title or 'PrimitiveString'}.value%", node)


@pytest.mark.parametrize(
    ("class_type", "name", "value"),
    [
        ("CLIPTextEncode", "text", "../x"),
        ("CLIPTextEncode", "text", "/imagine a cat"),
        ("CLIPTextEncodeFlux", "t5xxl", "a ../../ b"),
        ("PrimitiveString", "value", "/etc/passwd"),
        ("RegexMatch", "regex_pattern", "^/a/../b"),
        ("LoraTagLoader", "text", "/imagine <lora:a:1>"),
        ("ETN_LoadImageBase64", "image", "/9j/4AAQSkZJRg" + "A" * 5000),
        ("LoadImageFromUrl", "url", "https://example.com/a/../b.png"),
        ("Image Save", "filename_delimiter", "/"),
        ("UNETLoader", "unet_name", "flux/flux1-dev.safetensors"),
        ("CheckpointLoaderSimple", "ckpt_name", "SD1.5\\v1-5 [pruned].ckpt"),
        ("LoadImage", "image", 5),
    ],
)
def test_a_value_that_is_not_a_path_is_accepted(class_type: str, name: str, value: object) -> None:
    """Prompts, base64, URLs and other values that are not file names may look like a path."""
    assert faults(class_type, name, value) == []


@pytest.mark.parametrize("value", ["/etc/passwd", "file:///etc/passwd", "../x.png", f"{OTHER_JOBS_FOLDER}/0.png"])
def test_an_input_for_content_cannot_contain_a_path(value: str) -> None:
    """An input for content cannot contain a path, because some nodes accept either a URL or a path."""
    assert faults("LoadImageFromUrlOrPath", "url_or_path", value)
    assert faults("LoadImageFromUrl", "image", value)
    assert faults("ETN_LoadImageBase64", "image", value)


def test_an_image_in_place_of_a_name_is_reported_with_the_remedy() -> None:
    """The fault has the length of the value, and does not repeat the value."""
    [fault] = faults("LoadImage", "image", "A" * 5_000_000)
    assert fault.message == (
        "has 5000000 characters, which is too long for a file name; send the file in `images` and use its name here"
    )


def test_a_graph_of_very_many_names_is_rejected_quickly() -> None:
    """A graph with 10 MB of names, in the spellings that take longest, is rejected quickly."""
    name = "é%2541" + "b/" * 450
    graph: Graph = {
        str(number): {"class_type": "LoadImage", "inputs": {"image": f"{name}{number}"}} for number in range(10_000)
    }
    started_at = time.process_time()
    [fault] = path_faults(graph, {}, OWN_FOLDER)
    assert fault.path == "workflow"
    few = dict(list(graph.items())[:500])
    assert path_faults(few, {}, OWN_FOLDER) == []
    assert time.process_time() - started_at < 10


def test_long_variables_are_rejected() -> None:
    """Of 4,000 prefixes, which each contain a variable of 1,000 characters eight times, 50 are reported."""
    inputs = {"filename_prefix": "%SaveImage.x%" * 8, "x": "y" * 1000}
    graph: Graph = {str(number): {"class_type": "SaveImage", "inputs": inputs} for number in range(4000)}
    assert len(path_faults(graph, {}, OWN_FOLDER)) == 50


def test_a_link_to_a_text_is_resolved() -> None:
    """The linked value is checked, and the fault names the node that contains it."""
    assert faults("LoadImage", "image", ["2", 0], text_node("x.png")) == []
    [fault] = faults("LoadImage", "image", ["2", 0], text_node("../x.png"))
    assert 'in node "2"' in fault.message
    assert faults("SaveImage", "filename_prefix", ["2", 0], text_node("../x"))


def test_a_computed_name_is_rejected_for_a_loader() -> None:
    """A computed name cannot be checked before the run, so a loader's file name must be plain text."""
    joined = {"class_type": "StringConcatenate", "inputs": {"string_a": "..", "string_b": "/x.png", "delimiter": ""}}
    [fault] = faults("LoadImage", "image", ["2", 0], joined)
    assert "must be text, not a link" in fault.message
    assert "use its name here" in fault.message
    assert faults("LoadImage", "image", ["2", 0], text_node(["3", 0]), joined)
    assert faults("LoadImage", "image", ["2", 0], text_node(["2", 0]))
    assert faults("LoadImage", "image", ["9", 0])


def test_a_computed_prefix_is_accepted_if_the_node_reports_its_files() -> None:
    """The files that SaveImage reports can be deleted; VAESave and the nodes for datasets report none."""
    joined = {"class_type": "StringConcatenate", "inputs": {"string_a": "..", "string_b": "/x", "delimiter": ""}}
    assert faults("SaveImage", "filename_prefix", ["2", 0], joined) == []
    assert faults("VAESave", "filename_prefix", ["2", 0], joined)
    assert faults("SaveTrainingDataset", "folder_name", ["2", 0], joined)
    assert faults("SaveImageTextDataSetToFolder", "filename_prefix", ["2", 0], joined)


def test_a_linked_image_is_not_a_name() -> None:
    """A link is not a file name if /object_info declares that the input or the linked output is an image."""
    image = {"class_type": "EmptyImage", "inputs": {}}
    takes_image = {"input": {"required": {"image": ["IMAGE", {}]}}}
    gives_image = {"output": ["IMAGE"]}
    assert faults("LoadAndScale", "image", ["2", 0], image, LoadAndScale=takes_image) == []
    assert faults("LoadAndScale", "image", ["2", 0], image, EmptyImage=gives_image) == []
    assert faults("LoadAndScale", "image", ["2", 0], image)
    anything = {"output": ["*"]}
    assert faults("LoadAndScale", "image", ["2", 0], image, EmptyImage=anything)
    assert faults("UNETLoader", "unet_name", ["2", 0], image, EmptyImage=anything) == []


def test_an_upload_declared_only_in_object_info_is_checked() -> None:
    """Only /object_info shows that the input is a file: the names of class and input do not."""
    sketchpad = {"input": {"required": {"canvas": ["STRING", {"image_upload": True}]}}}
    assert faults("Sketchpad", "canvas", "../x.png") == []
    assert faults("Sketchpad", "canvas", "../x.png", Sketchpad=sketchpad)


@pytest.mark.parametrize(
    "data",
    [
        b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nc=IN IP4 10.0.0.1\r\n",
        b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011">',
        b"\xef\xbb\xbf#extm3u\n",
    ],
)
def test_a_playlist_is_rejected_as_a_video(data: bytes) -> None:
    """A playlist is rejected, because FFmpeg would open the files that the playlist lists."""
    [fault] = playlist_faults(data, [Target("5", "file")])
    assert fault.path == "workflow.5.inputs.file"
    assert "not a playlist" in fault.message


@pytest.mark.parametrize("data", [b"\x00\x00\x00\x18ftypmp42", b"RIFF\x00\x00\x00\x00WAVE", b"", b"{}"])
def test_a_video_is_not_a_playlist(data: bytes) -> None:
    """A playlist is recognised by its first bytes."""
    assert playlist_faults(data, [Target("5", "file")]) == []


def test_every_fault_has_its_path_and_a_remedy() -> None:
    """Each fault has the path of the invalid input and a remedy, and does not repeat the value."""
    graph = {
        "5": {"class_type": "LoadImage", "inputs": {"image": "../secret.png"}},
        "a b": {"class_type": "SaveImage", "inputs": {"filename_prefix": "/srv/x"}},
    }
    first, second = path_faults(graph, {}, OWN_FOLDER)
    assert first.path == "workflow.5.inputs.image"
    assert first.message == 'must not contain ".."; send the file in `images` and use its name here'
    assert second.path == 'workflow["a b"].inputs.filename_prefix'
    assert second.message == "must not be an absolute path; use a name, or a path below the output folder"
