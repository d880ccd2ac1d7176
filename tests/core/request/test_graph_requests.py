"""Requests with a graph, in the forms that worker-comfyui and ComfyUI accept, with the files that the graph loads."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import pytest
from PIL import Image

from comfy_core.contract import ErrorReport, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.graphs import Graph
from comfy_core.request.reading import read_request
from comfy_core.request.rendering import Rendered, Request
from comfy_core.targets import Target
from comfy_core.workflows import Workflow

SAVING_GRAPH: Graph = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(200)


def png(width: int = 8) -> bytes:
    """Return a small PNG."""
    file = io.BytesIO()
    Image.new("RGB", (width, 8), "teal").save(file, "PNG")
    return file.getvalue()


BASE64 = b64encode(png()).decode()


def graph_that_loads(value: object, class_type: str = "LoadImage", name: str = "image", **others: object) -> Graph:
    """Return a graph whose node 1 loads the file `value`."""
    return {
        "1": {"class_type": class_type, "inputs": {name: value, **others}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }


def read(workflows: Mapping[str, Workflow], body: object) -> Request:
    """Return a valid request with its files fetched."""
    return read_request(body, workflows).with_fetched(lambda wanted: [png() for _ in wanted])


def rendered(workflows: Mapping[str, Workflow], body: object) -> Rendered:
    """Return the graphs and uploads for ComfyUI."""
    return read(workflows, body).render()


def rejection_of(workflows: Mapping[str, Workflow], body: object) -> ErrorReport:
    """Return the report of an invalid request."""
    with pytest.raises(JobError) as info:
        rendered(workflows, body)
    return info.value.report


def faults_of(workflows: Mapping[str, Workflow], body: object) -> dict[str, str]:
    """Return the faults of an invalid request by path."""
    return {fault["path"]: fault["message"] for fault in rejection_of(workflows, body).details["faults"]}


@pytest.mark.parametrize(
    "extra_keys",
    [
        {"images": None},
        {"images": []},
        {"comfy_org_api_key": None},
        {"client_id": "c", "priority": 1, "user": {"id": 5}},
        {"metadata": {"user": 5}},
        {"extra_data": None},
        {"extra_data": "text"},
        {"prompt": "a fox", "seed": 5},
    ],
    ids=str,
)
def test_unknown_keys_beside_a_graph_are_warnings(workflows: Mapping[str, Workflow], extra_keys: JsonObject) -> None:
    """A key that a graph cannot use is a warning unless its value is empty; worker-comfyui ignores such keys."""
    result = rendered(workflows, {"workflow": SAVING_GRAPH, **extra_keys})

    assert result.graphs == (SAVING_GRAPH,)
    ignored = [key for key, value in extra_keys.items() if value]
    assert sorted(warning.split(":")[0] for warning in result.warnings) == sorted(ignored)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("webhook", "belongs next to `input`"),
        ("s3Config", "belongs next to `input`"),
        ("policy", "belongs next to `input`"),
        ("overides", 'did you mean "overrides"?'),
    ],
)
def test_a_key_in_the_wrong_place_is_a_warning(workflows: Mapping[str, Workflow], key: str, expected: str) -> None:
    """The warning has the correct place or the similar key."""
    [warning] = rendered(workflows, {"workflow": SAVING_GRAPH, key: 1}).warnings

    assert expected in warning


def test_comfy_org_s_api_key_is_passed_on_and_not_shown(workflows: Mapping[str, Workflow]) -> None:
    """The API key is in ComfyUI's extra_data, next to the caller's entries, and in no result or warning."""
    extra = {"extra_pnginfo": {"workflow": {"nodes": []}}, "client_id": "x", "prompt_id": "y", "kept": 1}
    body = {"workflow": SAVING_GRAPH, "comfy_org_api_key": "comfyui-secret", "extra_data": extra}

    request = read(workflows, body)
    result = request.render()

    assert result.extra_data == {
        "extra_pnginfo": {"workflow": {"nodes": []}},
        "kept": 1,
        "api_key_comfy_org": "comfyui-secret",
    }
    assert "comfyui-secret" not in repr(request) + repr(result)
    assert "comfyui-secret" not in json.dumps([result.graphs, result.inputs, result.warnings])
    assert sorted(warning.split(":")[0] for warning in result.warnings) == [
        "extra_data.client_id",
        "extra_data.prompt_id",
    ]


def test_extra_pnginfo_must_be_an_object(workflows: Mapping[str, Workflow]) -> None:
    """Another type is omitted with a warning, because nodes that copy the value would fail."""
    result = rendered(workflows, {"workflow": SAVING_GRAPH, "extra_data": {"extra_pnginfo": None}})

    assert result.extra_data == {}
    assert len(result.warnings) == 1


@pytest.mark.parametrize(
    "body",
    [
        SAVING_GRAPH,
        {**SAVING_GRAPH, "images": [], "output_format": None},
        {"prompt": SAVING_GRAPH, "client_id": "c"},
        {"workflow": {"prompt": SAVING_GRAPH, "client_id": "c"}},
        {"workflow": {"output": SAVING_GRAPH, "workflow": {"nodes": [], "links": []}}},
        {"workflow": {"workflow": SAVING_GRAPH}},
        {"workflow": {"input": {"workflow": SAVING_GRAPH}}},
        {"input": {"workflow": SAVING_GRAPH}},
        {"id": "job", "input": {"workflow": json.dumps(SAVING_GRAPH)}, "webhook": "https://example.com"},
        {"workflow": json.dumps({"prompt": SAVING_GRAPH})},
        {"prompt": json.dumps(SAVING_GRAPH)},
        {"prompt": "\ufeff" + json.dumps(SAVING_GRAPH)},
        {"workflow": {"prompt": json.dumps(SAVING_GRAPH)}},
        {"input": {"input": {"workflow": SAVING_GRAPH}}},
        {"graph": SAVING_GRAPH},
        {"workflow_json": SAVING_GRAPH},
        {"input": json.dumps({"workflow": SAVING_GRAPH})},
    ],
    ids=lambda body: str(body)[:50],
)
def test_a_graph_is_found_in_every_wrapper(workflows: Mapping[str, Workflow], body: JsonObject) -> None:
    """A bare graph, a body of POST /prompt and RunPod's envelope are recognised; a warning names the wrapper."""
    result = rendered(workflows, body)

    assert result.graphs == (SAVING_GRAPH,)
    assert any("was read" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    "body", [{"nodes": [], "links": []}, {"prompt": {"nodes": []}}, {"workflow": {"prompt": {"nodes": []}}}], ids=str
)
def test_the_editor_s_format_is_recognised_in_every_wrapper(
    workflows: Mapping[str, Workflow], body: JsonObject
) -> None:
    """The error names the export menu of current and of older frontends."""
    message = faults_of(workflows, body)["workflow"]

    assert "File > Export (API) (older frontends: Workflow > Export (API))" in message


