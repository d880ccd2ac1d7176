"""The workflows inpaint and upscale, on the simulator or a real ComfyUI: which pixels stay, and the result's size."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageOps

from tests.comfyui.test_jobs import b64, image_of

RunJob = Callable[[dict[str, Any]], dict[str, Any]]


def picture(width: int, height: int) -> Image.Image:
    """Return an RGB image in which neighbouring pixels differ, with all values from 0 to 255."""
    ramps = [Image.linear_gradient("L").rotate(angle).resize((width, height)) for angle in (0, 90, 180)]
    return Image.merge("RGB", ramps)


def box_mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """Return a mask that selects `box`."""
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def encoded(image: Image.Image) -> str:
    """Return an image as PNG in base64."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return b64(file.getvalue())


def changed_box(result: dict[str, Any], image: Image.Image) -> tuple[int, int, int, int] | None:
    """Return the box of the pixels in which the result differs from `image`, which must have the same size."""
    found = image_of(result)
    assert found.size == image.size
    return ImageChops.difference(found.convert("RGB"), image).getbbox()


@pytest.mark.parametrize("size", [(96, 64), (101, 77)], ids=["multiple of 16", "odd"])
def test_inpaint_changes_only_the_masked_pixels(run: RunJob, size: tuple[int, int]) -> None:
    """Every pixel outside of the mask has its exact value, also if the model works at another size than the image's."""
    image, box = picture(*size), (20, 16, 70, 50)

    result = run(
        {"workflow": "inpaint", "prompt": "a door", "image": encoded(image), "mask": encoded(box_mask(size, box))}
    )

    assert changed_box(result, image) == box
    assert result["warnings"] == []


def test_inpaint_takes_the_mask_from_the_alpha_channel(run: RunJob) -> None:
    """Transparent areas of the image are generated. The result is the same as with the same mask as an image."""
    image, mask = picture(96, 64), box_mask((96, 64), (20, 16, 70, 50))
    transparent = image.copy()
    transparent.putalpha(ImageOps.invert(mask))
    job = {"workflow": "inpaint", "prompt": "a door", "seed": 5}

    with_alpha = run({**job, "image": encoded(transparent)})
    with_mask = run({**job, "image": encoded(image), "mask": encoded(mask)})

    assert changed_box(with_alpha, image) == (20, 16, 70, 50)
    assert image_of(with_alpha).tobytes() == image_of(with_mask).tobytes()


def test_a_mask_that_grows_changes_no_other_pixels(run: RunJob) -> None:
    """With `grow_mask` 4, pixels up to 4 pixels outside of the mask change."""
    image, mask = picture(96, 64), box_mask((96, 64), (20, 16, 70, 50))

    job = {"workflow": "inpaint", "prompt": "a door", "image": encoded(image), "mask": encoded(mask)}
    result = run({**job, "grow_mask": 4, "feather": 2})

    assert changed_box(result, image) == (16, 12, 74, 54)


def test_a_mask_of_another_size_is_scaled_to_the_image(run: RunJob) -> None:
    """A mask of half the size selects the same part, to within two pixels; another aspect ratio is a warning."""
    image = picture(96, 64)
    job = {"workflow": "inpaint", "prompt": "a door", "image": encoded(image)}

    half = run({**job, "mask": encoded(box_mask((48, 32), (10, 8, 35, 25)))})
    square = run({**job, "mask": encoded(box_mask((32, 32), (8, 8, 24, 24)))})

    assert changed_box(half, image) == pytest.approx((20, 16, 70, 50), abs=2)
    assert half["warnings"] == []
    assert square["warnings"] == ["mask: its 32 x 32 pixels were stretched to the 96 x 64 of image"]


@pytest.mark.parametrize(("size", "working_size"), [((48, 32), (96, 64)), ((51, 39), (96, 80)), ((10, 10), (64, 64))])
def test_upscale_doubles_the_sides(run: RunJob, size: tuple[int, int], working_size: tuple[int, int]) -> None:
    """The result has exactly twice the sides, whatever the size at which the model works."""
    result = run({"workflow": "upscale", "image": encoded(picture(*size)), "seed": 1})

    assert image_of(result).size == (2 * size[0], 2 * size[1])
    assert (result["inputs"]["width"], result["inputs"]["height"]) == working_size


def test_upscale_depends_on_its_strength(run: RunJob) -> None:
    """Another strength returns another image."""
    job = {"workflow": "upscale", "prompt": "a room", "image": encoded(picture(48, 32)), "seed": 1}
    low, high = (image_of(run({**job, "strength": strength})).tobytes() for strength in (0.05, 1.0))

    assert low != high
