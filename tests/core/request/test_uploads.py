"""The images of templates: masks, and the width and height that follow from an image."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfy_core.contract import JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, JobError
from comfy_core.request.reading import read_request
from comfy_core.request.rendering import Rendered
from comfy_core.workflows import Workflow, load_workflows

TRANSPARENT, OPAQUE = (9, 9, 9, 0), (9, 9, 9, 255)


def base64_of(image: Image.Image, file_format: str = "PNG", **options: Any) -> str:  # noqa: ANN401 - Pillow's options
    """Return an image as a file in base64."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return b64encode(file.getvalue()).decode("ascii")


def striped(mode: str, *columns: Any, height: int = 8) -> Image.Image:  # noqa: ANN401 - a colour of the mode
    """Return an image with 8 pixel columns of each colour."""
    image = Image.new(mode, (8 * len(columns), height))
    for number, colour in enumerate(columns):
        image.paste(colour, (8 * number, 0, 8 * number + 8, height))
    return image


WHITE_AND_BLACK = striped("L", 255, 0)


def inpainted(workflows: Mapping[str, Workflow], image: Image.Image, mask: str | None = None) -> Rendered:
    """Return the rendered request for an image and its mask."""
    job = {"workflow": "inpaint", "prompt": "a door", "image": base64_of(image), "mask": mask}
    return read_request(job, workflows).render(lambda: 1)


def uploaded(rendered: Rendered) -> dict[str, Image.Image]:
    """Return the uploaded images by the title of the node that loads them."""
    [graph] = rendered.graphs
    return {
        graph[upload.targets[0].node_id]["_meta"]["title"]: Image.open(io.BytesIO(upload.file.data))
        for upload in rendered.uploads
    }


def row_of(mask: Image.Image) -> list[int]:
    """Return the grey value in the middle of each 8 pixel columns."""
    assert mask.mode == "L"
    return [int(str(mask.getpixel((x, 4)))) for x in range(4, mask.width, 8)]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (base64_of(WHITE_AND_BLACK), [255, 0]),
        (base64_of(striped("RGB", "white", "black")), [255, 0]),
        (base64_of(striped("RGBA", (255, 255, 255, 255), (0, 0, 0, 255))), [255, 0]),
        (base64_of(striped("1", 1, 0)), [255, 0]),
        (base64_of(striped("I;16", 65535, 0)), [255, 0]),
        (base64_of(striped("L", 255, 0, 128), "JPEG", quality=60), [255, 0, 128]),
        (base64_of(striped("L", 250, 5, 90)), [255, 0, 90]),
    ],
    ids=["grey", "RGB", "opaque RGBA", "1 bit", "16 bit", "JPEG", "nearly white and black"],
)
def test_a_mask_is_uploaded_as_grey(workflows: Mapping[str, Workflow], mask: str, expected: list[int]) -> None:
    """White selects. Values near white and black become exactly white and black, because a JPEG does not keep them."""
    images = uploaded(inpainted(workflows, striped("RGB", "red", "blue"), mask))

    assert row_of(images["Load Mask"]) == expected
    assert images["Load Image"].mode == "RGB"


def test_a_transparent_image_is_its_own_mask(workflows: Mapping[str, Workflow]) -> None:
    """Without a mask, transparent areas select, and the image keeps the colours below them."""
    images = uploaded(inpainted(workflows, striped("RGBA", TRANSPARENT, OPAQUE, (9, 9, 9, 155))))

    assert row_of(images["Load Mask"]) == [255, 0, 100]
    assert {images["Load Image"].getpixel((x, 4)) for x in (4, 12, 20)} == {(9, 9, 9)}


def test_a_mask_takes_precedence_over_the_alpha_channel(workflows: Mapping[str, Workflow]) -> None:
    """With a mask, transparent areas of the image become white, as for img2img."""
    images = uploaded(inpainted(workflows, striped("RGBA", OPAQUE, TRANSPARENT), base64_of(WHITE_AND_BLACK)))

    assert row_of(images["Load Mask"]) == [255, 0]
    assert images["Load Image"].getpixel((12, 4)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("image", "mask", "problem"),
    [
        (striped("RGB", "red", "blue"), None, "mask is missing, and the image has no transparent areas"),
        (striped("RGBA", OPAQUE, OPAQUE), None, "mask selects nothing"),
        (striped("RGB", "red", "blue"), base64_of(striped("L", 0, 3)), "mask selects nothing: white areas are"),
        (striped("RGB", "red", "blue"), base64_of(striped("RGBA", OPAQUE, TRANSPARENT)), "mask has transparent areas"),
        (striped("RGB", "red", "blue"), b64encode(b"no image").decode(), "mask is not an image of a known format"),
    ],
    ids=["no mask", "opaque alpha", "black", "transparent", "not an image"],
)
def test_an_unusable_mask_is_an_error(
    workflows: Mapping[str, Workflow], image: Image.Image, mask: str | None, problem: str
) -> None:
    """A request whose mask selects nothing, or is ambiguous, is rejected before anything runs."""
    with pytest.raises(JobError) as info:
        inpainted(workflows, image, mask)

    assert info.value.code is ErrorCode.INVALID_IMAGE
    assert info.value.report.message.startswith(problem)
    assert info.value.report.details == {"path": "mask"}


