"""ComfyUI's node SendPixelsWebsocket: sends images over the websocket as raw pixels, which ComfyUI does not compress.

ComfyUI imports this file as a custom node. It runs in ComfyUI's process, so it imports nothing of this project.

A frame is ComfyUI's binary frame with the event number PIXEL_EVENT. Its payload is the length of a JSON header (4
bytes, big-endian), the header, and the pixels: rows from top to bottom, 8 bits for each channel. The header has
`prompt_id`, `node`, `index` (from 0), `count` (the number of images that the node sends), `width`, `height` and
`channels`.
"""

from __future__ import annotations

import json
import struct
from typing import Any, ClassVar

import numpy as np
import torch
from server import PromptServer

PIXEL_EVENT = int.from_bytes(b"PIXL", "big")
_LENGTH = struct.Struct(">I")
_BLOCK_VALUES = 128 * 1024
"""Number of values that are converted at once."""


class SendPixelsWebsocket:
    """The node. Its input is a list, so that one call gets all images, and each frame has their number."""

    CATEGORY = "image"
    DESCRIPTION = "Sends the images over the websocket as raw pixels, without compressing them."
    FUNCTION = "send"
    INPUT_IS_LIST = True
    OUTPUT_NODE = True
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:  # noqa: N802 - ComfyUI's name
        """Return the inputs, in the format of ComfyUI."""
        return {"required": {"images": ("IMAGE",)}, "hidden": {"node_id": "UNIQUE_ID"}}

    @classmethod
    def IS_CHANGED(cls, **_: object) -> float:  # noqa: N802 - ComfyUI's name
        """Return NaN, which differs from every value, so that ComfyUI runs the node in each prompt."""
        return float("nan")

    def send(self, images: list[torch.Tensor], node_id: list[str]) -> dict[str, Any]:
        """Send the images of all batches, in order, to the client of the running prompt."""
        server = PromptServer.instance
        if server.client_id is None:
            raise RuntimeError("SendPixelsWebsocket needs a prompt with a client_id, to which it sends the images")
        batch = [image for each in images for image in each]
        for index, image in enumerate(batch):
            height, width, channels = image.shape
            header = {
                "prompt_id": server.last_prompt_id,
                "node": node_id[0],
                "index": index,
                "count": len(batch),
                "width": width,
                "height": height,
                "channels": channels,
            }
            # Queues the frame. ComfyUI's event loop sends it, in order with the other frames.
            server.send_sync(PIXEL_EVENT, _payload(header, image), server.client_id)
        return {}


def _payload(header: dict[str, Any], image: torch.Tensor) -> bytearray:
    """Return the payload of an image's frame."""
    text = json.dumps(header).encode()
    start = _LENGTH.size + len(text)
    payload = bytearray(start + image.numel())
    payload[:start] = _LENGTH.pack(len(text)) + text
    _convert(image, np.frombuffer(payload, np.uint8, offset=start).reshape(image.shape))
    return payload


def _convert(image: torch.Tensor, pixels: np.ndarray) -> None:
    """Write the values 0 to 1 of `image` as 0 to 255 to `pixels`, rounded down as SaveImage does."""
    if image.device.type != "cpu":
        pixels[:] = image.float().mul(255).clamp_(0, 255).to(torch.uint8).cpu().numpy()
        return
    # In one thread, and in blocks that fit into the processor's cache: torch takes several times as long.
    values = image.float().numpy()
    height = max(1, _BLOCK_VALUES // values[0].size)
    with np.errstate(invalid="ignore"):  # NaN
        for top in range(0, len(values), height):
            block = values[top : top + height] * np.float32(255)
            pixels[top : top + height] = np.clip(block, 0, 255, out=block)


NODE_CLASS_MAPPINGS = {"SendPixelsWebsocket": SendPixelsWebsocket}
