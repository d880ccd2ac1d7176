"""Reading a request: common spellings are accepted, and all faults are reported at once."""

from __future__ import annotations

import io
import json
from base64 import b64encode, encodebytes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfy_core.contract import MAX_FAULTS, ErrorReport, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.graphs import EDITOR_FORMAT, Graph
from comfy_core.images.codec import EncodedImage
from comfy_core.request.encoded import decode_base64
from comfy_core.request.graph_files import FileSource
from comfy_core.request.reading import read_request
from comfy_core.request.rendering import Rendered
from comfy_core.targets import Target
from comfy_core.workflows import Workflow, load_workflows

SEED = 77
GRAPH: Graph = {
    "3": {"class_type": "LoadImage", "inputs": {"image": "knight.png"}, "_meta": {"title": "Load Image"}},
    "7": {"class_type": "LoadImage", "inputs": {"image": "mask.png"}, "_meta": {"title": "Mask"}},
    "8": {"class_type": "ImageBlend", "inputs": {"image1": ["3", 0], "image2": ["7", 0], "sizes": [1, 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "a"}},
}


def image_file(width: int = 64, height: int = 64, file_format: str = "PNG") -> bytes:
    """Return an encoded image."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, file_format)
    return file.getvalue()


PNG = image_file()
BASE64 = b64encode(PNG).decode("ascii")


def rendered(workflows: Mapping[str, Workflow], body: object) -> Rendered:
    """Return the graphs and uploads for a valid request."""
    return read_request(body, workflows).render(lambda: SEED)


def rejection_of(workflows: Mapping[str, Workflow], body: object) -> ErrorReport:
    """Return the report of an invalid request."""
    with pytest.raises(JobError) as info:
        rendered(workflows, body)
    return info.value.report


def faults_of(workflows: Mapping[str, Workflow], body: object) -> dict[str, str]:
    """Return the faults of an invalid request by path."""
    report = rejection_of(workflows, body)
    assert report.code is ErrorCode.INVALID_INPUT
    return {fault["path"]: fault["message"] for fault in report.details["faults"]}


@pytest.mark.parametrize(
    ("image_size", "requested", "expected_size"),
    [
        ((640, 480), {}, (640, 480)),
        ((650, 471), {}, (656, 464)),
        ((30, 20), {}, (64, 64)),
        ((4000, 3000), {}, (1680, 1248)),
        ((5000, 500), {}, (2048, 208)),
        ((640, 480), {"width": 320}, (320, 240)),
        ((640, 480), {"height": 960}, (1280, 960)),
        ((640, 480), {"width": 320, "height": 320}, (320, 320)),
        ((2000, 100), {"width": 64}, (64, 64)),
        ((100, 2000), {"width": 512}, (512, 2048)),
        ((300, 200), {"width": 1008.0}, (1008, 672)),
    ],
)
def test_image_to_image_keeps_the_image_s_proportions(
    workflows: Mapping[str, Workflow],
    image_size: tuple[int, int],
    requested: JsonObject,
    expected_size: tuple[int, int],
) -> None:
    """A missing side is computed from the image, as a multiple of 16 within the limits."""
    image = b64encode(image_file(*image_size)).decode("ascii")

    result = rendered(workflows, {"prompt": "a", "image": image, **requested})

    scale = result.graphs[0]["12"]["inputs"]
    assert (scale["width"], scale["height"]) == expected_size
    assert (result.inputs["width"], result.inputs["height"]) == expected_size


def test_a_rotated_image_is_measured_upright(workflows: Mapping[str, Workflow]) -> None:
    """Image to image uses the size of the upright image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (320, 160)).save(file, "JPEG", exif=exif)

    result = rendered(workflows, {"prompt": "a", "image": b64encode(file.getvalue()).decode()})

    assert (result.inputs["width"], result.inputs["height"]) == (160, 320)
    assert result.uploads[0].file.mime_type == "image/png"


