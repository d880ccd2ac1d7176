"""From what ComfyUI made to what the caller gets: pictures encoded, and delivered inline or through a bucket."""

from __future__ import annotations

import base64
import hashlib
import json
import mimetypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from comfy_client.comfyui.run import PromptResult, SavedImage
from comfy_client.contract import OUTPUT_FORMATS, ErrorCode, JsonObject
from comfy_client.errors import JobError
from comfy_client.images import encode_picture, identify
from comfy_client.request import Rendered, Request
from comfy_client.workflows import Graph

_ADDED_BYTES = 400
"""What is added to a result once it is measured, at most: its timings, and what the SDK wraps it in."""


@dataclass(frozen=True)
class Output:
    """One file of a result; `facts` are what its entry says beside the file's own."""

    filename: str
    data: bytes
    mime_type: str
    facts: JsonObject

    @cached_property
    def sha256(self) -> str:
        """The hash of its bytes."""
        return hashlib.sha256(self.data).hexdigest()

    def entry(self, kind: str, data: str) -> JsonObject:
        """Return its entry in the result, `data` being base64 or an address."""
        return {
            "filename": self.filename,
            "type": kind,
            "data": data,
            "mime_type": self.mime_type,
            "bytes": len(self.data),
            "sha256": self.sha256,
            **self.facts,
        }


def encoded_images(request: Request, rendered: Rendered, results: Sequence[PromptResult]) -> list[Output]:
    """Return the pictures of each prompt in order, encoded as the request asks."""
    outputs: list[Output] = []
    for graph, seed, result in zip(rendered.graphs, rendered.seeds, results, strict=True):
        text = _metadata(rendered, graph, seed) if request.metadata else {}
        for image in result.images:
            data, mime_type, (width, height) = _encoded(request, image, text)
            filename = f"{image.prefix}_{len(outputs) + 1:05}_{mimetypes.guess_extension(mime_type) or ''}"
            outputs.append(Output(filename, data, mime_type, {"width": width, "height": height, "seed": seed}))
    return outputs


def other_files(results: Sequence[PromptResult]) -> Iterator[Output]:
    """Yield what is no still picture. A name that came before, from another folder, gets a number in front."""
    names: set[str] = set()
    for number, file in enumerate((file for result in results for file in result.files), 1):
        name = f"{number}_{file.filename}" if file.filename in names else file.filename
        names.add(name)
        yield Output(name, file.data, mimetypes.guess_type(name)[0] or "application/octet-stream", {})


Store = Callable[[Output], str]
"""Puts an output into a bucket and returns its address. Raises JobError (output_not_stored)."""


@dataclass(frozen=True)
class Delivery:
    """How one job's outputs are delivered: inline, or through `store`, where there is a bucket."""

    wanted: str
    limit_bytes: int
    store: Store | None

    def entries(self, groups: Sequence[Sequence[Output]], beside: JsonObject) -> list[list[JsonObject]]:
        """Return the entries of each group. All go the same way. `beside` is the rest of the result.

        Raises JobError: output_too_large where they do not fit inline and there is no bucket, output_not_stored.
        """
        outputs = [output for group in groups for output in group]
        size = inline_size(outputs, beside)
        store = self.store
        if self.wanted == "base64" or (self.wanted == "auto" and size <= self.limit_bytes):
            store = None
        if store is not None:
            size = inline_size([], beside)
        if size > self.limit_bytes:
            raise _too_large(size, self.limit_bytes)
        if store is not None:
            return [[output.entry("s3_url", store(output)) for output in group] for group in groups]
        return [[output.entry("base64", _base64(output.data)) for output in group] for group in groups]


def inline_size(outputs: Sequence[Output], beside: JsonObject) -> int:
    """Return how many bytes of JSON a result has at most, with `outputs` inline and `beside` them the rest."""
    base64_bytes = sum((len(output.data) + 2) // 3 * 4 for output in outputs)
    return base64_bytes + len(json.dumps([beside, *(output.entry("base64", "") for output in outputs)])) + _ADDED_BYTES


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _too_large(size: int, limit: int) -> JobError:
    return JobError.because(
        ErrorCode.OUTPUT_TOO_LARGE,
        f"The result has {size:,} bytes; at most {limit:,} can be returned inline. Ask for output_format webp or jpeg, "
        "for fewer pictures or a smaller size, or give the worker a bucket (BUCKET_ENDPOINT_URL) and use delivery s3.",
        bytes=size,
        limit=limit,
    )


def _encoded(request: Request, image: SavedImage, text: dict[str, str]) -> tuple[bytes, str, tuple[int, int]]:
    """Return the picture's bytes, MIME type and size. What is no PNG was encoded by the graph, and stays so."""
    picture = identify(image.data)
    if picture is None:
        raise ValueError("ComfyUI sent a picture that is none")
    size = picture.width, picture.height
    if picture.mime_type != "image/png":
        return image.data, picture.mime_type, size
    data = encode_picture(image.data, request.output_format, request.output_quality, text)
    return data, OUTPUT_FORMATS[request.output_format], size


def _metadata(rendered: Rendered, graph: Graph, seed: int | None) -> dict[str, str]:
    """Return the text for a picture's file.

    `prompt` is the graph, as ComfyUI writes it itself (its canvas opens such a file); `parameters` are the inputs in
    words, as the tools of the field read them. Neither says which picture of how many it was: made again alone with its
    seed, the file is the same to the byte.
    """
    text = {"prompt": json.dumps(graph)}
    if seed is not None:
        inputs = {**rendered.inputs, "seed": seed}
        inputs.pop("num_images", None)
        prompt = inputs.pop("prompt", "")
        text["parameters"] = f"{prompt}\n" + ", ".join(f"{name}: {value}" for name, value in inputs.items())
    return text
