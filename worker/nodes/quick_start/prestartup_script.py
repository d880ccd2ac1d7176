"""Turns Python's garbage collector off while ComfyUI starts. ComfyUI runs this file before it imports torch.

The start creates about a million objects that stay, and the collector would examine them repeatedly. `__init__.py`
turns the collector on again. It imports nothing of this project, because it runs in ComfyUI's process.
"""

import gc

gc.disable()