def test_keys_beside_a_wrapped_graph_are_used(workflows: Mapping[str, Workflow]) -> None:
    """Images and extra_data that are next to the graph inside a wrapper are used."""
    body = {
        "workflow": {"prompt": graph_that_loads("a.png"), "extra_data": {"a": 1}},
        "images": [{"name": "a.png", "image": BASE64}],
    }
    whole = {
        "workflow": {"input": {"workflow": graph_that_loads("a.png"), "images": [{"name": "a.png", "image": BASE64}]}}
    }

    assert rendered(workflows, body).extra_data == {"a": 1}
    assert rendered(workflows, whole).uploads == rendered(workflows, body).uploads


@pytest.mark.parametrize("link", [[1, 0], ["1", "0"], [1.0, 0]], ids=str)
def test_a_link_may_have_an_integer_node_id(workflows: Mapping[str, Workflow], link: object) -> None:
    """An integer node id in a link is converted to ComfyUI's form, also in an override."""
    graph = {**SAVING_GRAPH, "2": {"class_type": "SaveImage", "inputs": {"images": link, "filename_prefix": "x"}}}
    with_override = {"workflow": SAVING_GRAPH, "overrides": {"2.images": link}}

    assert (
        rendered(workflows, {"workflow": graph}).graphs == rendered(workflows, with_override).graphs == (SAVING_GRAPH,)
    )