@pytest.mark.parametrize(
    "image",
    [
        BASE64,
        f"data:image/png;base64,{BASE64}",
        f"data:;base64,{BASE64}",
        f"data:image/jpeg;name=a.jpg;base64,{BASE64}",
        encodebytes(PNG).decode("ascii"),
        encodebytes(PNG).decode("ascii").replace("\n", "\r\n"),
        f"  {BASE64}\n",
    ],
    ids=["base64", "data", "data-bare", "data-wrong-type", "lines", "crlf", "spaces"],
)
def test_an_image_in_base64_is_decoded(workflows: Mapping[str, Workflow], image: str) -> None:
    """Base64 with or without line breaks, and a data URI of any type, are decoded."""
    [upload] = rendered(workflows, {"prompt": "a", "image": image}).uploads

    assert upload.file == EncodedImage(PNG, 64, 64, "image/png")
    assert upload.targets == (Target("11", "image"),)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("not base64!", "is not base64"),
        ("YWJj=YWJj", "is not base64"),
        (BASE64.rstrip("=") + "A", "is not base64"),
        ("größer", "is not base64"),
        ("http://example.com/a.png", "is a URL with another scheme than https"),
        ("FTP://example.com/a.png", "is a URL with another scheme than https"),
        ("file:///etc/passwd", "is a URL with another scheme than https"),
        ("data:image/png,abc", "is a data URI that is not base64-encoded"),
        ("data:image/png;base64", "is a data URI that is not base64-encoded"),
    ],
)
def test_text_that_is_not_an_image_is_rejected_with_the_remedy(
    workflows: Mapping[str, Workflow], image: str, message: str
) -> None:
    """Text that is not base64, other URLs and other data URIs are rejected before anything is decoded."""
    [(path, sentence)] = faults_of(workflows, {"prompt": "a", "image": image}).items()

    assert path == "image"
    assert sentence.startswith(message)
    with pytest.raises(ValueError, match=message):
        decode_base64(image)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"prompt": "a", "image": b64encode(b"hello").decode()}, "image"),
        ({"prompt": "a", "image": b64encode(PNG[:-30]).decode()}, "image"),
        (
            {
                "workflow": GRAPH,
                "images": [{"name": "knight.png", "image": BASE64}, {"name": "mask.png", "image": "aGk="}],
            },
            "images[1].image",
        ),
        (
            {
                "workflow": GRAPH,
                "images": [{"name": "mask.png", "image": BASE64}, {"name": "mask.png", "image": "aGk="}],
            },
            "images[1].image",
        ),
    ],
    ids=["text", "cut", "second", "same-name"],
)
def test_an_invalid_image_is_reported_with_its_path(
    workflows: Mapping[str, Workflow], body: JsonObject, path: str
) -> None:
    """Base64 of anything but a complete image is rejected with its path in the request."""
    report = rejection_of(workflows, body)

    assert report.code is ErrorCode.INVALID_IMAGE
    assert report.details == {"path": path}
    assert report.message.startswith(path)


def test_a_url_is_fetched_before_rendering(workflows: Mapping[str, Workflow]) -> None:
    """An image URL is fetched once, with its path for errors, and is then treated like other images."""
    request = read_request({"prompt": "a", "image": "HTTPS://example.com/a.png"}, workflows)
    requested: list[tuple[str, str]] = []

    def fetch(wanted: Sequence[tuple[str, str]]) -> list[bytes]:
        requested.extend(wanted)
        return [PNG]

    fetched = request.with_fetched(fetch)

    assert requested == [("HTTPS://example.com/a.png", "image")]
    assert fetched.files == {"image": FileSource("image", PNG)}
    assert fetched.render(lambda: SEED).uploads[0].file.data == PNG
    with pytest.raises(TypeError, match="image was not fetched"):
        request.render(lambda: SEED)


