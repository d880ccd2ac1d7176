"""A stand-in for a real ComfyUI server that needs no GPU: the same HTTP and websocket, honest placeholder pictures.

It imports nothing else of comfy_client, so that it cannot share our mistakes; what it says is held against recordings
of a real ComfyUI 0.3.64 by tests/simulator. It needs the extra `simulator` (aiohttp) and Pillow.
"""

from comfy_client.simulator.core import Execution
from comfy_client.simulator.faults import Faults
from comfy_client.simulator.simulator import Simulator

__all__ = ["Execution", "Faults", "Simulator"]
