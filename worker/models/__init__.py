"""The models that ComfyUI loads: the list of them, and how they get onto a disk.

It needs requests, tqdm, and comfy_core.errors with comfy_core.contract, nothing else of ours: an image's layer with
17 GB of weights is to be made anew when one of these changes, and not with every commit.
"""
