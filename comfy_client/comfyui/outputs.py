"""From what ComfyUI made to the files that a caller gets: pictures encoded as the request asks, and named. Pure."""

from __future__ import annotations

import hashlib
import json
import mimetypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from comfy_client.comfyui.run import PromptResult
from comfy_client.contract import OUTPUT_FORMATS, JsonObject
from comfy_client.images import encode_picture, identify
from comfy_client.request import Rendered, Request
from comfy_client.workflows import Graph


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
        text = metadata_text(rendered, graph, seed) if request.metadata else {}
        for image in result.images:
            data, mime_type, (width, height) = encode_output(image.data, request, text)
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


def encode_output(png: bytes, request: Request, text: dict[str, str]) -> tuple[bytes, str, tuple[int, int]]:
    """Return the picture's bytes, MIME type and size. What is no PNG was encoded by the graph, and stays so."""
    picture = identify(png)
    if picture is None:
        raise ValueError("ComfyUI sent a picture that is none")
    size = picture.width, picture.height
    if picture.mime_type != "image/png":
        return png, picture.mime_type, size
    data = encode_picture(png, request.output_format, request.output_quality, text)
    return data, OUTPUT_FORMATS[request.output_format], size


def metadata_text(rendered: Rendered, graph: Graph, seed: int | None) -> dict[str, str]:
    """Return the text for a picture's file.

    `prompt` is the graph, as ComfyUI writes it itself (its canvas opens such a file); `parameters` are the inputs in
    words, as the tools of the field read them. Neither says which picture of how many it was: made again alone with its
    seed, the file is the same to the byte.
    """
    text = {"prompt": json.dumps(graph)}
    if seed is not None:
        text["parameters"] = parameters_text(rendered, seed)
    return text


def parameters_text(rendered: Rendered, seed: int) -> str:
    """Return the inputs of one picture in words."""
    inputs = {**rendered.inputs, "seed": seed}
    inputs.pop("num_images", None)
    prompt = inputs.pop("prompt", "")
    return f"{prompt}\n" + ", ".join(f"{name}: {value}" for name, value in inputs.items())