def test_a_request_without_urls_fetches_nothing(workflows: Mapping[str, Workflow]) -> None:
    """Images in the request itself need no download."""
    request = read_request({"prompt": "a", "image": BASE64}, workflows)

    assert request.with_fetched(lambda *_: pytest.fail("fetched")) is request


def test_a_graph_gets_its_images(workflows: Mapping[str, Workflow]) -> None:
    """Each image is assigned to the loaders that name it, and to no other input with this text; its bytes are kept."""
    file = io.BytesIO()
    Image.new("RGBA", (5, 7)).save(file, "PNG")
    images = [
        {"name": "mask.png", "image": b64encode(file.getvalue()).decode()},
        {"name": "knight.png", "image": f"data:image/png;base64,{BASE64}"},
    ]

    result = rendered(workflows, {"workflow": GRAPH, "images": images, "overrides": {"9.filename_prefix": "mask.png"}})

    mask, knight = result.uploads
    assert mask.file == EncodedImage(file.getvalue(), 5, 7, "image/png")
    assert mask.targets == (Target("7", "image"),)
    assert result.graphs[0]["9"]["inputs"]["filename_prefix"] == "mask.png"
    assert knight.targets == (Target("3", "image"),)
    assert (result.workflow, result.version, result.seeds, result.warnings) == ("custom", "custom", (None,), ())
    assert result.inputs == {"overrides": {"9.filename_prefix": "mask.png"}}


def test_an_image_that_no_node_loads_is_a_warning(workflows: Mapping[str, Workflow]) -> None:
    """The warning names the unused image."""
    images = [{"name": name, "image": BASE64} for name in ("knight.png", "mask.png", "nobody.png")]

    result = rendered(workflows, {"workflow": GRAPH, "images": images})

    assert result.warnings == ('images[2].image: no node of the graph loads "nobody.png"',)
    assert result.uploads[2].targets == ()


def test_overrides_are_applied_last(workflows: Mapping[str, Workflow]) -> None:
    """An override, by title or id, takes precedence over the input of the same place, in every image."""
    overrides = {"KSampler.seed": 5, "8.steps": 3, "Prompt.text": "b", "Load VAE.vae_name": "other.safetensors"}

    result = rendered(workflows, {"prompt": "a", "seed": 1, "num_images": 2, "steps": 9, "overrides": overrides})

    for graph in result.graphs:
        assert (graph["8"]["inputs"]["seed"], graph["8"]["inputs"]["steps"]) == (5, 3)
        assert (graph["4"]["inputs"]["text"], graph["3"]["inputs"]["vae_name"]) == ("b", "other.safetensors")
    assert result.seeds == (5, 5)
    assert result.inputs["overrides"] == overrides


def test_an_override_of_several_nodes_needs_an_id(workflows: Mapping[str, Workflow]) -> None:
    """A title that two nodes have is rejected, with their ids."""
    graph = {**GRAPH, "12": GRAPH["7"]}

    faults = faults_of(workflows, {"workflow": graph, "overrides": {"Mask.image": "b.png", "Mask.imag": 1}})

    assert faults == {
        'overrides["Mask.image"]': '2 nodes are titled "Mask"; use an id: "7", "12"',
        'overrides["Mask.imag"]': '2 nodes are titled "Mask"; use an id: "7", "12"',
    }


def test_overrides_of_a_list_and_its_item(workflows: Mapping[str, Workflow]) -> None:
    """An override of a list's item is a fault if an earlier override removed the item."""
    body = {"workflow": GRAPH, "overrides": {"8.sizes": [3], "8.sizes.1": 4}}

    assert faults_of(workflows, body) == {'overrides["8.sizes.1"]': '"8.sizes" has no item 1'}
    in_other_order = {"workflow": GRAPH, "overrides": {"8.sizes.1": 4, "8.sizes": [3]}}
    assert rendered(workflows, in_other_order).graphs[0]["8"]["inputs"]["sizes"] == [3]


