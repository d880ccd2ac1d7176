"""Turns the outputs of prompts into the files of a job's result: encodes images as requested, and names the files."""

from __future__ import annotations

import hashlib
import itertools
import json
import mimetypes
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from comfy_core.comfyui.file_inputs import RUN_FOLDER_PATTERN
from comfy_core.comfyui.graph_rewrite import WEBSOCKET_SAVER, filled_name, prefix_of, websocket_savers
from comfy_core.comfyui.prompt_monitor import Prompt
from comfy_core.comfyui.responses import OutputFile, Succeeded
from comfy_core.contract import JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.graphs import Graph
from comfy_core.images.child_process import IMAGE_TIMEOUT_S, StopCheck, encode_image, identify, never_stop
from comfy_core.images.codec import EncodedImage, png_size
from comfy_core.request.rendering import Rendered, Request

ENCODE_TIMEOUT_S = 60.0
"""Time limit for encoding all images of a job. Images that are not encoded by then are returned in ComfyUI's format."""
_MAX_STRING_LENGTH = 4096
"""Maximum length of a graph's string in an image's metadata, in characters."""


@dataclass(frozen=True)
class OutputImage:
    """An image output: its bytes as ComfyUI sent or saved them, and its file name without number and extension.

    An animation or a video has a `filename` instead of a `stem`, because it is returned unchanged under that name.
    """

    data: bytes
    stem: str
    filename: str = ""


@dataclass(frozen=True)
class SavedFile:
    """Any other file that a graph saved, such as audio or a latent."""

    data: bytes
    filename: str


@dataclass(frozen=True)
class PromptResult:
    """The outputs of one graph. `images` includes the animations and videos of core nodes."""

    prompt_id: str
    images: tuple[OutputImage, ...]
    files: tuple[SavedFile, ...]
    texts: tuple[str, ...]


def require_content(graph: Graph, files: Mapping[OutputFile, bytes]) -> None:
    """Raise JobError (no_output) if a file is empty."""
    for file, data in files.items():
        if not data:
            node_type = graph[file.node_id]["class_type"] if file.node_id in graph else "unknown"
            raise JobError.because(
                ErrorCode.NO_OUTPUT,
                f"Node {file.node_id} ({node_type}) reported a saved file that is empty or does not exist, even after "
                "it ran again",
            )


def prompt_result(
    prompt: Prompt, graph: Graph, files: Mapping[OutputFile, bytes], raise_if_stopped: StopCheck
) -> PromptResult:
    """Return the outputs of a prompt.

    Args:
        prompt: the prompt, with the images received over the websocket.
        graph: the caller's graph, which determines the names of the images.
        files: the content of the files that the prompt's nodes reported.
        raise_if_stopped: called regularly; an exception that it raises ends the work.
    """
    images, others, now = [], [], time.localtime()
    for node in websocket_savers(prompt.graph):
        for number, data in enumerate(prompt.images_of(node)):
            prefix = prefix_of(graph, node) or WEBSOCKET_SAVER
            images.append(OutputImage(data, filled_name(prefix, png_size(data) or (0, 0), number, now)))
    image_counts: Counter[str] = Counter()
    for file, data in files.items():
        name = re.sub(f"{RUN_FOLDER_PATTERN.pattern}(-again)?_", "", file.filename)
        found = identify(data, raise_if_stopped)
        if found is not None and not found.is_animated:
            prefix = prefix_of(graph, file.node_id) or re.sub(r"(_\d+)?_?$", "", PurePosixPath(name).stem)
            size = (found.width, found.height)
            images.append(OutputImage(data, filled_name(prefix, size, image_counts[file.node_id], now)))
            image_counts[file.node_id] += 1
        elif file.key == "images":  # videos and animations of core nodes count as images, as in worker-comfyui
            images.append(OutputImage(data, "", name))
        else:
            others.append(SavedFile(data, name))
    texts = prompt.outcome.texts if isinstance(prompt.outcome, Succeeded) else ()
    return PromptResult(prompt.prompt_id, tuple(images), tuple(others), texts)


