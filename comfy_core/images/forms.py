"""Brings a decoded image into the form that a workflow's input needs: RGB, or a grey mask. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

from PIL import Image, ImageOps

ImageForm: TypeAlias = Literal["as_sent", "flat", "opaque", "mask", "mask_of_alpha"]
"""The form into which `check_image` brings an image; all but the first have a single upright frame.

- `as_sent`: only checked, because a caller's graph may use the alpha channel or all frames.
- `flat`: RGB; transparent areas become white, as image to image needs it.
- `opaque`: RGB; transparent areas keep their colours.
- `mask`: grey; the brightness of an opaque image.
- `mask_of_alpha`: grey; transparent areas are white.
"""
_NEARLY_BLACK = 8
"""Grey values of a mask below this one count as black; those as near to white count as white."""


class UnusableMaskError(Exception):
    """The image cannot be used as a mask. The message is a predicate whose subject is the image."""


def flattened(image: Image.Image) -> Image.Image:
    """Return an upright RGB image. Transparent areas are white."""
    upright = _eight_bit(ImageOps.exif_transpose(image))
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    with_alpha = upright.convert("RGBA")
    white = Image.new("RGBA", with_alpha.size, "white")
    return Image.alpha_composite(white, with_alpha).convert("RGB")


def _opaque(image: Image.Image) -> Image.Image:
    upright = _eight_bit(ImageOps.exif_transpose(image))
    return (upright.convert("RGBA") if upright.has_transparency_data else upright).convert("RGB")


def _mask(image: Image.Image) -> Image.Image:
    upright = _eight_bit(ImageOps.exif_transpose(image))
    if upright.has_transparency_data and upright.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise UnusableMaskError("has transparent areas. Send a black and white image; white areas are generated")
    return _cleaned(upright.convert("L"))


def _mask_of_alpha(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if not upright.has_transparency_data:
        raise UnusableMaskError("is missing, and the image has no transparent areas. Send a black and white image")
    return _cleaned(ImageOps.invert(upright.convert("RGBA").getchannel("A")))


def _cleaned(grey: Image.Image) -> Image.Image:
    """Return a mask whose nearly black pixels are black and whose nearly white ones are white.

    A lossy format changes black and white a little. Raises UnusableMaskError if all pixels are black.
    """
    mask = grey.point(
        [0 if value < _NEARLY_BLACK else 255 if value > 255 - _NEARLY_BLACK else value for value in range(256)]
    )
    if mask.getextrema() == (0, 0):
        raise UnusableMaskError("selects nothing: white areas are generated, and it has none")
    return mask


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return `image` with 16-bit greys scaled to 8 bits; Pillow's own conversion would clip them to white.

    A transparent grey is ignored, because several 16-bit greys map to the same 8-bit grey.
    """
    if not image.mode.startswith("I"):
        return image
    grey = image.convert("I").point(lambda grey: grey / 257).convert("L")
    grey.info.pop("transparency", None)
    return grey


FORMS: Mapping[ImageForm, Callable[[Image.Image], Image.Image]] = {
    "as_sent": ImageOps.exif_transpose,
    "flat": flattened,
    "opaque": _opaque,
    "mask": _mask,
    "mask_of_alpha": _mask_of_alpha,
}
"""Makes an upright image of a form from a decoded one. Those of masks raise UnusableMaskError."""
