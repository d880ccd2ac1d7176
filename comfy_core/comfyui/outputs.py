"""Turns prompt results into the files of a job's result: encodes images in the requested format and names them."""

from __future__ import annotations

import hashlib
import itertools
import json
import mimetypes
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from comfy_core.comfyui.saved import PromptResult
from comfy_core.contract import JsonObject
from comfy_core.images.child_process import TIMEOUT_S, Check, encode_picture, go_on, identify
from comfy_core.images.codec import Picture
from comfy_core.request.reading import Rendered, Request
from comfy_core.workflows import Graph

ENCODE_S = 60.0
"""Time limit for encoding all images of a job. Images left after it are returned as ComfyUI saved them."""
_LONGEST_STRING = 4096
"""Maximum length of a graph's string in an image's metadata, in characters."""


@dataclass(frozen=True)
class JobOutput:
    """One file of a result. `facts` are additional fields of its entry."""

    filename: str
    data: bytes
    mime_type: str
    facts: JsonObject

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the content, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    def entry(self, kind: str, data: str) -> JsonObject:
        """Return the file's entry in the result. `data` is base64 or a URL."""
        return {
            "filename": self.filename,
            "type": kind,
            "data": data,
            "mime_type": self.mime_type,
            "bytes": len(self.data),
            "sha256": self.sha256,
            **self.facts,
        }


@dataclass(frozen=True)
class JobOutputs:
    """A job's images, other files, and warnings about deviations from the request."""

    images: tuple[JobOutput, ...]
    files: tuple[JobOutput, ...]
    warnings: tuple[str, ...]


def job_outputs(
    request: Request, rendered: Rendered, results: Sequence[PromptResult], check: Check = go_on
) -> JobOutputs:
    """Return the outputs of all prompts in order, with images encoded in the requested format.

    An exception raised by `check` ends the encoding. File names are unique within a job.
    """
    images: list[JobOutput] = []
    warnings: list[str] = []
    names: set[str] = set()
    numbers: Counter[str] = Counter()
    until = time.monotonic() + ENCODE_S
    for graph, seed, result in zip(rendered.graphs, rendered.seeds, results, strict=True):
        text = metadata_text(rendered, graph, seed) if request.metadata else {}
        for image in result.images:
            if image.filename:
                picture = identify(image.data, check)
                size = _size(picture) if picture else {}
                images.append(_as_saved(image.filename, image.data, names, {**size, "seed": seed}))
                continue
            left_s = min(TIMEOUT_S, until - time.monotonic())
            picture = encode_picture(image.data, request.output_format, request.output_quality, text, check, left_s)
            extension = mimetypes.guess_extension(picture.mime_type) or ""
            numbers[image.prefix] += 1
            filename = _unused(f"{image.prefix}_{numbers[image.prefix]:05}_{extension}", names)
            images.append(JobOutput(filename, picture.data, picture.mime_type, {**_size(picture), "seed": seed}))
            if picture.warning:
                warnings.append(f"{filename} {picture.warning}")
    files = [_as_saved(file.filename, file.data, names, {}) for result in results for file in result.files]
    return JobOutputs(tuple(images), tuple(files), tuple(warnings))


def _as_saved(filename: str, data: bytes, names: set[str], facts: JsonObject) -> JobOutput:
    """Return a file unchanged, as a node saved it."""
    name = _unused(filename, names)
    return JobOutput(name, data, mimetypes.guess_type(name)[0] or "application/octet-stream", facts)


def _size(picture: Picture) -> JsonObject:
    return {"width": picture.width, "height": picture.height} if picture.width else {}


def _unused(filename: str, names: set[str]) -> str:
    """Return `filename`, prefixed with a number if the name is already in use."""
    numbered = (f"{number}_{filename}" for number in itertools.count(2))
    name = next(each for each in itertools.chain([filename], numbered) if each not in names)
    names.add(name)
    return name


def metadata_text(rendered: Rendered, graph: Graph, seed: int | None) -> dict[str, str]:
    """Return the text metadata for an image file.

    `prompt` is the graph, as ComfyUI writes it (its editor can open such a file). `parameters` are the inputs as text,
    in the format that other image tools read. Neither contains the image's number within the job, so generating one
    image again with its seed gives an identical file. Long strings in the graph, such as base64 images, are left out.
    """
    text = {"prompt": json.dumps(_shortened(graph))}
    if seed is not None:
        text["parameters"] = parameters_text(rendered, seed)
    return text


def _shortened(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return `value` with strings of more than _LONGEST_STRING characters replaced by a note."""
    match value:
        case str() if len(value) > _LONGEST_STRING:
            return f"[{len(value):,} characters were left out of this file]"
        case dict():
            return {key: _shortened(each) for key, each in value.items()}
        case list():
            return [_shortened(each) for each in value]
    return value


def parameters_text(rendered: Rendered, seed: int) -> str:
    """Return the inputs of one image as text."""
    inputs = {**rendered.inputs, "seed": seed}
    inputs.pop("num_images", None)
    prompt = inputs.pop("prompt", "")
    return f"{prompt}\n" + ", ".join(f"{name}: {value}" for name, value in inputs.items())
