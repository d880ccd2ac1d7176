"""Turns a prompt's outputs into results: still images with their names, other files, and texts."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from comfy_core.comfyui.file_inputs import RUN_FOLDER
from comfy_core.comfyui.graph_rewrite import SAVE_NODE, filled_name, prefix_of, save_nodes
from comfy_core.comfyui.prompt_monitor import Prompt
from comfy_core.comfyui.responses import OutputFile, Succeeded
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.images.child_process import Check, identify
from comfy_core.images.codec import png_size
from comfy_core.workflows import Graph


@dataclass(frozen=True)
class SavedImage:
    """An image output: the file's bytes as saved by ComfyUI, and its name prefix from the graph.

    `filename` is set only for animations and videos, which are returned unchanged under this name.
    """

    data: bytes
    prefix: str
    filename: str = ""


@dataclass(frozen=True)
class SavedFile:
    """Any other file that a graph saved, such as audio or a latent."""

    data: bytes
    filename: str


@dataclass(frozen=True)
class PromptResult:
    """The outputs of one graph."""

    prompt_id: str
    images: tuple[SavedImage, ...]
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


def prompt_result(prompt: Prompt, graph: Graph, files: Mapping[OutputFile, bytes], check: Check) -> PromptResult:
    """Return the outputs of a prompt.

    Args:
        prompt: the prompt, with the images received over the websocket.
        graph: the caller's graph, which determines the names of the images.
        files: the content of the files that its nodes reported.
        check: called regularly; an exception that it raises ends the work.
    """
    images, others, now = [], [], time.localtime()
    for node in save_nodes(prompt.graph):
        for number, data in enumerate(prompt.images.get(node, ())):
            prefix = prefix_of(graph, node) or SAVE_NODE
            images.append(SavedImage(data, filled_name(prefix, png_size(data) or (0, 0), number, now)))
    saved: Counter[str] = Counter()
    for file, data in files.items():
        name = re.sub(f"{RUN_FOLDER.pattern}(-again)?_", "", file.filename)
        found = identify(data, check)
        if found is not None and not found.is_animated:
            prefix = prefix_of(graph, file.node_id) or re.sub(r"(_\d+)?_?$", "", PurePosixPath(name).stem)
            size = (found.width, found.height)
            images.append(SavedImage(data, filled_name(prefix, size, saved[file.node_id], now)))
            saved[file.node_id] += 1
        elif file.key == "images":  # videos and animations of core nodes count as images, as in worker-comfyui
            images.append(SavedImage(data, "", name))
        else:
            others.append(SavedFile(data, name))
    texts = prompt.outcome.texts if isinstance(prompt.outcome, Succeeded) else ()
    return PromptResult(prompt.prompt_id, tuple(images), tuple(others), texts)
