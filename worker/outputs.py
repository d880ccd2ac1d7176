"""From what ComfyUI made to what the caller gets: encoded pictures, inline as base64."""

from __future__ import annotations

import base64
import hashlib
import json
import mimetypes
from collections.abc import Iterator

from comfy_client.comfyui.run import PromptResult, SavedImage
from comfy_client.contract import OUTPUT_FORMATS, JsonObject
from comfy_client.images import encode_picture, identify
from comfy_client.request import Rendered, Request
from comfy_client.workflows import Graph


def image_entries(request: Request, rendered: Rendered, results: tuple[PromptResult, ...]) -> list[JsonObject]:
    """Return `images` of the result: a picture of each prompt in order, encoded as the request asks."""
    entries: list[JsonObject] = []
    for graph, seed, result in zip(rendered.graphs, rendered.seeds, results, strict=True):
        text = _metadata(rendered, graph, seed) if request.metadata else {}
        for image in result.images:
            data, mime_type, size = _encoded(request, image, text)
            filename = f"{image.prefix}_{len(entries) + 1:05}_{mimetypes.guess_extension(mime_type) or ''}"
            entries.append({**_entry(filename, data, mime_type), "width": size[0], "height": size[1], "seed": seed})
    return entries


def file_entries(results: tuple[PromptResult, ...]) -> Iterator[JsonObject]:
    """Yield `files` of the result: what is no still picture."""
    for result in results:
        for file in result.files:
            mime_type = mimetypes.guess_type(file.filename)[0] or "application/octet-stream"
            yield _entry(file.filename, file.data, mime_type)


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


def _entry(filename: str, data: bytes, mime_type: str) -> JsonObject:
    return {
        "filename": filename,
        "type": "base64",
        "data": base64.b64encode(data).decode("ascii"),
        "mime_type": mime_type,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
