"""A simulated ComfyUI server that needs no GPU: the same HTTP and websocket API, with placeholder images.

It imports nothing else of this project, so that it cannot repeat our mistakes. tests/simulators/comfyui compares it
with recordings of a real ComfyUI. It needs the extra `simulator` (aiohttp) and Pillow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulators.comfyui.core import Execution
    from simulators.comfyui.faults import ComfyUIFaults
    from simulators.comfyui.simulator import Simulator

__all__ = ["ComfyUIFaults", "Execution", "Simulator"]


def __getattr__(name: str) -> object:
    """Import a public name at its first use, so that `comfy-client simulate --help` works without aiohttp."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from simulators.comfyui import core, faults, simulator  # noqa: PLC0415 - they import aiohttp

    modules = {"Execution": core, "ComfyUIFaults": faults, "Simulator": simulator}
    return getattr(modules[name], name)