def test_an_override_of_an_item_that_an_input_removed(tmp_path: Path) -> None:
    """An item that the template has, but this request's list has not, is rejected when the request is rendered."""
    graph = {"1": {"class_type": "A", "inputs": {"sizes": [1, 2, 3]}}}
    inputs = {"properties": {"sizes": {"type": "array", "items": {"type": "integer"}, "x-node": "1.sizes"}}}
    tmp_path.joinpath("a.json").write_text(json.dumps(graph), encoding="utf-8")
    tmp_path.joinpath("a.inputs.json").write_text(json.dumps(inputs), encoding="utf-8")
    workflows = load_workflows(tmp_path)
    body: JsonObject = {"workflow": "a", "overrides": {"1.sizes.2": 9}}

    assert rendered(workflows, body).graphs[0]["1"]["inputs"]["sizes"] == [1, 2, 9]
    assert faults_of(workflows, {**body, "sizes": [5]}) == {'overrides["1.sizes.2"]': '"1.sizes" has no item 2'}


def test_a_graph_as_json_text_is_parsed(workflows: Mapping[str, Workflow]) -> None:
    """A graph that was encoded twice is decoded; text that only begins like a graph is a fault, not a name."""
    assert rendered(workflows, {"workflow": json.dumps(GRAPH)}) == rendered(workflows, {"workflow": GRAPH})
    assert "send the graph itself" in faults_of(workflows, {"workflow": "\n {"})["workflow"]


def test_the_editor_s_format_is_rejected_with_the_export_menu(workflows: Mapping[str, Workflow]) -> None:
    """ComfyUI's own save format is recognised and distinguished from the API format."""
    editor = {"last_node_id": 9, "nodes": [{"id": 1, "type": "KSampler"}], "links": [], "version": 0.4}

    assert faults_of(workflows, {"workflow": editor}) == {"workflow": EDITOR_FORMAT}
    assert "Export (API)" in EDITOR_FORMAT


def test_the_whole_input_may_be_json_text(workflows: Mapping[str, Workflow]) -> None:
    """An input that is JSON text is parsed."""
    body = {"prompt": "größer", "seed": 3}

    assert rendered(workflows, json.dumps(body)) == rendered(workflows, body)


@pytest.mark.parametrize(
    "raw",
    [
        None,
        5,
        True,
        [],
        [{"prompt": "a"}],
        "",
        "a pixel art knight",
        "null",
        '"{}"',
        "{",
        "[" * 100_000,
        "9" * 5000,
        float("nan"),
    ],
    ids=lambda raw: str(raw)[:20],
)
def test_an_input_that_is_not_an_object_is_rejected(workflows: Mapping[str, Workflow], raw: object) -> None:
    """The error shows a valid input."""
    assert faults_of(workflows, raw) == {"": 'must be a JSON object, like {"prompt": "a pixel art knight"}'}


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"prompt": "a"}, "flux-dev-txt2img"),
        ({"prompt": "a", "image": BASE64}, "flux-dev-img2img"),
        ({"workflow": "txt2img", "prompt": "a"}, "flux-dev-txt2img"),
        ({"workflow": "img2img", "prompt": "a", "image": BASE64}, "flux-dev-img2img"),
        ({"workflow": "flux-dev-txt2img", "prompt": "a"}, "flux-dev-txt2img"),
    ],
)
def test_the_workflow_is_named_or_derived(workflows: Mapping[str, Workflow], body: JsonObject, name: str) -> None:
    """A workflow is selected by name or alias; without either, the presence of an image decides."""
    result = rendered(workflows, body)

    assert result.workflow == name
    assert result.version == workflows[name].version


def test_an_unknown_workflow_lists_the_known_ones(workflows: Mapping[str, Workflow]) -> None:
    """The error has the nearest name and all existing ones."""
    report = rejection_of(workflows, {"workflow": "flux-dev-txt2image", "prompt": "a"})

    assert report.code is ErrorCode.UNKNOWN_WORKFLOW
    assert 'did you mean "flux-dev-txt2img"?' in report.message
    assert report.details == {"known": sorted(workflows)}


