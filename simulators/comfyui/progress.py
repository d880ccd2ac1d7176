"""Tells the client of one prompt what happens, and keeps what history repeats of it.

Facts of ComfyUI 0.3.64:

- `execution_start`, `execution_cached`, `execution_success`, `execution_error` and `execution_interrupted` carry a time
  in milliseconds and stand in history as `status.messages`. Without a client_id only the last of them is sent, to all.
- `progress_state` repeats all nodes so far: floats while a node only starts and ends, integers once it counted steps.
- A step is `progress_state`, then `progress`, then the picture. A client that understands metadata gets the picture in
  between, with them.
- `executing` and `executed` are sent only where the prompt has a client_id; without it progress goes to everyone.
"""

from __future__ import annotations

import time
from typing import Any

from simulators.comfyui.queue_and_history import QueuedPrompt
from simulators.comfyui.sockets import Sockets


class ProgressSender:
    """The frames of one prompt."""

    def __init__(self, sockets: Sockets, prompt: QueuedPrompt) -> None:
        self._sockets = sockets
        self._prompt_id = prompt.prompt_id
        self._client_id = prompt.client_id
        self._nodes: dict[str, dict[str, Any]] = {}
        self.messages: list[list[Any]] = []

    def message(self, event: str, data: dict[str, Any]) -> None:
        """Tell of the prompt as a whole."""
        data = {**data, "prompt_id": self._prompt_id, "timestamp": int(time.time() * 1000)}
        self.messages.append([event, data])
        if self._client_id is not None or event == "execution_interrupted":
            self._sockets.send(event, data, self._client_id)

    def started(self, node_id: str) -> None:
        """Tell that a node runs."""
        self._state(node_id, 0.0, 1.0, "running")
        if self._client_id is not None:
            self._sockets.running_node = node_id
            self._of_node("executing", node_id, {})

    def stepped(self, node_id: str, value: int, maximum: int, picture: tuple[int, bytes] | None = None) -> None:
        """Tell that a node is at `value` of `maximum`, and show a picture."""
        self._state(node_id, value, maximum, "running")
        has_metadata = self._sockets.wants_metadata(self._client_id)
        if picture and has_metadata:
            metadata = {"node_id": node_id, "prompt_id": self._prompt_id, **_places(node_id)}
            self._sockets.send_picture_with_metadata(*picture, metadata, self._client_id)
        step = {"value": value, "max": maximum, "prompt_id": self._prompt_id, "node": node_id}
        self._sockets.send("progress", step, self._client_id)
        if picture and not has_metadata:
            self._sockets.send_picture(*picture, self._client_id)

    def executed(self, node_id: str, shown: dict[str, Any] | None) -> None:
        """Tell what a node shows."""
        if self._client_id is not None:
            self._of_node("executed", node_id, {"output": shown})

    def finished(self, node_id: str) -> None:
        """Tell that a node ended, or that it is cached."""
        maximum = self._nodes[node_id]["max"] if node_id in self._nodes else 1
        self._state(node_id, maximum, maximum, "finished")

    def ended(self) -> None:
        """Tell that the prompt ended and can be read in history."""
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
            **_places(node_id),
        }
        self._sockets.send("progress_state", {"prompt_id": self._prompt_id, "nodes": self._nodes}, self._client_id)


def _places(node_id: str) -> dict[str, str | None]:
    return {"display_node_id": node_id, "parent_node_id": None, "real_node_id": node_id}
