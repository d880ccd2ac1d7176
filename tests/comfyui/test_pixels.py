"""Images as raw pixels are those that ComfyUI encodes itself, on the simulator or a real ComfyUI.

A ComfyUI without the worker's node encodes the images in both cases.
"""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from comfy_core.comfyui.run import NO_HOOKS, Hooks, run_graphs
from comfy_core.comfyui.server import ComfyServer
from comfy_core.graphs import Graph
from tests.comfyui.conftest import PATIENT_LIMITS, no_reason_to_stop
from worker.png import start_encoding


def node(class_type: str, **inputs: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    """Return a node."""
    return {"class_type": class_type, "inputs": inputs}


GRAPH: Graph = {
    "1": node("EmptyImage", width=640, height=301, batch_size=3, color=0x123456),
    "2": node("EmptyImage", width=63, height=65, batch_size=1, color=0xFEDCBA),
    "3": node("SaveImage", images=["1", 0], filename_prefix="fox_%width%"),
    "4": node("SaveImageWebsocket", images=["2", 0]),
}


def images_of(server: ComfyServer, hooks: Hooks) -> list[tuple[str, tuple[int, int], bytes]]:
    """Run GRAPH; return the name, size and pixels of its images."""
    [result] = run_graphs(server, [GRAPH], [], PATIENT_LIMITS, no_reason_to_stop, hooks).prompts
    files = [(image.stem, Image.open(io.BytesIO(image.data))) for image in result.images]
    return [(stem, file.size, file.tobytes()) for stem, file in files]


def test_the_images_are_the_same_as_those_that_comfyui_encodes(server: ComfyServer) -> None:
    """The pixels, the order and the names are equal, for batches and for several nodes."""
    images = images_of(server, Hooks(encode=start_encoding))

    assert images == images_of(server, NO_HOOKS)
    assert [stem for stem, _, _ in images] == ["fox_640"] * 3 + ["ComfyUI"]