def test_an_override_can_repair_a_broken_link(workflows: Mapping[str, Workflow]) -> None:
    """A graph is checked after its overrides are applied; a broken link elsewhere is removed with a warning."""
    graph = {**SAVING_GRAPH, "2": {"class_type": "SaveImage", "inputs": {"images": ["9", 0]}}}
    loose = {**SAVING_GRAPH, "3": {"class_type": "ImageInvert", "inputs": {"image": ["99", 0]}}}

    assert list(faults_of(workflows, {"workflow": graph})) == ["workflow.2.inputs.images"]
    assert rendered(workflows, {"workflow": graph, "overrides": {"2.images": ["1", 0]}}).warnings == ()
    left = rendered(workflows, {"workflow": loose})
    assert left.graphs == (SAVING_GRAPH,)
    assert left.warnings[0].startswith("workflow.3.inputs.image: links to node")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("in.png", "in.png"),
        ("in.png [input]", "in.png"),
        ("in.png[input]", "in.png"),
        ("in.png", "in.png [input]"),
        ("sub/in.png", "sub/in.png"),
        ("sub\\in.png [input]", "sub/in.png"),
        ("sub/in.png", "sub\\in.png"),
        ("clipspace/clipspace-mask-1.png [input]", "clipspace/clipspace-mask-1.png"),
        ("C:\\Users\\me\\fox.png", "C:\\Users\\me\\fox.png"),
        ("größe (1).png", "größe (1).png"),
        ("gro\u0308ße.png", "größe.png"),
    ],
)
@pytest.mark.parametrize("class_type", ["LoadImage", "LoadImageMask", "LoadImageOutput"])
def test_an_image_is_matched_to_the_node_that_loads_it(
    workflows: Mapping[str, Workflow], class_type: str, value: str, name: str
) -> None:
    """Annotations, the kind of slash and the Unicode form do not matter in the comparison."""
    graph = graph_that_loads(value, class_type, channel="red", upload="image")

    result = rendered(workflows, {"workflow": graph, "images": [{"name": name, "image": BASE64, "type": "image/png"}]})

    [upload] = result.uploads
    assert upload.targets == (Target("1", "image"),)
    assert (upload.file.data, upload.extension) == (png(), "png")
    assert result.warnings == ()


@pytest.mark.parametrize(
    ("class_type", "name"),
    [
        ("CLIPTextEncode", "text"),
        ("SaveImage", "filename_prefix"),
        ("LoadImageMask", "channel"),
        ("PrimitiveString", "value"),
        ("LoadImage", "upload"),
        ("CheckpointLoaderSimple", "ckpt_name"),
        ("KSampler", "sampler_name"),
    ],
)
def test_a_text_of_the_same_name_is_not_changed(workflows: Mapping[str, Workflow], class_type: str, name: str) -> None:
    """An image's name changes no prompt, prefix or choice."""
    graph: Graph = {**SAVING_GRAPH, "3": {"class_type": class_type, "inputs": {name: "knight"}}}

    result = rendered(workflows, {"workflow": graph, "images": [{"name": "knight", "image": BASE64}]})

    assert result.graphs == (graph,)
    assert result.uploads[0].targets == ()
    assert result.warnings == ('images[0].image: no node of the graph loads "knight"',)


def test_an_image_with_the_wrong_name_is_rejected_before_it_is_queued(workflows: Mapping[str, Workflow]) -> None:
    """If a node loads a file that was not sent, an image that no node loads is a fault, which has both names."""
    images = [{"name": "a.png", "image": BASE64}]

    faults = faults_of(workflows, {"workflow": graph_that_loads("b.png"), "images": images})

    assert list(faults) == ["images[0].image"]
    assert '"a.png"' in faults["images[0].image"]
    assert 'node "1" (LoadImage) loads "b.png", which was not sent' in faults["images[0].image"]
    assert rendered(workflows, {"workflow": graph_that_loads("b.png [output]"), "images": images}).warnings != ()


@pytest.mark.parametrize(
    "value",
    [
        BASE64,
        f"data:image/png;base64,{BASE64}",
        f" DATA:image/png;BASE64,{BASE64}",
        b64encode(png(900)).decode(),
        "https://example.com/a.png?token=secret",
        "HTTPS://example.com/a.png",
    ],
    ids=lambda value: value[:24],
)
@pytest.mark.parametrize("overridden", [False, True], ids=["graph", "override"])
def test_an_image_in_the_graph_is_uploaded(workflows: Mapping[str, Workflow], value: str, *, overridden: bool) -> None:
    """Base64, a data URI or a URL in a loader is uploaded; graph and result contain a name instead."""
    body = (
        {"workflow": graph_that_loads("a.png"), "overrides": {"1.image": value}}
        if overridden
        else {"workflow": graph_that_loads(value)}
    )

    request = read(workflows, body)
    result = request.render()

    [upload] = result.uploads
    assert upload.targets == (Target("1", "image"),)
    assert upload.file.mime_type == "image/png"
    name = result.graphs[0]["1"]["inputs"]["image"]
    assert name.startswith("upload-1")
    assert result.inputs == ({"overrides": {"1.image": name}} if overridden else {})
    assert [source.field_path for source in request.files.values()] == [
        'overrides["1.image"]' if overridden else "workflow.1.inputs.image"
    ]


