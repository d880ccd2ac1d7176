"""A stand-in for a real ComfyUI server that needs no GPU: the same HTTP and websocket, honest placeholder pictures.

It imports nothing else of comfy_client, so that it cannot share our mistakes; what it says is held against recordings
of a real ComfyUI 0.3.64 by tests/simulators/comfyui. It needs the extra `simulator` (aiohttp) and Pillow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulators.comfyui.core import Execution
    from simulators.comfyui.faults import Faults
    from simulators.comfyui.simulator import Simulator

__all__ = ["Execution", "Faults", "Simulator"]


def __getattr__(name: str) -> object:
    """Import a public name when it is used: `comfy-client simulate --help` works without aiohttp."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from simulators.comfyui import core, faults, simulator  # noqa: PLC0415 - as above

    homes = {"Execution": core, "Faults": faults, "Simulator": simulator}
    return getattr(homes[name], name)
