"""The models that ComfyUI loads: the list of them, and how they get onto a disk.

It needs requests, tqdm, and comfy_client.errors with comfy_client.contract, nothing else of ours: an image's layer with
17 GB of weights is to be made anew when one of these changes, and not with every commit.
"""
