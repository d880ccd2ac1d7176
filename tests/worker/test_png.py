"""The PNG encoder for raw pixels: the files have the same pixels as Pillow's, and are not larger."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from comfy_core.images.pixels import Pixels
from worker.png import encode_png, start_encoding

KNIGHT = Path(__file__).parents[2] / "examples" / "knight.png"
SIDES = st.integers(1, 40) | st.sampled_from([255, 301, 512])


def pixels_of(image: Image.Image) -> Pixels:
    """Return the pixels of an image."""
    return Pixels(memoryview(image.tobytes()), image.width, image.height, len(image.getbands()))


def size_at_level_1(image: Image.Image) -> int:
    """Return the size of Pillow's file at level 1."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return len(file.getvalue())


def photograph(size: tuple[int, int], mode: str) -> Image.Image:
    """Return an image like a photograph: soft shapes of several sizes and slight grain, different in each channel."""
    rng = np.random.default_rng(1)
    height, width = size[1], size[0]
    bands = []
    for _ in mode:
        band = rng.normal(0, 2, (height, width))
        for cells in (3, 9, 27, 81):
            shapes = Image.fromarray(rng.uniform(0, 255, (cells, cells)).astype(np.uint8))
            band += np.asarray(shapes.resize(size, Image.Resampling.BICUBIC), np.float64) / 4
        bands.append(Image.fromarray(band.clip(0, 255).astype(np.uint8)))
    return bands[0] if mode == "L" else Image.merge(mode, bands)


def gradient(size: tuple[int, int]) -> Image.Image:
    """Return a gradient from left to right and from top to bottom."""
    across = Image.linear_gradient("L").resize(size)
    return Image.merge("RGB", (across, across.transpose(Image.Transpose.FLIP_LEFT_RIGHT), across))


@given(st.sampled_from(["L", "LA", "RGB", "RGBA"]), SIDES, SIDES, st.integers(0, 2**32 - 1), st.integers(1, 255))
def test_a_file_has_the_pixels(mode: str, width: int, height: int, seed: int, spread: int) -> None:
    """An image of any size, of one to four channels, is the same after decoding."""
    shape = (height, width, len(mode))
    data = np.random.default_rng(seed).integers(0, spread + 1, shape, np.uint8).tobytes()

    file = encode_png(Pixels(memoryview(data), width, height, len(mode)))

    with Image.open(io.BytesIO(file)) as image:
        image.load()
        assert (image.mode, image.size, image.format) == (mode, (width, height), "PNG")
        assert image.tobytes() == data


@pytest.mark.parametrize(
    "image",
    [
        Image.open(KNIGHT).convert("RGB"),
        Image.open(KNIGHT).convert("RGB").resize((1024, 1024)),
        Image.merge("RGB", [Image.effect_noise((1024, 1024), 60) for _ in "RGB"]),
        Image.effect_mandelbrot((512, 512), (-2, -1.5, 1, 1.5), 100),
        Image.new("RGB", (1024, 1024), (40, 90, 200)),
        Image.new("RGB", (1, 1)),
        gradient((1024, 768)),
        *(photograph(size, mode) for size in ((1024, 1024), (333, 517), (64, 96)) for mode in ("L", "RGB", "RGBA")),
    ],
    ids=lambda image: f"{image.mode}-{image.width}x{image.height}",
)
def test_a_file_is_not_larger_than_pillow_s_at_level_1(image: Image.Image) -> None:
    """Level 1 is what SaveImageWebsocket uses."""
    assert len(encode_png(pixels_of(image))) <= size_at_level_1(image)


def test_images_are_encoded_in_other_threads() -> None:
    """`start_encoding` returns before the file exists."""
    images = [photograph((640, 640), "RGB") for _ in range(3)]

    files = [start_encoding(pixels_of(image)) for image in images]

    assert [file.result(30) for file in files] == [encode_png(pixels_of(image)) for image in images]
