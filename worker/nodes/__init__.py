"""Custom nodes for the worker's own ComfyUI. ComfyUI imports their files; the worker only has their names."""

from __future__ import annotations

from pathlib import Path

DIRECTORY = Path(__file__).parent
MODULES = ("quick_start", "send_pixels")
"""The modules in DIRECTORY that ComfyUI imports. `quick_start` has no node: it makes ComfyUI start faster."""