@dataclass(frozen=True)
class JobOutput:
    """One file of a job's result. `facts` are additional fields of the file's entry, such as the width."""

    filename: str
    data: bytes
    mime_type: str
    facts: JsonObject

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the content, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    def entry(self, kind: str, data: str) -> JsonObject:
        """Return the file's entry in the result: `kind` is "base64" or "s3_url", and `data` is base64 or a URL."""
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
    request: Request, rendered: Rendered, results: Sequence[PromptResult], raise_if_stopped: StopCheck = never_stop
) -> JobOutputs:
    """Return the outputs of all prompts in order, with PNG images encoded in the requested format.

    Other files are returned as the graph saved them. A PNG that cannot be encoded stays a PNG, with a warning. An
    exception that `raise_if_stopped` raises ends the encoding. File names are unique within a job.
    """
    images: list[JobOutput] = []
    warnings: list[str] = []
    used_names: set[str] = set()
    numbers: Counter[str] = Counter()
    deadline = time.monotonic() + ENCODE_TIMEOUT_S
    for graph, seed, result in zip(rendered.graphs, rendered.seeds, results, strict=True):
        chunks = text_chunks(rendered, graph, seed) if request.metadata else {}
        for image in result.images:
            if image.filename:
                found = identify(image.data, raise_if_stopped)
                size = _size(found) if found else {}
                images.append(_as_saved(image.filename, image.data, used_names, {**size, "seed": seed}))
                continue
            timeout_s = min(IMAGE_TIMEOUT_S, deadline - time.monotonic())
            encoded = encode_image(
                image.data, request.output_format, request.output_quality, chunks, raise_if_stopped, timeout_s
            )
            extension = mimetypes.guess_extension(encoded.mime_type) or ""
            numbers[image.stem] += 1
            filename = _unique_name(f"{image.stem}_{numbers[image.stem]:05}_{extension}", used_names)
            images.append(JobOutput(filename, encoded.data, encoded.mime_type, {**_size(encoded), "seed": seed}))
            if encoded.warning:
                warnings.append(f"{filename} {encoded.warning}")
    files = [_as_saved(file.filename, file.data, used_names, {}) for result in results for file in result.files]
    return JobOutputs(tuple(images), tuple(files), tuple(warnings))


def _as_saved(filename: str, data: bytes, used_names: set[str], facts: JsonObject) -> JobOutput:
    """Return the output for a file that stays as a node saved it."""
    name = _unique_name(filename, used_names)
    return JobOutput(name, data, mimetypes.guess_type(name)[0] or "application/octet-stream", facts)


def _size(image: EncodedImage) -> JsonObject:
    return {"width": image.width, "height": image.height} if image.width else {}


def _unique_name(filename: str, used_names: set[str]) -> str:
    """Return `filename`, prefixed with a number if the name is already in use."""
    numbered = (f"{number}_{filename}" for number in itertools.count(2))
    name = next(each for each in itertools.chain([filename], numbered) if each not in used_names)
    used_names.add(name)
    return name


def text_chunks(rendered: Rendered, graph: Graph, seed: int | None) -> dict[str, str]:
    """Return the content of an image's PNG text chunks, by keyword.

    `prompt` is the graph, as ComfyUI writes it: ComfyUI's editor can open such a file. `parameters` are the inputs as
    text, in the format that other image tools read; they are only included if there is a seed. Neither contains the
    image's number within the job, so an image that is generated again with its seed is an identical file. Long strings
    in the graph, such as base64 images, are replaced by a note.
    """
    chunks = {"prompt": json.dumps(_shortened(graph))}
    if seed is not None:
        chunks["parameters"] = parameters_text(rendered, seed)
    return chunks


def _shortened(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return `value` with strings of more than _MAX_STRING_LENGTH characters replaced by a note."""
    match value:
        case str() if len(value) > _MAX_STRING_LENGTH:
            return f"[{len(value):,} characters were left out of this file]"
        case dict():
            return {key: _shortened(each) for key, each in value.items()}
        case list():
            return [_shortened(each) for each in value]
    return value


def parameters_text(rendered: Rendered, seed: int) -> str:
    """Return the inputs of one image as text: the prompt, and below it the other inputs and the image's seed."""
    inputs = {**rendered.inputs, "seed": seed}
    inputs.pop("num_images", None)
    prompt = inputs.pop("prompt", "")
    return f"{prompt}\n" + ", ".join(f"{name}: {value}" for name, value in inputs.items())
