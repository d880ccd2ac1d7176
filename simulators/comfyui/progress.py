"""Sends the frames of one prompt to its client, and keeps the messages that /history repeats.

Facts about ComfyUI:

- `execution_start`, `execution_cached`, `execution_success`, `execution_error` and `execution_interrupted` contain a
  time in milliseconds, and /history repeats them in `status.messages`. Without a client_id only
  `execution_interrupted` is sent, to all clients.
- `progress_state` contains all nodes that have started. A node's numbers are floats until it has counted steps, then
  integers.
- A step sends `progress_state`, then `progress`, then the preview.
- `executing` and `executed` are sent only if the prompt has a client_id. Without one, progress goes to all clients.
"""

from __future__ import annotations

import time
from typing import Any

from PIL import Image

from simulators.comfyui.queue_and_history import QueuedPrompt
from simulators.comfyui.sockets import Sockets


class ProgressFrames:
    """Sends the frames of one prompt."""

    def __init__(self, sockets: Sockets, prompt: QueuedPrompt) -> None:
        self._sockets = sockets
        self._prompt_id = prompt.prompt_id
        self._client_id = prompt.client_id
        self._nodes: dict[str, dict[str, Any]] = {}
        self.messages: list[list[Any]] = []

    def send_message(self, event: str, data: dict[str, Any]) -> None:
        """Send a message about the whole prompt, and keep it for /history."""
        data = {**data, "prompt_id": self._prompt_id, "timestamp": int(time.time() * 1000)}
        self.messages.append([event, data])
        if self._client_id is not None or event == "execution_interrupted":
            self._sockets.send(event, data, self._client_id)

    def started(self, node_id: str) -> None:
        """Report that a node starts."""
        self._state(node_id, 0.0, 1.0, "running")
        if self._client_id is not None:
            self._sockets.running_node = node_id
            self._of_node("executing", node_id, {})

    def stepped(self, node_id: str, value: int, maximum: int, image: tuple[int, bytes] | None = None) -> None:
        """Report that a node is at `value` of `maximum`, and send its preview or image."""
        self._state(node_id, value, maximum, "running")
        step = {"value": value, "max": maximum, "prompt_id": self._prompt_id, "node": node_id}
        self._sockets.send("progress", step, self._client_id)
        if image:
            self._sockets.send_image(*image, self._client_id)

    def sent_pixels(self, node_id: str, index: int, count: int, image: Image.Image) -> None:
        """Send an image of a node as raw pixels."""
        header = {
            "prompt_id": self._prompt_id,
            "node": node_id,
            "index": index,
            "count": count,
            "width": image.width,
            "height": image.height,
            "channels": len(image.getbands()),
        }
        self._sockets.send_pixels(header, image.tobytes(), self._client_id)

    def executed(self, node_id: str, ui_output: dict[str, Any] | None) -> None:
        """Report a node's UI output, which becomes its entry in /history."""
        if self._client_id is not None:
            self._of_node("executed", node_id, {"output": ui_output})

    def finished(self, node_id: str) -> None:
        """Report that a node finished, or that its result is cached."""
        maximum = self._nodes[node_id]["max"] if node_id in self._nodes else 1
        self._state(node_id, maximum, maximum, "finished")

    def ended(self) -> None:
        """Report that the prompt ended and its history entry exists."""
        if self._client_id is not None:
            self._sockets.send("executing", {"node": None, "prompt_id": self._prompt_id}, self._client_id)

    def _of_node(self, event: str, node_id: str, more: dict[str, Any]) -> None:
        data = {"node": node_id, "display_node": node_id, **more, "prompt_id": self._prompt_id}
        self._sockets.send(event, data, self._client_id)

    def _state(self, node_id: str, value: float, maximum: float, state: str) -> None:
        self._nodes[node_id] = {
            "value": value,
            "max": maximum,
            "state": state,
            "node_id": node_id,
            "prompt_id": self._prompt_id,
            **_display_ids(node_id),
        }
        self._sockets.send("progress_state", {"prompt_id": self._prompt_id, "nodes": self._nodes}, self._client_id)


def _display_ids(node_id: str) -> dict[str, str | None]:
    return {"display_node_id": node_id, "parent_node_id": None, "real_node_id": node_id}
