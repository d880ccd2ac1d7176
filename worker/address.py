"""Address of ComfyUI's HTTP API. Imports only the standard library, because the health check uses it."""

from __future__ import annotations

from collections.abc import Mapping

DEFAULT_PORT = "8188"


def comfyui_url(env: Mapping[str, str]) -> str:
    """Return COMFYUI_URL, or the local address of the worker's own ComfyUI."""
    return (
        env.get("COMFYUI_URL", "").strip() or f"http://127.0.0.1:{env.get('COMFYUI_PORT', '').strip() or DEFAULT_PORT}"
    )
