"""What the nodes do that load, change and save pictures.

Facts of ComfyUI 0.3.64:

- LoadImage turns a photo by its EXIF; its mask is the inverse of alpha, or 64 x 64 of nothing where there is none.
- SaveImage writes PNG at compression level 4 with the text chunk `prompt`; PreviewImage at level 1 into temp, under a
  suffix of its own; SaveImageWebsocket sends PNG at level 1.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Mapping

from PIL import Image, ImageChops, ImageOps, PngImagePlugin

from simulators.comfyui.files import OutsideFolderError, place_to_save
from simulators.comfyui.values import Behaviour, Given, ImageBatch, Mask, NodeContext, NodeFailure, Result

SAVED_COMPRESSION, SENT_COMPRESSION = 4, 1
NO_MASK = (64, 64)
RESAMPLING = {
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "bislerp": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
BLENDING: Mapping[str, Callable[[Image.Image, Image.Image], Image.Image]] = {
    "normal": lambda _, other: other,
    "multiply": ImageChops.multiply,
    "screen": ImageChops.screen,
    "overlay": ImageChops.overlay,
    "soft_light": ImageChops.soft_light,
    "difference": ImageChops.subtract,
}


def _opened(bench: NodeContext, given: Given) -> Image.Image:
    with Image.open(bench.folders.readable(given["image"])) as image:
        image.load()
        return ImageOps.exif_transpose(image)


def _load_image(bench: NodeContext, given: Given) -> Result:
    image = _opened(bench, given)
    has_alpha = "A" in image.getbands() or "transparency" in image.info
    mask = ImageOps.invert(image.convert("RGBA").getchannel("A")) if has_alpha else Image.new("L", NO_MASK)
    return Result((ImageBatch((image.convert("RGB"),)), Mask(mask)))


def _load_mask(bench: NodeContext, given: Given) -> Result:
    channel = given["channel"][0].upper()
    mask = _opened(bench, given).convert("RGBA").getchannel(channel)
    return Result((Mask(ImageOps.invert(mask) if channel == "A" else mask),))


def _resampling(given: Given) -> Image.Resampling:
    if given["upscale_method"] not in RESAMPLING:
        raise NodeFailure("NotImplementedError", f"no interpolation called {given['upscale_method']}")
    return RESAMPLING[given["upscale_method"]]


def _scaled(_: NodeContext, given: Given) -> Result:
    def scaled(image: Image.Image) -> Image.Image:
        width = given["width"] or max(1, round(image.width * given["height"] / image.height)) or image.width
        height = given["height"] or max(1, round(image.height * width / image.width))
        if not given["width"] and not given["height"]:
            return image
        if given["crop"] == "center":
            return ImageOps.fit(image, (width, height), _resampling(given))
        return image.resize((width, height), _resampling(given))

    return Result((ImageBatch(tuple(scaled(image) for image in given["image"].frames)),))


def _scaled_to_pixels(_: NodeContext, given: Given) -> Result:
    def scaled(image: Image.Image) -> Image.Image:
        scale = (given["megapixels"] * 1024 * 1024 / (image.width * image.height)) ** 0.5
        return image.resize((round(image.width * scale), round(image.height * scale)), _resampling(given))

    return Result((ImageBatch(tuple(scaled(image) for image in given["image"].frames)),))


def _blended(_: NodeContext, given: Given) -> Result:
    if given["blend_mode"] not in BLENDING:
        raise NodeFailure("ValueError", f"no blend mode called {given['blend_mode']}")
    pairs = zip(given["image1"].frames, given["image2"].frames, strict=False)
    frames = []
    for image, other in pairs:
        mixed = BLENDING[given["blend_mode"]](image, other.resize(image.size, Image.Resampling.BICUBIC))
        frames.append(Image.blend(image, mixed, given["blend_factor"]))
    return Result((ImageBatch(tuple(frames)),))


def _empty_image(_: NodeContext, given: Given) -> Result:
    color = tuple(given["color"].to_bytes(3, "big"))
    image = Image.new("RGB", (given["width"], given["height"]), color)
    return Result((ImageBatch((image,) * given["batch_size"]),))


def png(image: Image.Image, level: int, metadata: PngImagePlugin.PngInfo | None = None) -> bytes:
    """Return the file of a picture."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=level, pnginfo=metadata)
    return file.getvalue()


def _saved(bench: NodeContext, images: ImageBatch, prefix: str, kind: str) -> Result:
    metadata = PngImagePlugin.PngInfo()
    for key, value in {"prompt": bench.graph, **(bench.extra_pnginfo or {})}.items():
        metadata.add_text(key, json.dumps(value))
    try:
        place = place_to_save(bench.folders.base / kind, prefix, images.frames[0].size)
    except OutsideFolderError as outside:
        raise NodeFailure("Exception", f"Nothing may be saved outside the output folder: {outside}") from outside
    shown = []
    level = SAVED_COMPRESSION if kind == "output" else SENT_COMPRESSION
    for index, image in enumerate(images.frames):
        name = place.file_name(index)
        (place.folder / name).write_bytes(png(image, level, metadata))
        shown.append({"filename": name, "subfolder": place.subfolder, "type": kind})
    return Result(shown={"images": shown})


def _save(bench: NodeContext, given: Given) -> Result:
    return _saved(bench, given["images"], given["filename_prefix"], "output")


def _preview(bench: NodeContext, given: Given) -> Result:
    return _saved(bench, given["images"], f"ComfyUI{bench.temp_suffix}", "temp")


async def _send(bench: NodeContext, given: Given) -> Result:
    images = given["images"].frames
    for index, image in enumerate(images):
        await bench.send_picture(index, len(images), await asyncio.to_thread(png, image, SENT_COMPRESSION))
    return Result()


IMAGE_NODES: Mapping[str, Behaviour] = {
    "LoadImage": _load_image,
    "LoadImageMask": _load_mask,
    "ImageScale": _scaled,
    "ImageScaleToTotalPixels": _scaled_to_pixels,
    "ImageBlend": _blended,
    "EmptyImage": _empty_image,
    "SaveImage": _save,
    "PreviewImage": _preview,
    "SaveImageWebsocket": _send,
}
