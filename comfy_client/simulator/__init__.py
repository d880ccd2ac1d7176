"""The documented name of the ComfyUI simulator, which lives in `simulators.comfyui`."""

from simulators.comfyui import Simulator

__all__ = ["Simulator"]
