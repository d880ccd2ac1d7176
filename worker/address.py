"""Where ComfyUI answers, by the environment. It imports nothing of ours, for the container's health check."""

from __future__ import annotations

from collections.abc import Mapping

DEFAULT_PORT = "8188"


def comfyui_url(env: Mapping[str, str]) -> str:
    """Return the address in COMFYUI_URL, else that of the worker's own ComfyUI."""
    return (
        env.get("COMFYUI_URL", "").strip() or f"http://127.0.0.1:{env.get('COMFYUI_PORT', '').strip() or DEFAULT_PORT}"
    )