@pytest.mark.parametrize(
    ("value", "code", "expected"),
    [
        ("x" * 300 + "!", ErrorCode.INVALID_INPUT, "is too long for a file name, and is not base64"),
        ("A" * 200_000, ErrorCode.INVALID_IMAGE, "workflow.1.inputs.image is not an image"),
        ("http://example.com/a.png", ErrorCode.INVALID_INPUT, "is a URL with another scheme than https"),
        ("file:///etc/passwd", ErrorCode.INVALID_INPUT, "is a URL with another scheme than https"),
        ("data:image/png;base64,???", ErrorCode.INVALID_INPUT, "is not base64"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_loader_without_a_valid_image_is_one_short_fault(
    workflows: Mapping[str, Workflow], value: str, code: ErrorCode, expected: str
) -> None:
    """An invalid image is rejected before it is sent to ComfyUI, and its value is not repeated in the fault."""
    report = rejection_of(workflows, {"workflow": graph_that_loads(value)})

    assert report.code is code
    assert expected in report.message
    assert len(report.to_json()) < 1000


@pytest.mark.parametrize(
    ("class_type", "name", "value"),
    [
        ("LoadImage", "image", "knight with a long name and spaces 0123456789 0123456789 0123456789.png"),
        ("LoadImage", "image", "abcd" * 16),
        ("ETN_LoadImageBase64", "image", BASE64),
        ("LoadImageFromUrl", "url", "https://example.com/a.png"),
        ("CLIPTextEncode", "text", f"data:image/png;base64,{BASE64}"),
        ("Load3DAdvanced", "viewport_state", json.dumps({"camera": "x" * 300})),
    ],
)
def test_names_and_texts_of_nodes_are_not_changed(
    workflows: Mapping[str, Workflow], class_type: str, name: str, value: str
) -> None:
    """A name is not base64, and nodes that accept base64 or a URL get it unchanged."""
    graph = graph_that_loads(value, class_type, name)

    result = rendered(workflows, {"workflow": graph})

    assert result.graphs == (graph,)
    assert result.uploads == ()


@pytest.mark.parametrize(
    ("class_type", "input_name", "file_name", "mime_type"),
    [
        ("LoadAudio", "audio", "fox.wav", "audio/x-wav"),
        ("LoadVideo", "file", "fox.mp4", "video/mp4"),
        ("VHS_LoadVideo", "video", "sub/fox.webm", "video/webm"),
        ("LoadLatent", "latent", "fox.latent", "application/octet-stream"),
        ("MyTextLoader", "file", "noextension", "application/octet-stream"),
    ],
)
def test_any_file_is_uploaded_for_the_node_that_loads_it(
    workflows: Mapping[str, Workflow], class_type: str, input_name: str, file_name: str, mime_type: str
) -> None:
    """Sounds, videos and latents are uploaded unchanged, with their extension."""
    images = [{"name": file_name, "image": b64encode(WAV).decode()}]

    result = rendered(workflows, {"workflow": graph_that_loads(file_name, class_type, input_name), "images": images})

    [upload] = result.uploads
    assert upload.targets == (Target("1", input_name),)
    assert (upload.file.data, upload.file.mime_type) == (WAV, mime_type)
    assert upload.extension == (file_name.rpartition(".")[2] if "." in file_name else "bin")
    assert (
        rejection_of(
            workflows, {"workflow": graph_that_loads("fox.wav"), "images": [{**images[0], "name": "fox.wav"}]}
        ).code
    ) is (ErrorCode.INVALID_IMAGE)


def test_many_files_within_limits(workflows: Mapping[str, Workflow]) -> None:
    """A request may have 256 files, of which 16 may be URLs."""
    graph: Graph = {
        str(number): {"class_type": "LoadImage", "inputs": {"image": f"{number}.png"}} for number in range(300)
    }
    images = [{"name": f"{number}.png", "image": BASE64} for number in range(300)]
    addresses = [{"name": f"{number}.png", "image": "https://example.com/a.png"} for number in range(17)]

    assert len(rendered(workflows, {"workflow": graph, "images": images[:256]}).uploads) == 256
    assert faults_of(workflows, {"workflow": graph, "images": images}) == {
        "images": "has 300 items; at most 256 are allowed"
    }
    assert (
        "is one of 17 URLs; a request may have at most 16"
        in faults_of(workflows, {"workflow": graph, "images": addresses})["images[16].image"]
    )


@pytest.mark.slow
def test_the_bytes_of_all_files_are_limited(workflows: Mapping[str, Workflow]) -> None:
    """Four files within the limit of one file exceed the limit of all."""
    graph: Graph = {
        str(number): {"class_type": "LoadImage", "inputs": {"image": f"{number}.png"}} for number in range(4)
    }
    large = [{"name": f"{number}.png", "image": "A" * 35_000_000} for number in range(4)]

    assert "bytes in all files; at most" in faults_of(workflows, {"workflow": graph, "images": large})["images"]


def test_overrides_set_dotted_inputs_and_add_new_ones(workflows: Mapping[str, Workflow]) -> None:
    """An override sets an input whose name has a dot, or adds an input, which a newer ComfyUI may require."""
    graph = {**SAVING_GRAPH, "3": {"class_type": "ResizeImage", "inputs": {"resize_type.width": 8}}}
    overrides: Any = {"3.resize_type.width": 32, "ResizeImage.resolution_steps": 1}

    result = rendered(workflows, {"workflow": graph, "overrides": overrides})

    assert result.graphs[0]["3"]["inputs"] == {"resize_type.width": 32, "resolution_steps": 1}
    assert result.inputs == {"overrides": overrides}


@pytest.mark.parametrize(
    "source",
    [
        {"class_type": "PrimitiveString", "inputs": {"value": "in.png"}},
        {"class_type": "StringConstant", "inputs": {"string": "in.png [input]"}},
        None,
    ],
)
def test_a_name_outside_the_loader_is_matched_to_its_image(
    workflows: Mapping[str, Workflow], source: JsonObject | None
) -> None:
    """The name may be wrapped, or be in a text node, which is not changed."""
    value = ["3", 0] if source else {"__value__": "in.png"}
    graph = {**graph_that_loads(value, "LoadImageFromPath"), **({"3": source} if source else {})}

    result = rendered(workflows, {"workflow": graph, "images": [{"name": "in.png", "image": BASE64}]})

    assert result.uploads[0].targets == (Target("1", "image"),)
    assert result.graphs[0].get("3") == source
    assert result.warnings == ()


def test_a_random_seed_of_a_graph_is_in_the_graph_and_in_a_warning(workflows: Mapping[str, Workflow]) -> None:
    """-1 requests a random seed, also as an override. With the seed in the warning the image can be generated again."""
    graph = {**SAVING_GRAPH, "3": {"class_type": "KSampler", "inputs": {"seed": 0}}}

    result = read(workflows, {"workflow": graph, "overrides": {"3.seed": -1}}).render(lambda: 7)

    assert result.graphs[0]["3"]["inputs"] == {"seed": 7}
    assert result.warnings == ("workflow.3.inputs.seed: was -1; 7 was drawn",)


@pytest.mark.parametrize("key", ["extra_data", "comfy_org_api_key"])
def test_a_key_for_graphs_beside_a_template_is_reported_as_such(workflows: Mapping[str, Workflow], key: str) -> None:
    """The fault says that the key is only valid with a graph."""
    assert faults_of(workflows, {"prompt": "a", key: {}})[key] == "is only valid with a graph; remove it"


def test_syntax_of_other_tools_in_a_graphs_prompt_is_a_warning(workflows: Mapping[str, Workflow]) -> None:
    """Only text encoders are checked: other nodes may use the text as a template of their own."""
    graph = {
        **SAVING_GRAPH,
        "3": {"class_type": "CLIPTextEncodeFlux", "inputs": {"clip_l": "a", "t5xxl": "{red|blue}"}},
        "4": {"class_type": "Wildcards", "inputs": {"text": "{red|blue}"}},
    }

    [warning] = rendered(workflows, {"workflow": graph}).warnings

    assert warning.startswith('workflow.3.inputs.t5xxl: "{red|blue}" is a random choice')
