"""Implements the nodes that load, scale and save images.

Facts about ComfyUI:

- LoadImage applies a photo's EXIF orientation. Its mask is the inverted alpha channel, or 64 x 64 zeros without one.
- SaveImage and PreviewImage also output their images.
- SaveImage writes PNG at compression level 4 with the text chunk `prompt`. PreviewImage writes level 1 into temp, with
  a random suffix. SaveImageWebsocket sends PNG at level 1.
- SendPixelsWebsocket, the worker's own node, sends raw pixels.
- VAESave writes a file below the output folder and does not report it.
- "Image Save" (from the pack WAS) uses `filename_prefix` as a file name. A slash in it names a folder, which the node
  does not create; the error is suppressed.
- "Image Saver" (from the pack by alexopus) has `filename` and `path` instead of `filename_prefix`, and overwrites
  existing files.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import math
import random
import string
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageOps, PngImagePlugin

from simulators.comfyui.files import OutsideFolderError, save_target
from simulators.comfyui.values import Behaviour, ImageBatch, Inputs, NodeContext, NodeFailure, Result

PIXELS_OF_A_MEGAPIXEL = 1024 * 1024
SAVED_COMPRESSION, SENT_COMPRESSION = 4, 1
NO_MASK_SIZE = (64, 64)
RESAMPLING = {
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def _load_image(context: NodeContext, inputs: Inputs) -> Result:
    with Image.open(context.folders.readable(inputs["image"])) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
    mask = ImageOps.invert(upright.getchannel("A")) if "A" in upright.getbands() else Image.new("L", NO_MASK_SIZE)
    return Result((ImageBatch((upright.convert("RGB"),)), mask))


def _scaled(_: NodeContext, inputs: Inputs) -> Result:
    resampling = RESAMPLING[inputs["upscale_method"]]

    def scaled(image: Image.Image) -> Image.Image:
        if not inputs["width"] and not inputs["height"]:
            return image
        width = inputs["width"] or max(1, round(image.width * inputs["height"] / image.height))
        height = inputs["height"] or max(1, round(image.height * width / image.width))
        if inputs["crop"] == "center":
            return ImageOps.fit(image, (width, height), resampling)
        return image.resize((width, height), resampling)

    return Result((ImageBatch(tuple(scaled(image) for image in inputs["image"].frames)),))


def _scaled_by(context: NodeContext, inputs: Inputs) -> Result:
    width, height = (round(side * inputs["scale_by"]) for side in inputs["image"].frames[0].size)
    return _scaled(context, {**inputs, "width": width, "height": height, "crop": "disabled"})


def _scaled_to_total_pixels(context: NodeContext, inputs: Inputs) -> Result:
    width, height = inputs["image"].frames[0].size
    factor = math.sqrt(inputs["megapixels"] * PIXELS_OF_A_MEGAPIXEL / (width * height))
    multiple = inputs["resolution_steps"]
    sides = {name: round(side * factor / multiple) * multiple for name, side in (("width", width), ("height", height))}
    return _scaled(context, {**inputs, **sides, "crop": "disabled"})


def _resized(context: NodeContext, inputs: Inputs) -> Result:
    if inputs["resize_type"] != "scale dimensions":
        raise NodeFailure("NotImplementedError", "The simulator implements no resize type but `scale dimensions`")
    sides = {name: inputs[f"resize_type.{name}"] for name in ("width", "height", "crop")}
    return _scaled(context, {**sides, "image": inputs["input"], "upscale_method": inputs["scale_method"]})


def _empty_image(_: NodeContext, inputs: Inputs) -> Result:
    image = Image.new("RGB", (inputs["width"], inputs["height"]), tuple(inputs["color"].to_bytes(3, "big")))
    return Result((ImageBatch((image,) * inputs["batch_size"]),))


def _png(image: Image.Image, level: int, metadata: PngImagePlugin.PngInfo | None = None) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=level, pnginfo=metadata)
    return file.getvalue()


def _save_images(context: NodeContext, images: ImageBatch, prefix: str, folder: str, level: int) -> Result:
    metadata = PngImagePlugin.PngInfo()
    for key, value in {"prompt": context.graph, **(context.extra_pnginfo or {})}.items():
        metadata.add_text(key, json.dumps(value))
    try:
        target = save_target(context.folders.base / folder, prefix, images.frames[0].size)
    except OutsideFolderError as outside:
        raise NodeFailure("Exception", f"Images must be saved inside the output folder, not in {outside}") from outside
    names = [target.file_name(index) for index in range(len(images.frames))]
    for name, image in zip(names, images.frames, strict=True):
        (target.folder / name).write_bytes(_png(image, level, metadata))
    entries = [{"filename": name, "subfolder": target.subfolder, "type": folder} for name in names]
    return Result((images,), {"images": entries})


def _save(context: NodeContext, inputs: Inputs) -> Result:
    return _save_images(context, inputs["images"], inputs["filename_prefix"], "output", SAVED_COMPRESSION)


def _preview(context: NodeContext, inputs: Inputs) -> Result:
    suffix = "".join(random.choices(string.ascii_lowercase, k=5))  # noqa: S311  a name, not a secret
    return _save_images(context, inputs["images"], f"ComfyUI_temp_{suffix}", "temp", SENT_COMPRESSION)


async def _send(context: NodeContext, inputs: Inputs) -> Result:
    images = inputs["images"].frames
    for index, image in enumerate(images):
        await context.send_image(index, len(images), await asyncio.to_thread(_png, image, SENT_COMPRESSION))
    return Result()


def _send_pixels(context: NodeContext, inputs: Inputs) -> Result:
    images = inputs["images"].frames
    for index, image in enumerate(images):
        context.send_pixels(index, len(images), image)
    return Result()


def _save_vae(context: NodeContext, inputs: Inputs) -> Result:
    target = save_target(context.folders.output, inputs["filename_prefix"], (0, 0))
    (target.folder / target.file_name(0)).with_suffix(".safetensors").write_bytes(b"weights")
    return Result()


def _save_under_name(context: NodeContext, inputs: Inputs) -> Result:
    ui_output = []
    for number, image in enumerate(inputs["images"].frames, 1):
        path = context.folders.output / inputs["output_path"] / f"{inputs['filename_prefix']}_{number:04}.png"
        with contextlib.suppress(OSError):
            path.write_bytes(_png(image, SAVED_COMPRESSION))
            ui_output.append(_output_entry(context, path))
    return Result(ui_output={"images": ui_output})


def _save_at_path(context: NodeContext, inputs: Inputs) -> Result:
    path = context.folders.output / inputs["path"] / f"{inputs['filename']}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png(inputs["images"].frames[0], SAVED_COMPRESSION))
    return Result(ui_output={"images": [_output_entry(context, path)]})


def _output_entry(context: NodeContext, path: Path) -> dict[str, str]:
    subfolder = path.parent.relative_to(context.folders.output)
    return {"filename": path.name, "subfolder": "" if subfolder == Path() else str(subfolder), "type": "output"}


IMAGE_NODES: Mapping[str, Behaviour] = {
    "LoadImage": _load_image,
    "ImageScale": _scaled,
    "ImageScaleBy": _scaled_by,
    "ImageScaleToTotalPixels": _scaled_to_total_pixels,
    "ResizeImageMaskNode": _resized,
    "EmptyImage": _empty_image,
    "SaveImage": _save,
    "PreviewImage": _preview,
    "SaveImageWebsocket": _send,
    "SendPixelsWebsocket": _send_pixels,
    "VAESave": _save_vae,
    "Image Save": _save_under_name,
    "Image Saver": _save_at_path,
}
