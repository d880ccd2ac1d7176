"""The placeholder images: their text, their dependence on the inputs, denoising, and previews."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from simulators.comfyui.images import (
    PREVIEW_SIDE,
    UNSAMPLED_COLOR,
    Recipe,
    Sketch,
    decoded,
    paragraphs_of,
    placeholder,
    preview,
)

RECIPE = Recipe("a pixel art knight", seed=7, steps=20, guidance=3.5, sampler="euler")
BRIGHT = 180
SIZES = [(64, 64), (64, 512), (512, 64), (512, 512), (1344, 768), (1024, 1024), (2048, 2048)]


def ink(image: Image.Image) -> int:
    """Return the number of bright pixels in the upper half of the image, inside the margins."""
    margin = max(1, min(image.size) // 64)
    panel = image.convert("L").crop((2 * margin, 2 * margin, image.width - 2 * margin, image.height // 2))
    return sum(panel.histogram()[BRIGHT:])


@pytest.mark.parametrize("size", SIZES)
def test_a_drawing_has_its_size_and_shows_text(size: tuple[int, int]) -> None:
    """At every size the image has that size, shows text, and has the same pixels when it is drawn again."""
    image = placeholder(RECIPE, size)

    assert (image.size, image.mode) == (size, "RGB")
    assert image.tobytes() == placeholder(RECIPE, size).tobytes()
    assert ink(image) > 10


@pytest.mark.parametrize(
    "other",
    [
        replace(RECIPE, seed=8),
        replace(RECIPE, prompt="a cat"),
        replace(RECIPE, index=1),
        replace(RECIPE, steps=21),
        replace(RECIPE, guidance=1.0),
        replace(RECIPE, loras=(("pixel-art.safetensors", 0.8),)),
    ],
)
def test_another_recipe_gives_another_image(other: Recipe) -> None:
    """Another seed, prompt, batch index or setting results in another image."""
    assert placeholder(other, (512, 512)).tobytes() != placeholder(RECIPE, (512, 512)).tobytes()


def test_the_text_has_the_warning_and_the_inputs() -> None:
    """The first paragraph is the warning; then come seed, settings, LoRAs and the prompt, in ASCII characters."""
    recipe = replace(RECIPE, prompt="très 猫", loras=(("pixel-art.safetensors", 0.8),), index=1, denoise=0.5)

    assert paragraphs_of(recipe, (512, 768)) == [
        "ComfyUI simulator - not a Flux image",
        "seed 7 (image 2 of its batch)",
        "512x768, 20 steps, guidance 3.5, denoise 0.5, euler",
        "lora pixel-art.safetensors (0.8)",
        r"tres \u732b",
    ]
    assert paragraphs_of(Recipe(" ", 1, 2, 3.0), (8, 8))[1:] == ["seed 1", "8x8, 2 steps, guidance 3"]


@given(prompt=st.text(max_size=400), side=st.sampled_from([16, 64, 200]))
def test_any_prompt_can_be_drawn(prompt: str, side: int) -> None:
    """No prompt makes the drawing fail."""
    assert placeholder(replace(RECIPE, prompt=prompt), (side, side)).size == (side, side)


def test_a_long_prompt_has_more_bright_pixels() -> None:
    """A prompt that does not fit can be drawn, and covers more of the panel than a short one."""
    long = placeholder(replace(RECIPE, prompt="many words " * 5000), (256, 256))
    short = placeholder(RECIPE, (256, 256))

    assert ink(long) > ink(short)


def test_a_latent_that_was_not_sampled_is_grey() -> None:
    """A latent that was not sampled is decoded to an image of one grey."""
    assert decoded(Sketch(16, 16)).getcolors() == [(256, UNSAMPLED_COLOR)]


def test_denoise_mixes_source_and_drawing() -> None:
    """With denoise 1 the result is the drawing; with denoise 0.01 it is almost the source."""
    start = Image.new("RGB", (64, 64), "teal")
    whole = Sketch(64, 64, RECIPE, source=start)
    little = Sketch(64, 64, replace(RECIPE, denoise=0.01), source=start)

    assert decoded(whole).tobytes() == placeholder(RECIPE, (64, 64)).tobytes()
    assert max(ImageChops.difference(decoded(little), start).tobytes()) <= 3


def test_the_text_of_img2img_leaves_the_upper_half_free() -> None:
    """The text of a drawing for img2img is in the lower half, so that text of the source stays readable."""
    first, second = (placeholder(replace(RECIPE, denoise=0.5, steps=steps), (512, 512)) for steps in (20, 21))
    upper_half = (0, 0, 512, 256)

    assert first.tobytes() != second.tobytes()
    assert first.crop(upper_half).tobytes() == second.crop(upper_half).tobytes()


def test_the_last_preview_is_the_drawing() -> None:
    """A preview's longer side is PREVIEW_SIDE. The last one equals the image. An early one can be saved as JPEG."""
    sketch = Sketch(64, 128, RECIPE)
    last = preview(sketch, 1.0)

    assert last.size == (PREVIEW_SIDE // 2, PREVIEW_SIDE)
    assert last.tobytes() == placeholder(RECIPE, last.size).tobytes()
    file = io.BytesIO()
    preview(sketch, 0.1).save(file, "JPEG")
    assert file.tell() > 0
