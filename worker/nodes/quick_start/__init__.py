"""Turns Python's garbage collector on again. ComfyUI imports this module last in its start, as a custom node.

The objects of the start are exempted from later collections, of which ComfyUI runs one after a prompt.
"""

import gc

gc.freeze()
gc.enable()

NODE_CLASS_MAPPINGS: dict[str, type] = {}
