"""The documented name of the ComfyUI simulator, which is defined in `simulators.comfyui`."""

from simulators.comfyui import Simulator

__all__ = ["Simulator"]