def test_all_faults_are_reported_at_once(workflows: Mapping[str, Workflow]) -> None:
    """One report has the faults of all keys of a request."""
    body: JsonObject = {
        "workflow": "txt2img",
        "prompt": "   ",
        "promt": "a",
        "negative_prompt": "blur",
        "width": 1000,
        "height": 4096,
        "steps": True,
        "guidance": float("nan"),
        "seed": -2,
        "num_images": 9,
        "sampler": "",
        "loras": [{"name": "a"}, {"strength": 20}, 5],
        "image": BASE64,
        "images": [],
        "overrides": {"Prompt.txt": 1},
        "output_format": "gif",
        "output_quality": 0,
        "metadata": "yes",
        "timeout_s": "60 s",
    }

    faults = faults_of(workflows, body)

    assert set(faults) == {
        "prompt",
        "promt",
        "negative_strength",
        "width",
        "height",
        "steps",
        "guidance",
        "seed",
        "num_images",
        "sampler",
        "loras[1].name",
        "loras[1].strength",
        "loras[2]",
        "image",
        "images",
        'overrides["Prompt.txt"]',
        "output_format",
        "output_quality",
        "metadata",
        "timeout_s",
    }
    assert faults["promt"] == 'is not known; did you mean "prompt"?'
    assert faults["negative_strength"].startswith("is missing: a negative_prompt takes effect only")
    assert faults["images"] == "is only valid with a graph; a template takes `image`"


def test_all_faults_of_a_graph_are_reported_at_once(workflows: Mapping[str, Workflow]) -> None:
    """Broken links do not hide overrides without a target, and vice versa."""
    graph = {**GRAPH, "9": {"class_type": "SaveImage", "inputs": {"images": ["99", 0]}}}
    body: JsonObject = {
        "workflow": graph,
        "prompt": "a",
        "overides": {},
        "overrides": {"Masc.image": 1},
        "images": [{"name": "", "image": "!"}, 5],
        "delivery": "ftp",
    }

    faults = faults_of(workflows, body)

    assert set(faults) == {
        "workflow.9.inputs.images",
        'overrides["Masc.image"]',
        "images[0].name",
        "images[0].image",
        "images[1]",
        "delivery",
    }


@pytest.mark.parametrize("workflow", [5, True, 1.5, ["txt2img"], "a\0"])
def test_an_invalid_workflow_does_not_hide_other_faults(workflows: Mapping[str, Workflow], workflow: object) -> None:
    """A `workflow` that is neither a name nor a graph is one fault among others."""
    assert set(faults_of(workflows, {"workflow": workflow, "prompt": "a", "steps": 0})) == {"workflow", "steps"}


def test_a_report_lists_a_bounded_number_of_faults(workflows: Mapping[str, Workflow]) -> None:
    """For a graph of thousands of broken nodes, the first faults are listed, without long values."""
    graph = {f"{number}-{'x' * 200}": None for number in range(3000)}

    report = rejection_of(workflows, {"workflow": graph})

    assert len(report.details["faults"]) == MAX_FAULTS
    assert len(report.to_json()) < 20_000


def test_seeds_count_up_and_wrap(workflows: Mapping[str, Workflow]) -> None:
    """Image i has the seed plus i, 0 follows the largest seed, and a missing seed is drawn once."""
    last = 2**63 - 1

    assert rendered(workflows, {"prompt": "a", "seed": last - 1, "num_images": 3}).seeds == (last - 1, last, 0)
    assert rendered(workflows, {"prompt": "a", "num_images": 2}).seeds == (SEED, SEED + 1)
    assert rendered(workflows, {"prompt": "a", "num_images": 2}).inputs["seed"] == SEED


def test_one_image_can_be_generated_alone(workflows: Mapping[str, Workflow]) -> None:
    """The third of three images has the graph of a request for one image with the third seed."""
    several = rendered(workflows, {"prompt": "a", "seed": 5, "num_images": 3})

    assert several.graphs[2] == rendered(workflows, {"prompt": "a", "seed": 7}).graphs[0]


