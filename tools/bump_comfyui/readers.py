"""Finds the code that reads what changed in ComfyUI."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tools.bump_comfyui.changes import Change

ROOT = Path(__file__).resolve().parents[2]
READ = (
    "comfy_core/**/*.py",
    "worker/**/*.py",
    "comfy_client/providers/direct.py",
    "simulators/comfyui/*.py",
    "simulators/comfyui_main.py",
    "workflows/*.json",
)
"""The files that read ComfyUI's messages and declarations, or repeat them."""

MESSAGE_READERS: Mapping[str, tuple[str, ...]] = {
    r"frame |binary frame": ("comfy_core/comfyui/events.py",),
    r"GET /history|POST /history": ("comfy_core/comfyui/responses.py", "comfy_core/comfyui/server.py"),
    r"POST /prompt": (
        "comfy_core/comfyui/refusals.py",
        "comfy_core/comfyui/graph_checks.py",
        "comfy_core/comfyui/server.py",
    ),
    r"\w+ /": ("comfy_core/comfyui/server.py", "worker/health.py"),
    r"order of|kinds of": ("comfy_core/comfyui/events.py", "comfy_core/comfyui/prompt_monitor.py"),
}
"""The modules that read a message, by a pattern of its kind; the first pattern that matches counts."""


def sources() -> dict[str, str]:
    """Return the text of each file of READ, by its path in the repository."""
    files = [file for pattern in READ for file in sorted(ROOT.glob(pattern))]
    return {str(file.relative_to(ROOT)): file.read_text() for file in files}


def message_readers(change: Change, sources: Mapping[str, str]) -> list[str]:
    """Return the places that name the changed key or an old value, of the modules that read this kind of message.

    For a kind of message, an order, or a status, these are the modules themselves.
    """
    modules = next((files for pattern, files in MESSAGE_READERS.items() if re.match(pattern, change.subject)), ())
    key = change.what.rpartition(".")[2].removesuffix("[]")
    if not key or key == "status":
        return [*modules]
    words = "|".join(re.escape(word) for word in (key, *re.findall(r'"([\w-]+)"', change.before)))
    return [place for module in modules for place in _places(module, sources.get(module, ""), words)]


def places_of(name: str, sources: Mapping[str, str]) -> list[str]:
    """Return the first place in each file that has a name in quotes."""
    return [place for path, text in sources.items() for place in _places(path, text, re.escape(name))]


def route_places(route: str, sources: Mapping[str, str]) -> list[str]:
    """Return the first place in each file that has the path of a route, such as `GET /history/{prompt_id}`."""
    literal_parts = re.split(r"\{.*?\}+", route.partition(" ")[2])
    pattern = r"\{[^{}]*\}".join(map(re.escape, literal_parts))
    return [place for path, text in sources.items() for place in _places(path, text, pattern)]


def _places(path: str, text: str, pattern: str) -> Iterator[str]:
    """Yield the first place where a quoted text matches `pattern`."""
    found = re.search(rf"[\"'`]({pattern})[\"'`]", text)
    if found:
        yield f"{path}:{text.count(chr(10), 0, found.start()) + 1}"
