"""Reads the recordings of the pinned ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simulators.comfyui.version import pinned_version

RECORDINGS = Path(__file__).parents[2] / "recordings" / pinned_version()


def recording(name: str) -> Any:  # noqa: ANN401  JSON
    """Return the entries of a recording."""
    return json.loads((RECORDINGS / f"{name}.json").read_text())


def frames(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the websocket frames of a recording."""
    return [entry for entry in entries if "ws" in entry or "ws_binary" in entry]


def entry_of(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the last history entry of a recording."""
    responses = [entry["body"] for entry in entries if "history" in str(entry.get("http") or entry.get("request"))]
    entry: dict[str, Any] = next(iter(responses[-1].values()))
    return entry


def graph_of(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the graph of a recorded run."""
    graph: dict[str, Any] = entry_of(entries)["prompt"][2]
    return graph
