"""Implements the nodes of masks. A mask is a grey image: white, or 1 in ComfyUI, is selected.

Facts about ComfyUI:

- LoadImageMask returns a colour channel, or the inverted alpha channel: transparent is 1.
- GrowMask takes the maximum of each pixel and its neighbours, `expand` times; without the corners if they are tapered.
- ImageBlur has a square kernel of 2 x `blur_radius` + 1 pixels.
- ImageCompositeMasked scales the mask to the source, and with `resize_source` the source to the destination, linearly.
  Where the mask is 0, the destination keeps its exact values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from PIL import Image, ImageChops, ImageFilter, ImageOps

from simulators.comfyui.values import Behaviour, ImageBatch, Inputs, NodeContext, NodeFailure, Result

_NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))
_CORNERS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
_OPERATIONS: Mapping[str, Callable[[Image.Image, Image.Image], Image.Image]] = {
    "multiply": ImageChops.multiply,
    "add": ImageChops.add,
    "subtract": ImageChops.subtract,
}


def _load_mask(context: NodeContext, inputs: Inputs) -> Result:
    with Image.open(context.folders.readable(inputs["image"])) as image:
        upright = ImageOps.exif_transpose(image).convert("RGBA")
    channel = upright.getchannel(inputs["channel"][0].upper())
    return Result((ImageOps.invert(channel) if inputs["channel"] == "alpha" else channel,))


def _grown(_: NodeContext, inputs: Inputs) -> Result:
    mask: Image.Image = inputs["mask"]
    if inputs["expand"] < 0:
        raise NodeFailure("NotImplementedError", "The simulator does not shrink masks")
    for _step in range(inputs["expand"]):
        grown = mask
        for offset in _NEIGHBOURS + (() if inputs["tapered_corners"] else _CORNERS):
            moved = Image.new("L", mask.size)
            moved.paste(mask, offset)
            grown = ImageChops.lighter(grown, moved)
        mask = grown
    return Result((mask,))


def _composited_mask(_: NodeContext, inputs: Inputs) -> Result:
    if inputs["operation"] not in _OPERATIONS:
        raise NodeFailure("NotImplementedError", f"The simulator implements only {', '.join(_OPERATIONS)}")
    destination, source = inputs["destination"], inputs["source"]
    result, corner = destination.copy(), (inputs["x"], inputs["y"])
    covered = destination.crop((*corner, corner[0] + source.width, corner[1] + source.height))
    result.paste(_OPERATIONS[inputs["operation"]](covered, source), corner)
    return Result((result,))


def _blurred(_: NodeContext, inputs: Inputs) -> Result:
    blur = ImageFilter.BoxBlur(inputs["blur_radius"])
    return Result((ImageBatch(tuple(image.filter(blur) for image in inputs["image"].frames)),))


def _composited(_: NodeContext, inputs: Inputs) -> Result:
    frames = []
    for destination, source in zip(inputs["destination"].frames, inputs["source"].frames, strict=True):
        scaled = source.resize(destination.size, Image.Resampling.BILINEAR) if inputs["resize_source"] else source
        mask = inputs.get("mask") or Image.new("L", scaled.size, 255)
        result = destination.copy()
        result.paste(scaled, (inputs["x"], inputs["y"]), mask.resize(scaled.size, Image.Resampling.BILINEAR))
        frames.append(result)
    return Result((ImageBatch(tuple(frames)),))


MASK_NODES: Mapping[str, Behaviour] = {
    "LoadImageMask": _load_mask,
    "GrowMask": _grown,
    "MaskToImage": lambda _, inputs: Result((ImageBatch((inputs["mask"].convert("RGB"),)),)),
    "ImageToMask": lambda _, inputs: Result((inputs["image"].frames[0].getchannel(inputs["channel"][0].upper()),)),
    "MaskComposite": _composited_mask,
    "ImageBlur": _blurred,
    "ImageCompositeMasked": _composited,
}