@pytest.mark.parametrize(
    ("workflow", "image_size", "inputs", "expected"),
    [
        ("upscale", (64, 48), {}, (128, 96)),
        ("upscale", (1024, 1024), {}, (2048, 2048)),
        ("upscale", (1344, 768), {}, (2688, 1536)),
        ("upscale", (1920, 1080), {}, (2720, 1536)),
        ("upscale", (64, 48), {"width": 256}, (256, 192)),
        ("inpaint", (1001, 777), {}, (1008, 784)),
        ("inpaint", (4000, 3000), {}, (1680, 1248)),
    ],
)
def test_the_working_size_follows_from_the_image(
    workflows: Mapping[str, Workflow],
    workflow: str,
    image_size: tuple[int, int],
    inputs: JsonObject,
    expected: tuple[int, int],
) -> None:
    """Upscale works at twice the size and at most 4 megapixels, inpaint at the size and at most 2 megapixels."""
    image = Image.new("RGBA", image_size)
    job = {"workflow": workflow, "prompt": "a", "image": base64_of(image, compress_level=1), **inputs}

    rendered = read_request(job, workflows).render(lambda: 1)

    assert (rendered.inputs["width"], rendered.inputs["height"]) == expected


SIDE: JsonObject = {"type": "integer", "minimum": 32, "maximum": 96, "multipleOf": 8, "x-node": "Scale.width"}
PICTURE: JsonObject = {"type": "string", "contentMediaType": "image/*", "x-node": "Load.image"}


def workflow_with(folder: Path, **schema: object) -> Mapping[str, Workflow]:
    """Return the workflow `own` whose inputs are `schema`."""
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a"}, "_meta": {"title": "Load"}},
        "2": {"class_type": "ImageScale", "inputs": {"width": 8, "image": ["1", 0]}, "_meta": {"title": "Scale"}},
    }
    (folder / "own.json").write_text(json.dumps(graph), encoding="utf-8")
    (folder / "own.inputs.json").write_text(json.dumps(schema), encoding="utf-8")
    return load_workflows(folder)


def test_the_size_is_within_the_limits_of_the_workflow_s_own_inputs(tmp_path: Path) -> None:
    """The default size uses the factor of `x-size`, and the range and multiple of the inputs width and height."""
    properties = {"image": PICTURE, "width": SIDE, "height": SIDE}
    workflows = workflow_with(tmp_path, properties=properties, **{"x-size": {"scale": 1.5}})

    def size_for(width: int, height: int) -> tuple[int, int]:
        job = {"workflow": "own", "image": base64_of(Image.new("RGB", (width, height)))}
        inputs = read_request(job, workflows).render().inputs
        return inputs["width"], inputs["height"]

    assert size_for(40, 32) == (56, 48)
    assert size_for(128, 64) == (96, 48)
    assert size_for(8, 8) == (32, 32)


@pytest.mark.parametrize(
    "limits",
    [
        {"minimum": 2048, "maximum": 64},
        {"multipleOf": 0.5},
        {"multipleOf": 1e300},
        {"minimum": -5, "maximum": 1e300},
        {"minimum": 4096, "maximum": 8192},
    ],
    ids=str,
)
def test_contradictory_limits_of_a_side_raise_nothing(tmp_path: Path, limits: JsonObject) -> None:
    """A caller may send a template of its own, so that no limits may be the cause of an internal error."""
    side = {"type": "number", "x-node": "Scale.width", **limits}
    properties = {"image": PICTURE, "width": side, "height": side}
    workflows = workflow_with(tmp_path, properties=properties, **{"x-size": {"max_pixels": 1}})
    job = {"workflow": "own", "image": base64_of(Image.new("RGB", (64, 64)))}

    inputs = read_request(job, workflows).render().inputs

    assert all(0 < inputs[name] <= 16_384 for name in ("width", "height"))


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"properties": {"mask": {**PICTURE, "x-mask-of": "image"}}}, 'input "mask" has x-mask-of "image": both must'),
        (
            {"properties": {"image": PICTURE, "mask": {"x-mask-of": "image", "x-node": "Load.image"}}},
            "both must be images",
        ),
        (
            {"properties": {"image": PICTURE}, "x-size": {"scale": 2}},
            "it has x-size, but not the inputs width and height",
        ),
        ({"properties": {}, "x-size": {"factor": 2}}, "x-size.factor is not known"),
        ({"properties": {}, "x-size": {"scale": 0}}, "x-size.scale must be at least 0.01"),
    ],
)
def test_wrong_keywords_of_images_name_the_file(tmp_path: Path, schema: JsonObject, problem: str) -> None:
    """`x-mask-of` and `x-size` that cannot have an effect are errors of the workflow."""
    with pytest.raises(ConfigError) as info:
        workflow_with(tmp_path, **schema)

    assert problem in str(info.value)
