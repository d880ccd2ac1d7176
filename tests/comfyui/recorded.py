"""Reads tests/recordings/<version> with our protocol modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comfy_core.comfyui.events import AttributedEvent, Attribution, parse_frame
from comfy_core.comfyui.responses import Outcome, OutputFile, read_history

RECORDINGS = Path(__file__).parent.parent / "recordings"
VERSIONS = sorted(path.name for path in RECORDINGS.iterdir() if path.is_dir())


class Recorded:
    """The recordings of one version of ComfyUI."""

    def __init__(self, version: str) -> None:
        self.version = version

    def entries(self, name: str) -> list[dict[str, Any]]:
        """Return the entries of a recording."""
        entries: list[dict[str, Any]] = json.loads((RECORDINGS / self.version / f"{name}.json").read_text())
        return entries

    def object_info(self) -> dict[str, Any]:
        """Return the recorded declarations of node types."""
        declared: dict[str, Any] = json.loads((RECORDINGS / self.version / "object_info.json").read_text())
        return declared

    def events(self, name: str) -> list[AttributedEvent]:
        """Return the events of a recording.

        A note that the websocket was closed resets the attribution of frames to nodes, as our websocket client does.
        """
        attribution, events = Attribution(), []
        for entry in self.entries(name):
            if "closed" in entry.get("note", ""):
                attribution = Attribution()
            frame = _frame_of(entry)
            event = parse_frame(frame) if frame is not None else None
            if event is not None:
                events.append(attribution.attribute(event))
        return events

    def history(self, name: str) -> tuple[str, Outcome]:
        """Return the id and the outcome of the prompt in the last history entry of a recording."""
        entries = self.entries(name)
        bodies = [entry["body"] for entry in entries if "/history/" in json.dumps(entry)[:200] and entry["body"]]
        [(prompt_id, _)] = bodies[-1].items()
        outcome = read_history(bodies[-1], prompt_id)
        assert outcome is not None
        return prompt_id, outcome

    def saved_by(self, name: str) -> OutputFile:
        """Return the file that the frame `executed` of a recording names."""
        messages = [entry["ws"] for entry in self.entries(name) if "ws" in entry]
        [executed] = [message["data"] for message in messages if message["type"] == "executed"]
        return OutputFile("out", "images", executed["output"]["images"][0]["filename"], "", "output")


def _frame_of(entry: dict[str, Any]) -> str | bytes | None:
    """Return the frame of an entry, or None for another entry. The recording of a binary frame has only its header."""
    match entry:
        case {"ws": message}:
            return json.dumps(message)
        case {"ws_binary": {"head_hex": str(head), "len": int(length)}}:
            return bytes.fromhex(head).ljust(length, b"\0")
    return None