def test_a_request_does_not_change_its_template(workflows: Mapping[str, Workflow]) -> None:
    """Rendered graphs share no value with each other, with the request or with the template."""
    before = json.dumps(workflows["flux-dev-txt2img"].graph)
    body: JsonObject = {
        "prompt": "a",
        "loras": [{"name": "l"}],
        "overrides": {"KSampler.model": ["1", 0]},
    }

    first, second = rendered(workflows, body), rendered(workflows, body)

    first.graphs[0]["8"]["inputs"]["model"].append(2)
    assert second.graphs[0]["8"]["inputs"]["model"] == ["1", 0]
    assert body["overrides"] == {"KSampler.model": ["1", 0]}
    assert json.dumps(workflows["flux-dev-txt2img"].graph) == before


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("png", 90, True, "auto", None)),
        (
            {
                "output_format": "webp",
                "output_quality": 50.0,
                "metadata": False,
                "delivery": "base64",
                "timeout_s": 9.5,
            },
            ("webp", 50, False, "base64", 9.5),
        ),
    ],
)
@pytest.mark.parametrize("body", [{"prompt": "a"}, {"workflow": GRAPH}], ids=["template", "graph"])
def test_the_envelope_is_the_same_for_templates_and_graphs(
    workflows: Mapping[str, Workflow], body: JsonObject, given: JsonObject, expected: tuple[Any, ...]
) -> None:
    """Format, quality, metadata, delivery and timeout have the same meaning and defaults."""
    request = read_request({**body, **given}, workflows)

    assert (
        request.output_format,
        request.output_quality,
        request.metadata,
        request.delivery,
        request.timeout_s,
    ) == expected


PLAYLISTS = (
    b"#EXTM3U\n#EXTINF:1.0,\n/private/a.mp4\n",
    b"\xef\xbb\xbf\r\n#extm3u\nhttp://10.0.0.1/a.ts\n",
    b"ffconcat version 1.0\nfile ../private/a.mp4\n",
    b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=audio 5004 RTP/AVP 0\r\n",
    b'<?xml version="1.0"?>\n<!-- a > b -->\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
)


@pytest.mark.parametrize("content", PLAYLISTS)
@pytest.mark.parametrize("name", ["a.m3u8", "a.mp4", "a"])
def test_a_playlist_is_rejected(workflows: Mapping[str, Workflow], content: bytes, name: str) -> None:
    """A file that makes FFmpeg read other files is rejected, whatever its name."""
    graph = {
        "1": {"class_type": "LoadVideo", "inputs": {"file": name}},
        "2": {"class_type": "SaveVideo", "inputs": {"video": ["1", 0], "filename_prefix": "a"}},
    }
    body = {"workflow": graph, "images": [{"name": name, "image": b64encode(content).decode()}]}

    report = rejection_of(workflows, body)

    assert (report.code, report.details["path"]) == (ErrorCode.INVALID_IMAGE, "images[0].image")
    assert "playlist" in report.message


@pytest.mark.parametrize(
    "content", [b"RIFF\x24\0\0\0WAVEfmt ", b"1\n00:00:01,000 --> 00:00:02,000\n#EXTM3U\n", b"<svg/>"]
)
def test_other_files_are_not_playlists(workflows: Mapping[str, Workflow], content: bytes) -> None:
    """A sound, subtitles and other markup are uploaded for the node that loads them."""
    graph = {
        "1": {"class_type": "LoadAudio", "inputs": {"audio": "a.wav"}},
        "2": {"class_type": "SaveAudio", "inputs": {"audio": ["1", 0], "filename_prefix": "a"}},
    }
    body = {"workflow": graph, "images": [{"name": "a.wav", "image": b64encode(content).decode()}]}

    [upload] = rendered(workflows, body).uploads

    assert upload.file.data == content
