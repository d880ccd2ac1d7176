"""Turns the files of a request into uploads for ComfyUI, and derives a template's sizes from its image. Pure."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from comfy_core.contract import ErrorReport, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.images.codec import MAX_BYTES, EncodedImage, invalid_image, rounded_size
from comfy_core.images.forms import ImageForm
from comfy_core.request.graph_files import FileSource, is_playlist
from comfy_core.targets import Target
from comfy_core.workflows import Workflow

_MAX_STRETCH = 1.02
"""Maximum ratio of the aspect ratios of an image and its mask without a warning."""
_SIDE_LIMITS = {"minimum": 64, "maximum": 2048, "multipleOf": 16}
"""Limits of a side in pixels, for a template whose schema has none."""
_MAX_SIDE = 16_384
"""ComfyUI's maximum for a side in pixels."""


class CheckImage(Protocol):
    """A function such as `check_image` in images.codec and images.child_process."""

    def __call__(self, data: bytes, field_path: str, *, form: ImageForm) -> EncodedImage:
        """Return the image in `data` in a form that LoadImage accepts. Raises JobError (invalid_image)."""


@dataclass(frozen=True)
class Upload:
    """A file of the request, and the inputs that will name it after the upload.

    If the file is not an image, its width and height are 0, and `own_extension` is set.
    """

    file: EncodedImage
    targets: tuple[Target, ...]
    own_extension: str = ""

    @property
    def extension(self) -> str:
        """The file extension, without the dot."""
        return self.own_extension or self.file.mime_type.rpartition("/")[2]


def upload(source: FileSource, targets: tuple[Target, ...], check_image: CheckImage, form: ImageForm) -> Upload:
    """Return the upload for a downloaded file. Raises JobError (invalid_image)."""
    if isinstance(source.content, str):
        raise TypeError(f"{source.field_path} was not fetched")
    if source.must_be_image:
        return Upload(check_image(source.content, source.field_path, form=form), targets)
    if len(source.content) > MAX_BYTES:
        raise invalid_image(source.field_path, f"has {len(source.content):,} bytes; at most {MAX_BYTES:,} are allowed")
    if is_playlist(source.content):
        message = f"{source.field_path} is a playlist; send the video or audio file itself."
        raise JobError(ErrorReport(ErrorCode.INVALID_IMAGE, message, {"path": source.field_path}))
    mime_type = mimetypes.guess_type(f"file.{source.extension}")[0] or "application/octet-stream"
    return Upload(EncodedImage(source.content, 0, 0, mime_type), targets, source.extension)


def template_uploads(template: Workflow, files: Mapping[str, FileSource], check_image: CheckImage) -> dict[str, Upload]:
    """Return the uploads of a template by input. A mask that was not sent is made from its image's alpha channel.

    Raises JobError (invalid_image).
    """
    uploads: dict[str, Upload] = {}
    from_alpha = {mask: image for mask, image in template.masks.items() if mask not in files and image in files}
    for name in template.image_inputs:
        form: ImageForm = "opaque" if name in from_alpha.values() else "mask" if name in template.masks else "flat"
        if name in files:
            uploads[name] = upload(files[name], template.targets(name), check_image, form)
    for mask, image in from_alpha.items():
        source = replace(files[image], field_path=mask)
        uploads[mask] = upload(source, template.targets(mask), check_image, "mask_of_alpha")
    return uploads


def stretched_masks(template: Workflow, uploads: Mapping[str, Upload]) -> list[str]:
    """Return a warning for each mask whose aspect ratio is not that of its image."""
    warnings = []
    for name, image_name in template.masks.items():
        if name in uploads and image_name in uploads:
            mask, image = uploads[name].file, uploads[image_name].file
            ratio = mask.width * image.height / (mask.height * image.width)
            if not 1 / _MAX_STRETCH <= ratio <= _MAX_STRETCH:
                warnings.append(
                    f"{name}: its {mask.width} x {mask.height} pixels were stretched to the {image.width} x "
                    f"{image.height} of {image_name}"
                )
    return warnings


def default_size(template: Workflow, inputs: JsonObject, uploads: Mapping[str, Upload]) -> JsonObject:
    """Return those of `width` and `height` that the request does not set, to keep the aspect ratio of its image.

    `x-size` and the limits of the inputs `width` and `height` apply.
    """
    images = [upload.file for name, upload in uploads.items() if name not in template.masks]
    if not images or not {"width", "height"} <= template.inputs.keys():
        return {}
    image, scale = images[0], template.size.get("scale", 1)
    rules = {side: template.inputs[side] for side in ("width", "height")}
    match inputs:
        case {"width": _, "height": _}:
            return {}
        case {"width": int(width)}:
            return {"height": _side(image.height * width / image.width, rules["height"])}
        case {"height": int(height)}:
            return {"width": _side(image.width * height / image.height, rules["width"])}
    width, height = rounded_size(
        image.width * scale,
        image.height * scale,
        multiple=max(_limit(rule, "multipleOf") for rule in rules.values()),
        max_pixels=template.size.get("max_pixels", 2 * 1024 * 1024),
        min_side=max(_limit(rule, "minimum") for rule in rules.values()),
        max_side=min(_limit(rule, "maximum") for rule in rules.values()),
    )
    return {"width": width, "height": height}


def _limit(rule: JsonObject, keyword: str) -> int:
    return int(min(_MAX_SIDE, max(1, rule.get(keyword, _SIDE_LIMITS[keyword]))))


def _side(pixels: float, rule: JsonObject) -> int:
    lowest, highest, multiple = (_limit(rule, keyword) for keyword in _SIDE_LIMITS)
    return min(highest, max(lowest, round(pixels / multiple) * multiple))
